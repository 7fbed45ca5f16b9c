"""PyTorch in eager mode."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.device import describe_device
from ranksearch.errors import SettingError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Eager:
    """Runs networks as PyTorch does, module by module.

    Attributes:
        precision: type of weights and inputs: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        channels_last: memory format of both.

    Raises:
        SettingError: the precision is unknown.
    """

    precision: str = "float32"
    channels_last: bool = True

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise SettingError("precision", self.precision, f"is unknown: use {', '.join(DTYPES)}")

    def prepare(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Copy a module to a device, in eval mode, in the precision and the memory format."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return copy.deepcopy(module).eval().to(device, DTYPES[self.precision]).to(memory_format=layout)

    def example(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Make an input of ones."""
        values = torch.ones(tuple(shape), device=device, dtype=DTYPES[self.precision])
        as_images = self.channels_last and values.ndim == 4
        return values.contiguous(memory_format=torch.channels_last) if as_images else values

    def describe(self, device: torch.device) -> Mapping[str, Any]:
        """See `Runtime`."""
        return {"device": describe_device(device), "dtype": self.precision, "channels_last": self.channels_last}

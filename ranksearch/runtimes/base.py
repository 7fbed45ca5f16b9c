"""The seam to what executes a deployed network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Runtime(Protocol):
    """Prepares networks and layers for execution, in one precision."""

    @property
    def precision(self) -> str:
        """Type of weights and inputs, such as ``"float32"``."""

    def prepare(self, module: nn.Module, device: torch.device) -> Callable[..., Any]:
        """Return a callable that runs a copy of a module, in eval mode, on a device."""

    def example(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return an input of a shape for what `prepare` returns."""

    def describe(self, device: torch.device) -> Mapping[str, Any]:
        """Return everything that measured times depend on, as plain JSON values."""

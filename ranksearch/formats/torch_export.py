"""Export of a network with `torch.export`."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import UserError, first_line, shorten
from ranksearch.formats.structure import Arguments


def write_torch_export(network: nn.Module, example: Arguments, folder: Path) -> tuple[Path, Callable[[Arguments], Any]]:
    """Write an exported program (`torch.export`) for any batch size, and load it back."""
    path = folder / "network.pt2"
    torch.export.save(trace_program(network, example), path)
    loaded: nn.Module = torch.export.load(path).module()
    return path, lambda arguments: arguments.run(loaded)


def trace_program(network: nn.Module, example: Arguments) -> torch.export.ExportedProgram:
    """Trace a network for any batch size, the first axis of all tensors that have two examples.

    Raises:
        UserError: `torch.export` cannot trace the network.
    """
    batch = torch.export.Dim("batch")

    def dynamic(tensor: Tensor) -> dict[int, Any] | None:
        return {0: batch} if tensor.ndim and len(tensor) == 2 else None

    args, kwargs = example.mapped(dynamic)
    # Shapes are given in the order of forward's arguments, by position, or by name if there are keywords.
    shapes: Any = args
    if example.kwargs:
        shapes = {**dict(zip(inspect.signature(network.forward).parameters, args, strict=False)), **kwargs}
    try:
        return torch.export.export(network, example.args, example.kwargs, dynamic_shapes=shapes)
    except Exception as error:  # the tracer may raise anything on a custom forward
        reason = shorten(first_line(error), 160)
        raise UserError(f"torch.export cannot follow the network ({reason}): use format=state_dict") from error

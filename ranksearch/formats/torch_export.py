"""Export of a network with `torch.export`."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ranksearch.errors import UserError, first_line


def write_torch_export(network: nn.Module, example: Tensor, folder: Path) -> tuple[Path, nn.Module]:
    """Write an exported program (`torch.export`) for any batch size, and load it back."""
    path = folder / "network.pt2"
    torch.export.save(trace_program(network, example), path)
    loaded: nn.Module = torch.export.load(path).module()
    return path, loaded


def trace_program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace a network for any batch size.

    Raises:
        UserError: `torch.export` cannot trace the network.
    """
    try:
        return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # the tracer may raise anything on a custom forward
        reason = first_line(error)
        raise UserError(f"torch.export cannot follow the network ({reason}): use format=state_dict") from error

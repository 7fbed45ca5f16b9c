"""Export of a finished network; files are loaded back and compared before they are put in place."""

import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ranksearch.batches import Call, Inputs, read_batch
from ranksearch.errors import UserError
from ranksearch.factorize.source_model import untouched, unwrap
from ranksearch.formats.onnx import write_onnx
from ranksearch.formats.python_source import write_plain
from ranksearch.formats.structure import Arguments, all_tensors, largest_difference
from ranksearch.formats.torch_export import write_torch_export

# Maximum difference of outputs that is attributed to rounding, relative to the largest.
TOLERANCE = 1e-4
# Differs from the traced batch size, so that a hard-coded batch size is detected.
CHECKED_BATCH = 3
# Files that exporting may write, relative to its folder.
EXPORTED = ("network.onnx", "network.pt2", "plain/network.py", "plain/weights.pt", "state_dict.pt")

log = logging.getLogger(__name__)
# Returns what a file computes for arguments, in any structure.
Runner = Callable[[Arguments], Any]


@torch.no_grad()
def export(
    network: nn.Module, example: Any, path: str | Path, format: str = "onnx", *, call: Call | None = None
) -> Path:
    """Export a network for any batch size, load the files back and compare outputs.

    Args:
        network: the network, on the CPU; left unchanged.
        example: batch of examples, see `batches.read_batch`; or the shape of one, `[C, H, W]`.
        path: folder to write to, created if needed; or the file to write, with a suffix.
        format: ``"onnx"``, ``"torch_export"``, ``"plain"`` (Python code of torch's own modules) or ``"state_dict"``.
        call: runs the network on the example; see `find_plan`.

    Returns:
        Path of the written file, or of the entry point if there are several.

    Raises:
        UserError: the format is unknown, needs a missing package, or cannot represent this network.
    """
    if format not in FORMATS:
        raise UserError(f"format={format} is unknown: use {', '.join(FORMATS)}")
    path, network = Path(path), unwrap(network)
    file = path if path.suffix and not path.is_dir() else None
    if file is not None and format == "plain":
        raise UserError(f"format=plain writes two files, and '{file}' is one: name a folder")
    folder = path if file is None else path.parent
    inputs = _examples(network, example, call)
    owner, arguments = (network, inputs.value) if call is None else (_Called(network, call), (inputs.value,))
    traced, checked = (Arguments.from_value(_repeated(Inputs(arguments), count).value) for count in (2, CHECKED_BATCH))
    folder.mkdir(parents=True, exist_ok=True)
    # Files are moved to the folder, and replace others there, only after the comparison.
    with TemporaryDirectory(dir=folder, prefix=".") as scratch, untouched(network):
        written, read = FORMATS[format](owner.eval(), traced, Path(scratch))
        expected, actual = all_tensors(checked.run(owner)), all_tensors(read(checked))
        difference = largest_difference(expected, actual)
        if not difference <= TOLERANCE:
            outputs = f"outputs that differ by {difference:.1e} of the largest, above {TOLERANCE:g}"
            raise UserError(f"format={format} gives {outputs}: use another format")
        for each in sorted(Path(scratch).rglob("*")):
            target = folder / each.relative_to(scratch) if file is None else file
            if each.is_dir():
                target.mkdir(exist_ok=True)
            else:
                each.replace(target)
        result = folder / written.relative_to(scratch) if file is None else file
    log.info("export: written to %s; outputs differ by %.1e of the largest", result, difference)
    return result


class _Called(nn.Module):
    """A network that is run by a function.

    Args:
        network: the network.
        call: runs it on a value.
    """

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, batch: Any) -> Any:
        """Run the network on a batch."""
        return self.call(self.network, batch)


def _examples(network: nn.Module, example: Any, call: Call | None) -> Inputs:
    if isinstance(example, tuple | list | torch.Size) and example and all(isinstance(size, int) for size in example):
        return read_batch(network, torch.randn(CHECKED_BATCH, *example), call)
    return read_batch(network, example, call)


def _repeated(inputs: Inputs, count: int) -> Inputs:
    """Return a number of examples, the given ones again and again."""
    order = torch.arange(count) % len(inputs)
    size = len(inputs)
    return inputs.map(lambda tensor: tensor[order] if tensor.ndim and len(tensor) == size else tensor)


def _state_dict(network: nn.Module, example: Arguments, folder: Path) -> tuple[Path, Runner]:
    """Write parameters and buffers, to be loaded into the same factorized network."""
    path = folder / "state_dict.pt"
    torch.save(network.state_dict(), path)
    state = torch.load(path, weights_only=True)

    def run(arguments: Arguments) -> Any:
        return torch.func.functional_call(network, state, arguments.args, arguments.kwargs, strict=True)

    return path, run


def _plain(network: nn.Module, example: Arguments, folder: Path) -> tuple[Path, Runner]:
    """Write a Python file of torch's own modules, with its weights beside it."""
    source, state = write_plain(network)
    path = folder / "plain" / "network.py"
    path.parent.mkdir()
    path.write_text(source, encoding="utf-8")
    torch.save(state, path.with_name("weights.pt"))
    scope: dict[str, Any] = {"__name__": "ranksearch_exported", "__file__": str(path)}
    exec(compile(source, path, "exec"), scope)
    loaded = scope["load"]()
    return path, lambda arguments: arguments.run(loaded)


FORMATS: dict[str, Callable[[nn.Module, Arguments, Path], tuple[Path, Runner]]] = {
    "plain": _plain,
    "torch_export": write_torch_export,
    "onnx": write_onnx,
    "state_dict": _state_dict,
}

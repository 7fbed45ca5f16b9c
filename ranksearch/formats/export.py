"""Export of a finished network; files are loaded back and compared before they are put in place."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import UserError
from ranksearch.formats.onnx import write_onnx
from ranksearch.formats.python_source import write_plain
from ranksearch.formats.torch_export import write_torch_export

# Maximum difference of logits that is attributed to rounding, relative to the largest logit.
TOLERANCE = 1e-4
# Differs from the traced batch size, so that a hard-coded batch size is detected.
CHECKED_BATCH = 3
# Files that exporting may write, relative to its folder.
EXPORTED = ("network.onnx", "network.pt2", "plain/network.py", "plain/weights.pt", "state_dict.pt")

log = logging.getLogger(__name__)
Runner = Callable[[Tensor], Tensor]


@torch.no_grad()
def export(network: nn.Module, input_shape: Sequence[int], folder: Path, format: str) -> Path:
    """Export a network, load the files back and compare outputs.

    Args:
        network: the network, on the CPU in eval mode; maps `[B, *input_shape]` to logits.
        input_shape: shape of one image, `[C, H, W]`.
        folder: folder to write to; created if needed.
        format: name of the format, a key of `FORMATS`.

    Returns:
        Path of the written file, or of the entry point if there are several.

    Raises:
        UserError: the format needs a missing package, or cannot represent this network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = torch.randn(CHECKED_BATCH, *input_shape)
    # Files are moved to the folder, and replace others there, only after the comparison.
    with TemporaryDirectory(dir=folder, prefix=".") as scratch:
        path, read = FORMATS[format](network, torch.randn(2, *input_shape), Path(scratch))
        expected, actual = network(images), read(images)
        difference = float((expected - actual).abs().max() / expected.abs().max().clamp_min(1e-12))
        if not difference <= TOLERANCE:
            outputs = f"outputs that differ by {difference:.1e} of the largest, above {TOLERANCE:g}"
            raise UserError(f"format={format} gives {outputs}: use another format")
        for file in sorted(Path(scratch).rglob("*")):
            target = folder / file.relative_to(scratch)
            if file.is_dir():
                target.mkdir(exist_ok=True)
            else:
                file.replace(target)
        path = folder / path.relative_to(scratch)
    log.info("export: written to %s; outputs differ by %.1e of the largest", path, difference)
    return path


def _state_dict(network: nn.Module, example: Tensor, folder: Path) -> tuple[Path, Runner]:
    """Write parameters and buffers, to be loaded into the same factorized network."""
    path = folder / "state_dict.pt"
    torch.save(network.state_dict(), path)
    state = torch.load(path, weights_only=True)

    def run(images: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(network, state, (images,), strict=True)
        return logits

    return path, run


def _plain(network: nn.Module, example: Tensor, folder: Path) -> tuple[Path, Runner]:
    """Write a Python file of torch's own modules, with its weights beside it."""
    source, state = write_plain(network)
    path = folder / "plain" / "network.py"
    path.parent.mkdir()
    path.write_text(source, encoding="utf-8")
    torch.save(state, path.with_name("weights.pt"))
    scope: dict[str, Any] = {"__name__": "ranksearch_exported", "__file__": str(path)}
    exec(compile(source, path, "exec"), scope)
    return path, scope["load"]()


FORMATS: dict[str, Callable[[nn.Module, Tensor, Path], tuple[Path, Any]]] = {
    "plain": _plain,
    "torch_export": write_torch_export,
    "onnx": write_onnx,
    "state_dict": _state_dict,
}

"""A finished network in the formats that others load, each loaded back and compared before it counts as written."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import UserError, first_line
from ranksearch.plain import write_plain

# Largest difference of logits that rounding in another order may make, as a share of the largest logit.
TOLERANCE = 1e-4
# Unlike the batch that is traced, so that a batch size that stuck to it would show.
CHECKED_BATCH = 3

# What exporting writes below its folder.
EXPORTED = ("network.onnx", "network.pt2", "plain/network.py", "plain/weights.pt", "state_dict.pt")

log = logging.getLogger(__name__)
Runner = Callable[[Tensor], Tensor]


@torch.no_grad()
def export(network: nn.Module, input_shape: Sequence[int], folder: Path, format: str) -> Path:
    """Write a network, load it back, and compare the two.

    Args:
        network: on the CPU, in eval mode; maps `[B, *input_shape]` to logits.
        input_shape: of one image, `[C, H, W]`.
        folder: to write to; made as needed.
        format: one of `FORMATS`.

    Returns:
        The file that was written, or the one of several to begin with.

    Raises:
        UserError: the format needs a package that is missing, or cannot hold this network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = torch.randn(CHECKED_BATCH, *input_shape)
    # Nothing stands in the folder, nor is lost from it, before it has been compared.
    with TemporaryDirectory(dir=folder, prefix=".") as scratch:
        path, read = FORMATS[format](network, torch.randn(2, *input_shape), Path(scratch))
        ours, theirs = network(images), read(images)
        difference = float((ours - theirs).abs().max() / ours.abs().max().clamp_min(1e-12))
        if not difference <= TOLERANCE:
            raise UserError(
                f"format={format} gives outputs that differ by {difference:.1e} of the largest, above {TOLERANCE:g}: "
                "use another format"
            )
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
    """The parameters and buffers, for whoever builds the same factorized network."""
    path = folder / "state_dict.pt"
    torch.save(network.state_dict(), path)
    state = torch.load(path, weights_only=True)

    def run(images: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(network, state, (images,), strict=True)
        return logits

    return path, run


def _plain(network: nn.Module, example: Tensor, folder: Path) -> tuple[Path, Runner]:
    """A Python file of torch's own modules, beside its weights."""
    source, state = write_plain(network)
    path = folder / "plain" / "network.py"
    path.parent.mkdir()
    path.write_text(source, encoding="utf-8")
    torch.save(state, path.with_name("weights.pt"))
    scope: dict[str, Any] = {"__name__": "ranksearch_exported", "__file__": str(path)}
    exec(compile(source, path, "exec"), scope)
    loaded: nn.Module = scope["load"]()
    return path, loaded


def _torch_export(network: nn.Module, example: Tensor, folder: Path) -> tuple[Path, Runner]:
    """An exported program of torch's, for any batch size."""
    path = folder / "network.pt2"
    torch.export.save(_program(network, example), path)
    loaded: nn.Module = torch.export.load(path).module()
    return path, loaded


def _program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # whatever the tracer finds in someone's forward
        reason = first_line(error)
        raise UserError(f"torch.export cannot follow the network ({reason}): use format=state_dict") from error


def _onnx(network: nn.Module, example: Tensor, folder: Path) -> tuple[Path, Runner]:
    """An ONNX model in one file, for any batch size."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # by which torch writes the format
    except ImportError as error:
        raise UserError(f"format=onnx needs {error.name}: pip install 'ranksearch[onnx]'") from None
    path = folder / "network.onnx"
    program = _program(network, example)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    with _quiet():
        torch.onnx.export(program, (), str(path), external_data=False, verbose=False, **names)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        [logits] = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return path, run


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporter says of its own steps from the log."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


FORMATS: dict[str, Callable[[nn.Module, Tensor, Path], tuple[Path, Any]]] = {
    "plain": _plain,
    "torch_export": _torch_export,
    "onnx": _onnx,
    "state_dict": _state_dict,
}

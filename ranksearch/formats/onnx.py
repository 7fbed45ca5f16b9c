"""Export of a network as an ONNX model."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import UserError
from ranksearch.formats.torch_export import trace_program


def write_onnx(network: nn.Module, example: Tensor, folder: Path) -> tuple[Path, Callable[[Tensor], Tensor]]:
    """Write an ONNX model in one file, for any batch size."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # required by torch's exporter
    except ImportError as error:
        raise UserError(f"format=onnx needs {error.name}: pip install 'ranksearch[onnx]'") from None
    path = folder / "network.onnx"
    program = trace_program(network, example)
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
    """Silence info messages and warnings of torch's exporter."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

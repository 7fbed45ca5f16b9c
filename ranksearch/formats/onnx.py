"""Export of a network as an ONNX model."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.errors import UserError
from ranksearch.formats.structure import Arguments, output_names
from ranksearch.formats.torch_export import trace_program


def write_onnx(network: nn.Module, example: Arguments, folder: Path) -> tuple[Path, Callable[[Arguments], Any]]:
    """Write an ONNX model in one file, for any batch size."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # required by torch's exporter
    except ImportError as error:
        raise UserError(f"format=onnx needs {error.name}: pip install 'ranksearch[onnx]'") from None
    path = folder / "network.onnx"
    program = trace_program(network, example)
    single = len(example.tensors) == 1 and not example.kwargs and example.tensors[0].ndim == 4
    inputs, outputs = ["images"] if single else example.names(network), output_names(example.run(network))
    names: dict[str, Any] = {"input_names": inputs, "output_names": outputs}
    with _quiet():
        torch.onnx.export(program, (), str(path), external_data=False, verbose=False, **names)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(arguments: Arguments) -> Any:
        # An input that the network does not depend on is none of the file's.
        given = dict(zip(inputs, arguments.tensors, strict=True))
        feeds = {value.name: given[value.name].numpy() for value in session.get_inputs()}
        return [torch.from_numpy(output) for output in session.run(None, feeds)]

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

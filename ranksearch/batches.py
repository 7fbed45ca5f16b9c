"""What callers give as batches, and what models answer with, as the tensors that the library works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ranksearch.errors import DataError, UserError, first_line, shorten

# Entries of a structured answer that are taken before all others.
PREDICTIONS = ("logits", "out", "output", "outputs")


def inputs_of(batches: Iterable[Any]) -> Iterator[Tensor]:
    """The inputs of batches, one after another.

    Args:
        batches: tensors `[B, ...]`, or pairs whose first entry is one, as a `DataLoader` of (image, label) gives
            them; a single tensor is one batch.

    Raises:
        DataError: a batch is something else.
    """
    if isinstance(batches, Tensor):
        batches = [batches]
    if not isinstance(batches, Iterable):
        raise DataError(f"batches of type {type(batches).__name__} cannot be gone through: give a list or a DataLoader")
    for index, batch in enumerate(batches):
        first = batch[0] if isinstance(batch, list | tuple) and batch else batch
        if not isinstance(first, Tensor) or first.ndim == 0:
            raise DataError(f"batch {index} is {_said(batch)}: give a tensor [B, ...], or a tuple that begins with one")
        yield first


def all_inputs(batches: Iterable[Any], fewest: int, purpose: str) -> list[Tensor]:
    """The inputs of all batches, as a list, checked.

    Args:
        batches: see `inputs_of`.
        fewest: examples that there must be in all.
        purpose: of them, for the error.

    Raises:
        DataError: they are too few, or of unequal shapes.
    """
    found = [batch for batch in inputs_of(batches) if len(batch)]
    count = sum(map(len, found))
    if count < fewest:
        raise DataError(f"{count} images are too few to {purpose}: give {fewest} or more, better hundreds")
    if not all(bool(torch.isfinite(batch).all()) for batch in found if batch.is_floating_point()):
        raise DataError("the images have numbers that are not finite: take them out")
    shapes = list(dict.fromkeys(tuple(batch.shape[1:]) for batch in found))
    if len(shapes) > 1:
        raise DataError(f"batches hold examples of shapes {list(shapes[0])} and {list(shapes[1])}: give them one size")
    return found


def prediction_of(raw: Any) -> Tensor:
    """The tensor that a model's answers are compared by: the first of floats, or the entry that is named as such.

    Args:
        raw: a tensor, or a tuple, list, mapping or dataclass of such.

    Raises:
        UserError: there is no floating-point tensor in it.
    """
    found = next(_predictions(raw), None)
    if found is None:
        raise UserError(f"the model answers with {_said(raw)}: return a tensor of floats, alone or in a tuple or dict")
    return found


def _predictions(raw: Any) -> Iterator[Tensor]:
    if isinstance(raw, Tensor):
        if raw.is_floating_point():
            yield raw
        return
    if dataclasses.is_dataclass(raw) and not isinstance(raw, Mapping | type):
        raw = {field.name: getattr(raw, field.name) for field in dataclasses.fields(raw)}
    if isinstance(raw, Mapping):
        named = [raw[name] for name in PREDICTIONS if name in raw]
        raw = [*named, *(value for name, value in raw.items() if name not in PREDICTIONS)]
    if isinstance(raw, list | tuple):
        for entry in raw:
            yield from _predictions(entry)


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(str, list(value)[:4])) or 'nothing'}"
    if isinstance(value, list | tuple):
        inside = ", ".join(_said(entry) if isinstance(entry, Tensor) else type(entry).__name__ for entry in value[:3])
        return f"a {type(value).__name__} of {inside or 'nothing'}"
    return "None" if value is None else f"a {type(value).__name__}"


@torch.no_grad()
def predict(network: Any, inputs: Iterable[Tensor]) -> Tensor:
    """A network's predictions, `[N, ...]`, float64 on the CPU.

    Args:
        network: in eval mode.
        inputs: batches.

    Raises:
        UserError: the network answers with no tensor of floats.
    """
    found = []
    for batch in inputs:
        predicted = prediction_of(network(batch))
        if predicted.ndim == 0 or len(predicted) != len(batch):
            said = f"the model answers {len(batch)} images with {_said(predicted)}"
            raise UserError(f"{said}: return a prediction for each image, [B, ...]")
        found.append(predicted.detach().cpu().double())
    return torch.cat(found)


@torch.no_grad()
def require_running(network: Any, example: Tensor) -> None:
    """Raise if a network does not run on an example, or gives no predictions for it.

    Args:
        network: in eval mode.
        example: a batch of inputs.

    Raises:
        UserError: it does not; the reason is named.
    """
    if example.is_meta or any(parameter.is_meta for parameter in network.parameters()):
        raise UserError("tensors on the meta device have no numbers: give a model and images that have")
    try:
        predict(network, [example])
    except UserError:
        raise
    except Exception as error:  # whatever someone's own forward raises
        what = f"{_said(example)} on {example.device}"
        raise UserError(
            f"the model cannot run on {what} ({shorten(first_line(error), 160)}): mend one of them"
        ) from error


def divergence(predicted: Tensor, dense: Tensor) -> float:
    """How far predictions lie from the dense network's.

    Of logits `[N, C]`, C above 1, the Kullback-Leibler divergence in nats, the mean over examples. Of anything else,
    maps or single numbers, the squared error as a share of the dense predictions' variance.

    Args:
        predicted: from `predict`.
        dense: the same of the dense network.

    Returns:
        The divergence; infinite where a network predicts no finite numbers.
    """
    if dense.ndim == 2 and dense.shape[1] > 1:
        terms = torch.nn.functional.kl_div(
            predicted.log_softmax(1), dense.log_softmax(1), reduction="batchmean", log_target=True
        )
        found = float(terms)
    else:
        missed = float((predicted - dense).square().sum())
        variance = float((dense - dense.mean(0)).square().sum())
        found = missed / variance if variance > 0 else missed
    return found if found == found and found != float("inf") else float("inf")

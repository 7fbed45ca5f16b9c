"""Extraction of tensors from batches of data and from model outputs."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ranksearch.errors import DataError, UserError, first_line, shorten

# Keys of a structured model output that take precedence over all others.
PREDICTIONS = ("logits", "out", "output", "outputs")


def iterate_inputs(batches: Iterable[Any]) -> Iterator[Tensor]:
    """Iterate over the inputs of batches.

    Args:
        batches: tensors `[B, ...]`, or tuples or lists that begin with one, as from a `DataLoader` of (image, label);
            a single tensor is one batch.

    Raises:
        DataError: the batches are not iterable, or a batch contains no such tensor.
    """
    if isinstance(batches, Tensor):
        batches = [batches]
    if not isinstance(batches, Iterable):
        raise DataError(f"batches of type {type(batches).__name__} are not iterable: give a list or a DataLoader")
    for index, batch in enumerate(batches):
        first = batch[0] if isinstance(batch, list | tuple) and batch else batch
        if not isinstance(first, Tensor) or first.ndim == 0:
            raise DataError(f"batch {index} is {_kind(batch)}: give a tensor [B, ...], or a tuple that begins with one")
        yield first


def collect_inputs(batches: Iterable[Any], fewest: int, purpose: str) -> list[Tensor]:
    """Return the inputs of all non-empty batches as a list, checked for number, shape and finite values.

    Args:
        batches: see `iterate_inputs`.
        fewest: minimum number of examples in total.
        purpose: what the examples are for, as a verb phrase in the error message.

    Raises:
        DataError: the examples are too few, not finite, or of different shapes.
    """
    inputs = [batch for batch in iterate_inputs(batches) if len(batch)]
    count = sum(map(len, inputs))
    if count < fewest:
        raise DataError(f"{count} images are too few to {purpose}: give {fewest} or more, preferably hundreds")
    if not all(bool(torch.isfinite(batch).all()) for batch in inputs if batch.is_floating_point()):
        raise DataError("the images have values that are not finite: remove them")
    shapes = list(dict.fromkeys(tuple(batch.shape[1:]) for batch in inputs))
    if len(shapes) > 1:
        raise DataError(f"batches have examples of shapes {list(shapes[0])} and {list(shapes[1])}: make them equal")
    return inputs


def first_examples(batches: Sequence[Tensor], most: int | None) -> list[Tensor]:
    """Return the first examples of batches, at most a number; all for None."""
    if most is None:
        return list(batches)
    starts = accumulate(map(len, batches), initial=0)
    return [batch[: most - start] for batch, start in zip(batches, starts, strict=False) if start < most]


def extract_predictions(raw: Any) -> Tensor:
    """Return the first floating-point tensor of a model's output; keys in `PREDICTIONS` take precedence.

    Args:
        raw: model output: a tensor, or a tuple, list, mapping or dataclass, which may be nested.

    Raises:
        UserError: the output contains no floating-point tensor.
    """
    predictions = next(_predictions(raw), None)
    if predictions is None:
        raise UserError(f"the model returns {_kind(raw)}: return a tensor of floats, alone or in a tuple or dict")
    return predictions


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


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(str, list(value)[:4])) or 'nothing'}"
    if isinstance(value, list | tuple):
        inside = ", ".join(_kind(entry) if isinstance(entry, Tensor) else type(entry).__name__ for entry in value[:3])
        return f"a {type(value).__name__} of {inside or 'nothing'}"
    return "None" if value is None else f"a {type(value).__name__}"


@torch.no_grad()
def predict(network: Any, inputs: Iterable[Tensor]) -> Tensor:
    """Return a network's predictions, `[N, ...]`, in float64 on the CPU.

    Args:
        network: the network, in eval mode.
        inputs: batches of inputs, `[B, ...]`.

    Raises:
        UserError: the output contains no floating-point tensor, or not one prediction per input.
    """
    predictions = []
    for batch in inputs:
        predicted = extract_predictions(network(batch))
        if predicted.ndim == 0 or len(predicted) != len(batch):
            message = f"the model returns {_kind(predicted)} for {len(batch)} images"
            raise UserError(f"{message}: return a prediction for each image, [B, ...]")
        predictions.append(predicted.detach().cpu().double())
    return torch.cat(predictions)


@torch.no_grad()
def require_running(network: Any, example: Tensor) -> None:
    """Raise unless a network runs on an example and returns predictions.

    Args:
        network: the network, in eval mode.
        example: a batch of inputs.

    Raises:
        UserError: the network fails; the message includes the reason.
    """
    if example.is_meta or any(parameter.is_meta for parameter in network.parameters()):
        raise UserError("tensors on the meta device have no data: give a model and images that have some")
    try:
        predict(network, [example])
    except UserError:
        raise
    except Exception as error:  # a user-defined forward may raise anything
        source, reason = f"{_kind(example)} on {example.device}", shorten(first_line(error), 160)
        raise UserError(f"the model cannot run on {source} ({reason}): fix the model or the images") from error


def channels_last(network: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return batches of images in the memory format in which convolutions are fastest, if a network runs on it.

    Args:
        network: the network, in eval mode; some reshape their maps in a way that only contiguous ones allow.
        inputs: batches of inputs, `[B, ...]`; at least one.
    """
    if any(batch.ndim != 4 for batch in inputs):
        return list(inputs)
    faster = [batch.contiguous(memory_format=torch.channels_last) for batch in inputs]
    try:
        predict(network, [faster[0][:1]])
    except Exception:  # a user-defined forward may raise anything
        return list(inputs)
    return faster


def divergence(predicted: Tensor, dense: Tensor) -> float:
    """Return the divergence of predictions from those of the dense network.

    For logits `[N, C]` with C > 1, this is the mean Kullback-Leibler divergence over examples, in nats. For maps and
    single values, it is the squared error as a share of the variance of the dense predictions.

    Args:
        predicted: predictions of the network, from `predict`.
        dense: predictions of the dense network.

    Returns:
        The divergence; infinity if it is not finite.
    """
    if dense.ndim == 2 and dense.shape[1] > 1:
        log_probabilities = predicted.log_softmax(1), dense.log_softmax(1)
        value = float(F.kl_div(*log_probabilities, reduction="batchmean", log_target=True))
    else:
        missed = float((predicted - dense).square().sum())
        variance = float((dense - dense.mean(0)).square().sum())
        value = missed / variance if variance > 0 else missed
    return value if value == value and value != float("inf") else float("inf")

"""What a model returns: its predictions, and how far they are from the dense network's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ranksearch.batches import Inputs, kind_of, read_batches
from ranksearch.errors import UserError, first_line, shorten

# Keys of a structured model output that take precedence over all others.
PREDICTIONS = ("logits", "out", "output", "outputs")


def extract_predictions(raw: Any) -> Tensor:
    """Return the predictions of a model's output: its first floating-point tensor, or several heads as one tensor.

    Keys in `PREDICTIONS` take precedence. Several tensors in a list, or in a mapping without these keys, are heads:
    they are returned as one row of numbers for each example, `[B, 1, numbers]`.

    Args:
        raw: model output: a tensor, or a tuple, list, mapping or dataclass, which may be nested.

    Raises:
        UserError: the output contains no floating-point tensor.
    """
    heads = _heads(raw)
    if not heads:
        raise UserError(f"the model returns {kind_of(raw)}: return a tensor of floats, alone or in a tuple or dict")
    if len(heads) == 1 or any(head.ndim == 0 or len(head) != len(heads[0]) for head in heads):
        return heads[0]
    return torch.cat([head.flatten(1) for head in map(_with_columns, heads)], 1)[:, None]


def _with_columns(head: Tensor) -> Tensor:
    return head[:, None] if head.ndim == 1 else head


def _heads(raw: Any) -> list[Tensor]:
    """Return the tensors that are predictions together."""
    if isinstance(raw, Tensor):
        return [raw] if raw.is_floating_point() else []
    if dataclasses.is_dataclass(raw) and not isinstance(raw, Mapping | type):
        raw = {field.name: getattr(raw, field.name) for field in dataclasses.fields(raw)}
    if isinstance(raw, Mapping):
        named = (_heads(raw[name]) for name in PREDICTIONS if name in raw)
        found = next((heads for heads in named if heads), None)
        return found if found is not None else [head for value in raw.values() for head in _heads(value)]
    if isinstance(raw, list):
        return [head for value in raw for head in _heads(value)]
    if isinstance(raw, tuple):
        return next((heads for heads in map(_heads, raw) if heads), [])
    return []


def predict_batch(network: Any, batch: Inputs) -> Tensor:
    """Return a network's predictions for one batch, `[B, ...]`.

    Raises:
        UserError: what the network returns has no predictions, or not one per example.
    """
    predicted = (batch.predictions or extract_predictions)(batch.run(network))
    if not isinstance(predicted, Tensor) or predicted.ndim == 0 or len(predicted) != len(batch):
        message = f"the model returns {kind_of(predicted)} for {len(batch)} examples"
        raise UserError(f"{message}: return a prediction for each, [B, ...], or give predictions=")
    return predicted


@torch.no_grad()
def predict(network: Any, batches: Iterable[Any]) -> Tensor:
    """Return a network's predictions, `[N, ...]`, in float64 on the CPU.

    Args:
        network: the network, in eval mode.
        batches: batches of examples; see `read_batch`.

    Raises:
        UserError: the network returns no predictions, not one per example, or of another shape for another batch.
    """
    predictions = [predict_batch(network, batch).detach().cpu().double() for batch in read_batches(network, batches)]
    shapes = list(dict.fromkeys(tuple(part.shape[1:]) for part in predictions))
    if len(shapes) > 1:
        one, other = map(list, shapes[:2])
        raise UserError(f"the model returns predictions of shapes {one} and {other}: give predictions= of one shape")
    return torch.cat(predictions)


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


@torch.no_grad()
def require_running(network: Any, example: Inputs) -> bool:
    """Raise unless a network runs on an example; return whether what it returns can be compared.

    Args:
        network: the network, in eval mode.
        example: a batch of inputs.

    Returns:
        False if the network returns a list of one dict per example, as detectors do, and nothing says how to read it.

    Raises:
        UserError: the network fails, the message includes the reason; or it returns no predictions.
    """
    if any(tensor.is_meta for tensor in (*example.tensors, *network.parameters())):
        raise UserError("tensors on the meta device have no data: give a model and examples that have some")
    value, raw = example.value, None
    given = kind_of(value[0] if isinstance(value, tuple) and len(value) == 1 else value)

    def keeping(model: Any, value: Any) -> Any:
        nonlocal raw
        raw = example.call(model, value)
        return raw

    try:
        predict_batch(network, replace(example, call=keeping))
    except UserError:
        if example.predictions is None and _one_dict_each(raw, len(example)):
            return False
        raise
    except Exception as error:  # a user-defined forward or function may raise anything
        reason = shorten(first_line(error), 160)
        source = f"{given} on {example.tensors[0].device}"
        raise UserError(
            f"the model cannot run on {source} ({reason}): fix either, or give call=, which runs it"
        ) from error
    return not _one_dict_each(raw, len(example)) or example.predictions is not None


def _one_dict_each(raw: Any, count: int) -> bool:
    one_each = isinstance(raw, list | tuple) and len(raw) == count
    return one_each and all(isinstance(entry, Mapping) for entry in raw)

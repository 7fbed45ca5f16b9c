"""Batches of examples in any structure, and how a model runs on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ranksearch.errors import DataError

# Runs a model on a batch as its loader yields it.
Call = Callable[[Any, Any], Any]
# Returns the tensor that is compared, `[B, ...]`, from what a model returns.
Predictions = Callable[[Any], Tensor]
# Entries of a batch that are to be predicted; a model that takes them computes its loss as well.
LABELS = ("label", "labels", "target", "targets")
# A list of maps of at most so many channels is one image per example; other lists hold all examples in each entry.
MOST_CHANNELS = 4


def call_model(model: Any, value: Any) -> Any:
    """Run a model on its arguments: by position for a tuple, by keyword for a mapping, else one argument."""
    if isinstance(value, tuple):
        return model(*value)
    return model(**value) if isinstance(value, Mapping) else model(value)


@dataclass(frozen=True)
class Inputs:
    """A batch of examples, how a model runs on it, and how what it returns is read.

    Attributes:
        value: what ``call`` takes. A tensor has the examples along its first axis, a list has one entry per example,
            and a tuple or a mapping holds several of these; everything else is passed as it is.
        call: runs a model on ``value``.
        predictions: returns the predictions, `[B, ...]`, from what the model returns; None for `extract_predictions`.
    """

    value: Any
    call: Call = call_model
    predictions: Predictions | None = None

    def __len__(self) -> int:
        return _count(self.value) or 0

    def __getitem__(self, part: slice) -> Inputs:
        """Return some of the examples."""
        count = len(self)

        def take(value: Any) -> Any:
            return value[part] if isinstance(value, Tensor | list) and _count(value) == count else value

        return replace(self, value=_mapped(self.value, take))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors."""
        return list(_tensors(self.value))

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the batch with a function applied to every tensor."""

        def each(value: Any) -> Any:
            if isinstance(value, list):
                return [_mapped(entry, each) for entry in value]
            return function(value) if isinstance(value, Tensor) else value

        return replace(self, value=_mapped(self.value, each))

    def split(self, size: int) -> list[Inputs]:
        """Return batches of at most a number of examples."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def run(self, model: Any) -> Any:
        """Return what a model returns for the batch."""
        return self.call(model, self.value)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to the entries of nested tuples and mappings, or to a value that is neither."""
    if isinstance(value, tuple):
        return tuple(_mapped(entry, function) for entry in value)
    if isinstance(value, Mapping):
        return {name: _mapped(entry, function) for name, entry in value.items()}
    return function(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(entry)


def _count(value: Any) -> int | None:
    """Return the number of examples; None for a value that holds none."""
    if isinstance(value, Tensor):
        return len(value) if value.ndim else None
    if isinstance(value, list):
        return len(value)
    if isinstance(value, tuple | Mapping):
        counts = map(_count, value.values() if isinstance(value, Mapping) else value)
        return next((count for count in counts if count is not None), None)
    return None


def _holds_examples(entries: Sequence[Any]) -> bool:
    """Return whether a list or tuple of a loader has one entry per example, rather than all examples in each."""

    def is_example(entry: Any) -> bool:
        if isinstance(entry, Tensor):
            return entry.ndim == 0 or (entry.ndim == 3 and entry.is_floating_point() and len(entry) <= MOST_CHANNELS)
        return not isinstance(entry, list | tuple)

    return bool(entries) and all(map(is_example, entries))


def _structured(batch: Any) -> Any:
    """Return a loader's batch with tuples for entries of all examples, and lists for one entry per example."""
    if isinstance(batch, Mapping):
        return {name: _structured(entry) for name, entry in batch.items()}
    if isinstance(batch, list | tuple):
        return list(batch) if _holds_examples(batch) else tuple(_structured(entry) for entry in batch)
    return batch


class _Forward:
    """Arguments that a model's forward takes.

    Args:
        model: the model; one whose signature cannot be read takes a single argument.
    """

    def __init__(self, model: Any) -> None:
        try:
            parameters = list(inspect.signature(getattr(model, "forward", model)).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        plain = [part for part in parameters if part.kind in (part.POSITIONAL_ONLY, part.POSITIONAL_OR_KEYWORD)]
        self.required = sum(part.default is part.empty for part in plain)
        self.optional = {part.name for part in parameters if part.default is not part.empty}
        self.names = {part.name for part in parameters if part.kind in (part.POSITIONAL_OR_KEYWORD, part.KEYWORD_ONLY)}
        self.any_name = any(part.kind is part.VAR_KEYWORD for part in parameters)

    def arguments(self, batch: Any) -> Any:
        """Return the arguments for a batch; see `read_batch`."""
        if isinstance(batch, Mapping):
            return self._keywords(batch)
        if not isinstance(batch, tuple) or not batch:
            return batch
        if self.required > 1:
            return batch[: self.required] if len(batch) >= self.required else batch
        # A mapping beside labels is taken apart as one alone.
        return self.arguments(batch[0])

    def _keywords(self, batch: Mapping[str, Any]) -> Any:
        optional_labels = {name for name in LABELS if self.any_name or name in self.optional}
        taken = {
            name: value
            for name, value in batch.items()
            if (self.any_name or name in self.names) and name not in optional_labels
        }
        # A forward of one argument that no entry is named like may take the mapping itself.
        return taken or (batch,)


def read_batch(
    model: Any, batch: Any, call: Call | None = None, predictions: Predictions | None = None, *, index: int = 0
) -> Inputs:
    """Return a batch of a loader as inputs of a model, on the model's device.

    Without ``call``, a model is run on a tensor; on the first entry of a tuple, or as many as its forward requires; on
    the entries of a mapping that its forward takes, but labels; on a list of images.

    Args:
        model: the model that the batch is for.
        batch: tensor `[B, ...]`, images `[C, H, W]` of any size in a list, or a tuple, list or mapping of such; inputs
            are returned as they are.
        call: runs the model on the whole batch.
        predictions: returns the predictions, `[B, ...]`, from what the model returns.
        index: number of the batch, for error messages.

    Raises:
        DataError: the batch has no such tensor.
    """
    if isinstance(batch, Inputs):
        return batch
    value = _structured(batch)
    value = value if call else _Forward(model).arguments(value)
    found = Inputs(value, call or call_model, predictions)
    if not found.tensors or _count(value) is None:
        raise DataError(
            f"batch {index} is {kind_of(batch)}: give a tensor [B, ...], a tuple or dict of such, or a list of images"
        )
    device = next((parameter.device for parameter in getattr(model, "parameters", list)()), None)
    if device is None or device.type == "meta":
        return found
    return found.map(lambda tensor: tensor if tensor.is_meta else tensor.to(device))


def read_batches(
    model: Any, batches: Iterable[Any], call: Call | None = None, predictions: Predictions | None = None
) -> Iterator[Inputs]:
    """Iterate over batches as inputs of a model; a tensor or a mapping is one batch. See `read_batch`.

    Raises:
        DataError: the batches are not iterable, or one of them is not a batch.
    """
    if isinstance(batches, Tensor | Mapping | Inputs):
        batches = [batches]
    if not isinstance(batches, Iterable):
        raise DataError(f"batches of type {type(batches).__name__} are not iterable: give a list or a DataLoader")
    for index, batch in enumerate(batches):
        yield read_batch(model, batch, call, predictions, index=index)


def collect_inputs(
    model: Any,
    batches: Iterable[Any],
    fewest: int,
    purpose: str,
    most: int | None = None,
    *,
    call: Call | None = None,
    predictions: Predictions | None = None,
) -> list[Inputs]:
    """Return all non-empty batches as a list, checked for number, shape and finite values.

    Args:
        model: the model that the batches are for.
        batches: see `read_batch`; read once, and only as far as examples are needed.
        fewest: minimum number of examples in total.
        purpose: what the examples are for, as a verb phrase in the error message.
        most: number of examples to read; None for all.
        call: runs the model on a batch.
        predictions: returns the predictions from what the model returns.

    Raises:
        DataError: the examples are too few, not finite, or of different shapes.
    """
    inputs, count = list[Inputs](), 0
    for batch in read_batches(model, batches, call, predictions):
        part = batch if most is None else batch[: most - count]
        if len(part):
            inputs.append(part)
            count += len(part)
        if most is not None and count >= most:
            break
    if count < fewest:
        raise DataError(f"{count} examples are too few to {purpose}: give {fewest} or more, preferably hundreds")
    tensors = [tensor for batch in inputs for tensor in batch.tensors if tensor.is_floating_point()]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise DataError("the examples have values that are not finite: remove them")
    shapes = list(dict.fromkeys(_shapes(batch.value) for batch in inputs))
    if len(shapes) > 1:
        one, other = (list(shape[0]) if len(shape) == 1 else [list(each) for each in shape] for shape in shapes[:2])
        raise DataError(f"batches have examples of shapes {one} and {other}: resize or pad them to one in the loader")
    return inputs


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of one example's tensors; a list of images may have any."""
    if isinstance(value, Tensor):
        return (tuple(value.shape[1:]),)
    if isinstance(value, tuple | Mapping):
        return tuple(
            shape for entry in (value.values() if isinstance(value, Mapping) else value) for shape in _shapes(entry)
        )
    return ()


def join(batches: Sequence[Inputs]) -> Inputs:
    """Return all examples of one batch or more as one; what is not per example is that of the first batch."""
    counts = [len(batch) for batch in batches]

    def joined(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, tuple):
            return tuple(joined(entries) for entries in zip(*values, strict=True))
        if isinstance(first, Mapping):
            return {name: joined([value[name] for value in values]) for name in first}
        if [_count(value) for value in values] != counts:
            return first
        return [entry for value in values for entry in value] if isinstance(first, list) else torch.cat(list(values))

    return replace(batches[0], value=joined([batch.value for batch in batches]))


def first_examples(batches: Sequence[Inputs], most: int | None) -> list[Inputs]:
    """Return the first examples of batches, at most a number; all for None."""
    if most is None:
        return list(batches)
    kept = list[Inputs]()
    for batch in batches:
        if most <= 0:
            break
        kept.append(batch[:most])
        most -= len(batch)
    return kept


def channels_last(network: Any, batches: Sequence[Inputs]) -> list[Inputs]:
    """Return batches of images in the memory format in which convolutions are fastest, if a network runs on it.

    Args:
        network: the network, in eval mode; some reshape their maps in a way that only contiguous ones allow.
        batches: batches of inputs; at least one.
    """
    if not any(tensor.ndim == 4 for tensor in batches[0].tensors):
        return list(batches)

    def faster(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    changed = [batch.map(faster) for batch in batches]
    try:
        with torch.no_grad():
            changed[0][:1].run(network)
    except Exception:  # a user-defined forward may raise anything
        return list(batches)
    return changed


def kind_of(value: Any) -> str:
    """Return a short description of a value for error messages."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(str, list(value)[:4])) or 'nothing'}"
    if isinstance(value, list | tuple):
        inside = ", ".join(kind_of(entry) if isinstance(entry, Tensor) else type(entry).__name__ for entry in value[:3])
        return f"a {type(value).__name__} of {inside or 'nothing'}"
    return "None" if value is None else f"a {type(value).__name__}"

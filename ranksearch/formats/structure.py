"""Arguments and outputs of a network in any structure."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Differences up to this are rounding, however small the outputs: those of a sigmoid may all be.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Arguments:
    """Arguments of a network.

    Attributes:
        args: by position.
        kwargs: by keyword.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @staticmethod
    def from_value(value: Any) -> Arguments:
        """Return the arguments that `batches.call_model` passes for a value."""
        if isinstance(value, tuple):
            return Arguments(value, {})
        return Arguments((), dict(value)) if isinstance(value, Mapping) else Arguments((value,), {})

    def run(self, network: Callable[..., Any]) -> Any:
        """Return what a network returns."""
        return network(*self.args, **self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return all_tensors((self.args, self.kwargs))

    def mapped(self, function: Callable[[Tensor], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return both in their structure, with the result of a function in place of each tensor, else None."""

        def each(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, Mapping):
                return {name: each(entry) for name, entry in value.items()}
            return type(value)(map(each, value)) if isinstance(value, tuple | list) else None

        return each(self.args), each(self.kwargs)

    def names(self, network: nn.Module) -> list[str]:
        """Return a name for every tensor: that of its argument, and its place if there are several in one."""
        parameters = list(inspect.signature(network.forward).parameters)
        named = {**dict(zip(parameters, self.args, strict=False)), **self.kwargs}
        return [name for argument, value in named.items() for name in _names(argument, value)]


def _names(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield name
    for key, entry in _entries(value):
        yield from _names(f"{name}.{key}", entry)


def _entries(value: Any) -> list[tuple[str, Any]]:
    """Return the entries of a structure by name, in order."""
    if isinstance(value, Mapping):
        return [(str(key), entry) for key, entry in value.items()]
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or [str(index) for index in range(len(value))]
        return list(zip(names, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def all_tensors(value: Any) -> list[Tensor]:
    """Return the tensors of a structure, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for _, entry in _entries(value) for tensor in all_tensors(entry)]


def output_names(value: Any) -> list[str]:
    """Return a name for every tensor of an output: its key or place; ``"logits"`` for a single tensor."""
    if isinstance(value, Tensor):
        return ["logits"]
    return [name.removeprefix(".") for name in _names("", value)]


def largest_difference(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Return the largest difference of outputs as a share of the largest output; infinity for other shapes."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return float("inf")
    largest = 0.0
    for wanted, found in zip(expected, actual, strict=True):
        if wanted.numel():
            difference = float((wanted.double() - found.double()).abs().max())
            share = difference / max(float(wanted.double().abs().max()), 1e-12)
            largest = max(largest, 0.0 if difference <= ROUNDING else share)
    return largest

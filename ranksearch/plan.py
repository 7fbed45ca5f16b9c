"""What a layer is and what a plan says about it: plain values that the whole package speaks in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, Literal

from ranksearch.errors import PlanError

SCHEMES = ("full",)


def resolve_latent_size(size: float, in_size: int, out_size: int) -> int:
    """Turn a latent size as users write it into a rank.

    Args:
        size: an int of at least 1 is taken as it is; a float in (0, 1) is that fraction of
            ``min(in_size, out_size)``, rounded down, and at least 1.
        in_size: input channels or features.
        out_size: output channels or features.

    Returns:
        The rank, at least 1.

    Raises:
        PlanError: the size is neither.
    """
    if isinstance(size, bool) or not isinstance(size, int | float):
        raise PlanError(f"latent size {size!r} is not a number: give an int >= 1, or a fraction in (0, 1)")
    if isinstance(size, int) and size >= 1:
        return size
    if isinstance(size, float) and 0 < size < 1:
        return max(1, int(size * min(in_size, out_size)))
    raise PlanError(f"latent size {size} is out of range: give an int >= 1, or a fraction in (0, 1) of min(in, out)")


@dataclass(frozen=True)
class LayerSpec:
    """The shape of one layer that can be factorized.

    Attributes:
        name: dotted name in the model.
        kind: ``"conv2d"`` or ``"linear"``.
        in_size: input channels or features.
        out_size: output channels or features.
        positions: outputs of ``out_size`` numbers that the layer computes for one example, over all its calls.
        kernel_size: height and width; ``(1, 1)`` for linear layers.
        groups: of a convolution; every group is factorized by itself, so its latent size is a multiple of them.
    """

    name: str
    kind: Literal["conv2d", "linear"]
    in_size: int
    out_size: int
    positions: int
    kernel_size: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        for what in ("in_size", "out_size", "positions", "groups"):
            if getattr(self, what) < 1:
                raise PlanError(f"{what} {getattr(self, what)} of '{self.name}' must be at least 1")
        if self.in_size % self.groups or self.out_size % self.groups:
            raise PlanError(f"groups {self.groups} of '{self.name}' must divide {self.in_size} and {self.out_size}")

    @property
    def fan_in(self) -> int:
        """Numbers that one output is computed from."""
        return self.in_size // self.groups * prod(self.kernel_size)

    @property
    def break_even_rank(self) -> int:
        """The largest rank that still saves multiply-adds; 0 where none does."""
        out = self.out_size // self.groups
        return self.groups * ((self.fan_in * out - 1) // (self.fan_in + out))

    def rank(self, size: float) -> int:
        """The rank of a latent size as users write it; a fraction is rounded down to whole groups.

        Raises:
            PlanError: the size is out of range, or an int that is no multiple of the groups.
        """
        rank = resolve_latent_size(size, self.in_size, self.out_size)
        whole = self.whole_groups(rank)
        if isinstance(size, int) and whole != rank:
            raise PlanError(
                f"latent size {rank} for '{self.name}' is no multiple of its {self.groups} groups: use {whole}"
            )
        return whole

    def whole_groups(self, rank: int) -> int:
        """A rank rounded down to the same number for every group, at least 1."""
        return max(self.groups, rank // self.groups * self.groups)

    def require_saving(self, rank: int) -> int:
        """Give the rank back if it saves multiply-adds.

        Raises:
            PlanError: it is above the break-even rank, or no multiple of the groups.
        """
        self.rank(rank)
        if rank > self.break_even_rank:
            raise PlanError(
                f"latent size {rank} for '{self.name}' exceeds its break-even rank {self.break_even_rank}: "
                "lower it, or leave the layer dense"
            )
        return rank

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the dense layer for one example."""
        return self.fan_in * self.out_size * self.positions

    def macs_at(self, rank: int) -> int:
        """Multiply-accumulates of the factorized layer for one example."""
        return rank * (self.fan_in + self.out_size // self.groups) * self.positions


@dataclass(frozen=True)
class LayerChoice:
    """What a plan decides for one factorized layer."""

    latent_size: int
    scheme: str = "full"

    def __post_init__(self) -> None:
        if isinstance(self.latent_size, bool) or not isinstance(self.latent_size, int) or self.latent_size < 1:
            raise PlanError(f"latent size {self.latent_size!r} of a plan must be an int >= 1")
        if self.scheme not in SCHEMES:
            raise PlanError(f"scheme {self.scheme!r} is unknown: use one of {', '.join(SCHEMES)}")


@dataclass(frozen=True)
class RankPlan:
    """Layer name -> scheme and latent size; a layer that is not named stays dense."""

    layers: Mapping[str, LayerChoice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    def __hash__(self) -> int:
        return hash(frozenset(self.layers.items()))

    def __iter__(self) -> Iterator[tuple[str, LayerChoice]]:
        return iter(self.layers.items())

    def __len__(self) -> int:
        return len(self.layers)

    def latent_size(self, name: str) -> int | None:
        """The latent size of a layer, or None where it stays dense."""
        choice = self.layers.get(name)
        return None if choice is None else choice.latent_size

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The plan as plain JSON values."""
        return {
            name: {"scheme": choice.scheme, "latent_size": choice.latent_size} for name, choice in self.layers.items()
        }

    @staticmethod
    def from_json(layers: Mapping[str, Any]) -> RankPlan:
        """Read what `to_json` wrote.

        Raises:
            PlanError: an entry is not a scheme and a latent size.
        """
        choices = {}
        for name, entry in layers.items():
            if not isinstance(entry, Mapping) or set(entry) != {"scheme", "latent_size"}:
                raise PlanError(f"plan entry {entry!r} of '{name}' needs exactly 'scheme' and 'latent_size'")
            choices[name] = LayerChoice(latent_size=entry["latent_size"], scheme=entry["scheme"])
        return RankPlan(choices)

"""What a layer is and what a plan says about it: plain values that the whole package speaks in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, Literal

from ranksearch.errors import PlanError, shorten

# Scheme -> whether the first factor takes the kernel's rows, and whether it takes its columns; the second factor
# has the rest. Whatever a convolution sets for each axis (stride, padding, dilation) goes with the axis.
FIRST_AXES: Mapping[str, tuple[bool, bool]] = MappingProxyType(
    {"full": (True, True), "vertical": (True, False), "horizontal": (False, True), "pointwise": (False, False)}
)
SCHEMES = tuple(FIRST_AXES)
# What stands in a scheme's place where a layer stays as it was.
DENSE = "dense"


def check_scheme(scheme: object, owner: str = "") -> str:
    """Give a scheme's name back.

    Args:
        scheme: the name.
        owner: of it, as an error says it: ``" of ..."``.

    Raises:
        PlanError: there is no such scheme.
    """
    if not isinstance(scheme, str) or scheme not in FIRST_AXES:
        raise PlanError(f"scheme {shorten(repr(scheme))}{owner} is unknown: use one of {', '.join(SCHEMES)}")
    return scheme


def split_kernel(kernel_size: tuple[int, int], scheme: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of both factors' kernels."""
    rows, columns = FIRST_AXES[scheme]
    height, width = kernel_size
    first = height if rows else 1, width if columns else 1
    return first, (height // first[0], width // first[1])


def resolve_latent_size(size: float, in_size: int, out_size: int, said: str | None = None) -> int:
    """Turn a latent size as users write it into a rank.

    Args:
        size: an int of at least 1 is taken as it is; a float in (0, 1) is that fraction of
            ``min(in_size, out_size)``, rounded down, and at least 1.
        in_size: input channels or features.
        out_size: output channels or features.
        said: what an error calls the size; None for ``latent size ...``.

    Returns:
        The rank, at least 1.

    Raises:
        PlanError: the size is neither.
    """
    if isinstance(size, bool) or not isinstance(size, int | float):
        raise PlanError(f"{said or f'latent size {size!r}'} is not a number: give an int >= 1, or a fraction in (0, 1)")
    if isinstance(size, int) and size >= 1:
        return size
    if isinstance(size, float) and 0 < size < 1:
        return max(1, int(size * min(in_size, out_size)))
    called = said or f"latent size {size}"
    raise PlanError(f"{called} is out of range: give an int >= 1, or a fraction in (0, 1) of min(in, out)")


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
        latent_positions: scheme -> positions of the map between the two factors, for one example, over all its
            calls; ``positions`` for a scheme that is not named.
    """

    name: str
    kind: Literal["conv2d", "linear"]
    in_size: int
    out_size: int
    positions: int
    kernel_size: tuple[int, int] = (1, 1)
    groups: int = 1
    latent_positions: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for what in ("in_size", "out_size", "positions", "groups"):
            if getattr(self, what) < 1:
                raise PlanError(f"{what} {getattr(self, what)} of '{self.name}' is below 1: give 1 or more")
        if self.in_size % self.groups or self.out_size % self.groups:
            sizes = f"{self.in_size} inputs and {self.out_size} outputs"
            raise PlanError(f"groups {self.groups} of '{self.name}' do not divide its {sizes}: give a divisor of both")

    @property
    def fan_in(self) -> int:
        """Numbers that one output is computed from."""
        return self.in_size // self.groups * prod(self.kernel_size)

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that the layer can have and that save MACs at some rank."""
        return tuple(
            scheme for scheme in SCHEMES if self._reason_against(scheme) is None and self.break_even_rank(scheme) > 0
        )

    def _reason_against(self, scheme: str) -> str | None:
        """Why a layer of this shape cannot have a scheme that is known."""
        if scheme == "full":
            return None
        height, width = self.kernel_size
        if self.kind == "linear" or max(height, width) == 1:
            return "there is no kernel to split"
        if self.in_size == self.out_size == self.groups:
            return "its groups have one channel each"
        if scheme != "pointwise" and min(height, width) == 1:
            return f"a kernel of {height}x{width} is a strip itself"
        return None

    def require_scheme(self, scheme: str) -> str:
        """Give the scheme back if a layer of this shape can have it.

        Raises:
            PlanError: it cannot, or there is no such scheme.
        """
        reason = self._reason_against(check_scheme(scheme))
        if reason is not None:
            others = [other for other in SCHEMES if self._reason_against(other) is None]
            raise PlanError(f"scheme '{scheme}' does not fit '{self.name}' ({reason}): use {' or '.join(others)}")
        return scheme

    def _weights(self, scheme: str) -> tuple[int, int]:
        """Numbers that one latent channel has in the first and in the second factor."""
        first, second = split_kernel(self.kernel_size, scheme)
        return self.in_size // self.groups * prod(first), self.out_size // self.groups * prod(second)

    def _macs_of_rank_one(self, scheme: str) -> int:
        first, second = self._weights(scheme)
        return first * self.latent_positions.get(scheme, self.positions) + second * self.positions

    def break_even_rank(self, scheme: str = "full") -> int:
        """The largest rank that still saves both MACs and weights; 0 where none does."""
        weights = self.fan_in * (self.out_size // self.groups)
        by_weights = (weights - 1) // self.weights_at(1, scheme)
        by_macs = (weights * self.positions - 1) // self._macs_of_rank_one(scheme)
        return self.groups * min(by_weights, by_macs)

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

    def require_saving(self, rank: int, scheme: str = "full") -> int:
        """Give the rank back if it saves MACs.

        Raises:
            PlanError: it is above the scheme's break-even rank, or no multiple of the groups, or the layer cannot have
                the scheme.
        """
        self.require_scheme(scheme)
        self.rank(rank)
        if rank > (limit := self.break_even_rank(scheme)):
            of_scheme = "" if scheme == "full" else f" of scheme '{scheme}'"
            raise PlanError(
                f"latent size {rank} for '{self.name}' exceeds its break-even rank {limit}{of_scheme}: "
                "lower it, or leave the layer dense"
            )
        return rank

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the dense layer for one example."""
        return self.fan_in * self.out_size * self.positions

    def weights_at(self, rank: int, scheme: str = "full") -> int:
        """Numbers in the kernels of both factors."""
        return rank * sum(self._weights(scheme))

    def macs_at(self, rank: int, scheme: str = "full") -> int:
        """Multiply-accumulates of the factorized layer for one example."""
        return rank * self._macs_of_rank_one(scheme)


@dataclass(frozen=True)
class LayerChoice:
    """What a plan decides for one factorized layer.

    Attributes:
        latent_size: an int of at least 1.
        scheme: one of `SCHEMES`.
    """

    latent_size: int
    scheme: str = "full"

    def __post_init__(self) -> None:
        if isinstance(self.latent_size, bool) or not isinstance(self.latent_size, int) or self.latent_size < 1:
            raise PlanError(
                f"latent size {shorten(repr(self.latent_size))} of a plan is out of range: give an int >= 1"
            )
        check_scheme(self.scheme)


@dataclass(frozen=True)
class RankPlan:
    """Layer name -> scheme and latent size; a layer that is not named stays dense."""

    layers: Mapping[str, LayerChoice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    def __hash__(self) -> int:
        return hash(frozenset(self.layers.items()))

    def __reduce__(self) -> tuple[type[RankPlan], tuple[dict[str, LayerChoice]]]:
        return RankPlan, (dict(self.layers),)  # a read-only mapping can be neither pickled nor copied

    def __iter__(self) -> Iterator[tuple[str, LayerChoice]]:
        return iter(self.layers.items())

    def __len__(self) -> int:
        return len(self.layers)

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
        if not isinstance(layers, Mapping):
            raise PlanError(f"layers of type {type(layers).__name__} are no plan: give a choice for each layer's name")
        choices = {}
        for name, entry in layers.items():
            if not isinstance(entry, Mapping) or set(entry) != {"scheme", "latent_size"}:
                said = f"plan entry {shorten(repr(entry))} of '{shorten(str(name))}'"
                raise PlanError(f"{said} is no choice: give 'scheme' and 'latent_size' alone")
            choices[name] = LayerChoice(latent_size=entry["latent_size"], scheme=entry["scheme"])
        return RankPlan(choices)

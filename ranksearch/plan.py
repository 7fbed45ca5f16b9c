"""Layer shapes, schemes and rank plans: the value types shared by the whole package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from ranksearch.errors import PlanError, shorten
from ranksearch.tables import as_html, as_rich, as_text, plan_rows, profile_rows

if TYPE_CHECKING:
    from rich.table import Table

# Scheme -> whether the first factor covers the kernel's rows, and whether it covers its columns; the second factor
# covers the rest. Per-axis settings of the convolution (stride, padding, dilation) follow the axis.
FIRST_AXES: Mapping[str, tuple[bool, bool]] = MappingProxyType(
    {"full": (True, True), "vertical": (True, False), "horizontal": (False, True), "pointwise": (False, False)}
)
SCHEMES = tuple(FIRST_AXES)
# Placeholder for the scheme of a layer that is not factorized.
DENSE = "dense"


def check_scheme(scheme: object, owner: str = "") -> str:
    """Return the scheme's name if it is valid.

    Args:
        scheme: name of the scheme.
        owner: owner of the scheme for the error message, as ``" of ..."``.

    Raises:
        PlanError: the scheme is unknown.
    """
    if not isinstance(scheme, str) or scheme not in FIRST_AXES:
        raise PlanError(f"scheme {shorten(repr(scheme))}{owner} is unknown: use one of {', '.join(SCHEMES)}")
    return scheme


def split_kernel(kernel_size: tuple[int, int], scheme: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the kernel sizes of both factors, height and width each."""
    rows, columns = FIRST_AXES[scheme]
    height, width = kernel_size
    first = height if rows else 1, width if columns else 1
    return first, (height // first[0], width // first[1])


def resolve_latent_size(size: float, in_size: int, out_size: int, label: str | None = None) -> int:
    """Convert a user-specified latent size into a rank of at least 1.

    Args:
        size: rank, an int of at least 1, or fraction of ``min(in_size, out_size)``, a float in (0, 1), rounded down.
        in_size: number of input channels or features.
        out_size: number of output channels or features.
        label: description of the size in error messages; None for ``latent size ...``.

    Raises:
        PlanError: the size is not a number or out of range.
    """
    label = label or f"latent size {size!r}"
    if isinstance(size, bool) or not isinstance(size, int | float):
        raise PlanError(f"{label} is not a number: give an int >= 1, or a fraction in (0, 1)")
    if isinstance(size, int) and size >= 1:
        return size
    if isinstance(size, float) and 0 < size < 1:
        return max(1, int(size * min(in_size, out_size)))
    raise PlanError(f"{label} is out of range: give an int >= 1, or a fraction in (0, 1) of min(in, out)")


@dataclass(frozen=True)
class LayerSpec:
    """The shape of one layer that can be factorized.

    Attributes:
        name: dotted name in the model.
        kind: ``"conv2d"`` or ``"linear"``.
        in_size: number of input channels or features.
        out_size: number of output channels or features.
        positions: number of output positions for one example, with ``out_size`` numbers each, summed over all calls.
        kernel_size: height and width; ``(1, 1)`` for linear layers.
        groups: number of convolution groups; each is factorized separately, so latent sizes are multiples of it.
        latent_positions: scheme -> positions of the map between the factors, counted likewise; default ``positions``.
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
        for key in ("in_size", "out_size", "positions", "groups"):
            if getattr(self, key) < 1:
                raise PlanError(f"{key} {getattr(self, key)} of '{self.name}' is below 1: give 1 or more")
        if self.in_size % self.groups or self.out_size % self.groups:
            sizes = f"{self.in_size} inputs and {self.out_size} outputs"
            raise PlanError(f"groups {self.groups} of '{self.name}' do not divide its {sizes}: give a divisor of both")

    @property
    def fan_in(self) -> int:
        """Number of inputs that contribute to one output."""
        return self.in_size // self.groups * prod(self.kernel_size)

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that fit the layer and save MACs and weights at some rank."""
        return tuple(name for name in SCHEMES if self._reason_against(name) is None and self.break_even_rank(name) > 0)

    def _reason_against(self, scheme: str) -> str | None:
        """Return the reason why a valid scheme does not fit this layer shape; None if it fits."""
        if scheme == "full":
            return None
        height, width = self.kernel_size
        if self.kind == "linear" or max(height, width) == 1:
            return "there is no kernel to split"
        if self.in_size == self.out_size == self.groups:
            return "its groups have one channel each"
        if scheme != "pointwise" and min(height, width) == 1:
            return f"a kernel of {height}x{width} is already a strip"
        return None

    def require_scheme(self, scheme: str) -> str:
        """Return the scheme if it fits this layer shape.

        Raises:
            PlanError: the scheme does not fit, or is unknown.
        """
        reason = self._reason_against(check_scheme(scheme))
        if reason is not None:
            others = [other for other in SCHEMES if self._reason_against(other) is None]
            raise PlanError(f"scheme '{scheme}' does not fit '{self.name}' ({reason}): use {' or '.join(others)}")
        return scheme

    def _weights(self, scheme: str) -> tuple[int, int]:
        """Return the number of weights per latent channel in the first and in the second factor."""
        first, second = split_kernel(self.kernel_size, scheme)
        return self.in_size // self.groups * prod(first), self.out_size // self.groups * prod(second)

    def break_even_rank(self, scheme: str = "full") -> int:
        """Return the largest rank that saves both MACs and weights; 0 if none does."""
        weights = self.fan_in * (self.out_size // self.groups)
        by_weights = (weights - 1) // self.weights_at(1, scheme)
        by_macs = (weights * self.positions - 1) // self.macs_at(1, scheme)
        return self.groups * min(by_weights, by_macs)

    def rank(self, size: float) -> int:
        """Convert a user-specified latent size into a rank; a fraction is rounded to whole groups, see `whole_groups`.

        Raises:
            PlanError: the size is out of range, or an int that is not a multiple of ``groups``.
        """
        rank = resolve_latent_size(size, self.in_size, self.out_size)
        whole = self.whole_groups(rank)
        if isinstance(size, int) and whole != rank:
            raise PlanError(
                f"latent size {rank} for '{self.name}' is not a multiple of its {self.groups} groups: use {whole}"
            )
        return whole

    def whole_groups(self, rank: int) -> int:
        """Round a rank down to a multiple of ``groups``, at least ``groups``."""
        return max(self.groups, rank // self.groups * self.groups)

    def require_saving(self, rank: int, scheme: str = "full") -> int:
        """Return the rank if it saves both MACs and weights.

        Raises:
            PlanError: the rank exceeds the scheme's break-even rank or is not a multiple of ``groups``, or the scheme
                does not fit the layer.
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
        """Number of multiply-accumulates of the dense layer for one example."""
        return self.fan_in * self.out_size * self.positions

    def weights_at(self, rank: int, scheme: str = "full") -> int:
        """Return the number of weights in the kernels of both factors, without biases."""
        return rank * sum(self._weights(scheme))

    def macs_at(self, rank: int, scheme: str = "full") -> int:
        """Return the multiply-accumulates of the factorized layer for one example."""
        first, second = self._weights(scheme)
        return rank * (first * self.latent_positions.get(scheme, self.positions) + second * self.positions)


@dataclass(frozen=True)
class SkippedLayer:
    """A layer that stays dense.

    Attributes:
        reason: why it does.
        share: its share of the network's MACs.
    """

    reason: str
    share: float = 0.0

    def __str__(self) -> str:
        return f"{self.reason} ({self.share:.1%} of the MACs)"


@dataclass(frozen=True)
class LayerProfile:
    """The layers of a model that can be factorized, and those that cannot.

    Attributes:
        layers: shapes of the layers that can be factorized, in the order of their first calls.
        skipped: name -> reason and share, for every other module that holds a matrix or kernel and runs, and for
            every other convolution and linear layer.
        stem: name of the first convolution that is called, even if it cannot be factorized; None if there is none.
        classifier: name of the linear layer whose first call is last; None if there is none.
        macs: multiply-accumulates of the network for one example.
    """

    layers: tuple[LayerSpec, ...]
    skipped: Mapping[str, SkippedLayer] = field(hash=False)
    stem: str | None
    classifier: str | None
    macs: int = 0

    def __str__(self) -> str:
        return as_text(profile_rows(self))

    def __rich__(self) -> Table:
        return as_rich(profile_rows(self))

    def _repr_html_(self) -> str:
        return as_html(profile_rows(self))


@dataclass(frozen=True)
class LayerChoice:
    """The scheme and latent size of one factorized layer.

    Attributes:
        latent_size: rank of the factorization, an int of at least 1.
        scheme: scheme of the factorization, one of `SCHEMES`.
    """

    latent_size: int
    scheme: str = "full"

    def __post_init__(self) -> None:
        size = self.latent_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise PlanError(f"latent size {shorten(repr(size))} of a plan is out of range: give an int >= 1")
        check_scheme(self.scheme)


@dataclass(frozen=True)
class LayerDetails:
    """What a choice costs.

    Attributes:
        dense_macs: multiply-accumulates of the dense layer for one example.
        macs: those of the factorized layer.
        error: expected error, as a share of the output's variance.
    """

    dense_macs: int
    macs: int
    error: float


@dataclass(frozen=True)
class PlanDetails:
    """What a plan costs.

    Attributes:
        layers: layer name -> what its choice costs.
        dense_macs: multiply-accumulates of the dense network for one example.
        macs: those of the plan's network.
    """

    layers: Mapping[str, LayerDetails]
    dense_macs: int
    macs: int


@dataclass(frozen=True)
class RankPlan:
    """A mapping of layer names to schemes and latent sizes; layers that are not listed stay dense.

    It prints as a table, and shows as one in a notebook.

    Attributes:
        layers: layer name -> scheme and latent size.
        details: what the plan costs, of a plan that was made for a network; no part of what makes plans equal.
    """

    layers: Mapping[str, LayerChoice] = field(default_factory=dict)
    details: PlanDetails | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    def __hash__(self) -> int:
        return hash(frozenset(self.layers.items()))

    def __reduce__(self) -> tuple[type[RankPlan], tuple[dict[str, LayerChoice], PlanDetails | None]]:
        return RankPlan, (dict(self.layers), self.details)  # a mapping proxy can be neither pickled nor deep-copied

    def __str__(self) -> str:
        return as_text(plan_rows(self))

    def __rich__(self) -> Table:
        return as_rich(plan_rows(self))

    def _repr_html_(self) -> str:
        return as_html(plan_rows(self))

    def __iter__(self) -> Iterator[tuple[str, LayerChoice]]:
        return iter(self.layers.items())

    def __len__(self) -> int:
        return len(self.layers)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return the plan as plain JSON values."""
        return {name: {"scheme": choice.scheme, "latent_size": choice.latent_size} for name, choice in self}

    @staticmethod
    def from_json(layers: Mapping[str, Any]) -> RankPlan:
        """Create a plan from the values that `to_json` returns.

        Raises:
            PlanError: the value is not a mapping, or an entry is not a valid scheme and latent size.
        """
        if not isinstance(layers, Mapping):
            raise PlanError(f"layers of type {type(layers).__name__} are not a plan: give a choice for each layer")
        choices = {}
        for name, entry in layers.items():
            if not isinstance(entry, Mapping) or set(entry) != {"scheme", "latent_size"}:
                label = f"plan entry {shorten(repr(entry))} of '{shorten(str(name))}'"
                raise PlanError(f"{label} is not a choice: give only 'scheme' and 'latent_size'")
            choices[name] = LayerChoice(latent_size=entry["latent_size"], scheme=entry["scheme"])
        return RankPlan(choices)

"""What a trial may choose for each layer, from the ordered rules of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase

from ranksearch.allocation import LayerOptions, allocate
from ranksearch.cost import NetworkCost
from ranksearch.errors import SettingError, UserError
from ranksearch.factorize import LayerProfile
from ranksearch.plan import LayerChoice, LayerSpec, RankPlan, resolve_latent_size


@dataclass(frozen=True)
class Rule:
    """The latent sizes that matching layers may have.

    Attributes:
        match: a glob on dotted layer names, such as ``layer4.*.conv2``.
        keep: ``"dense"`` takes the layers out of the search; everything else is then ignored.
        low: the smallest latent size, an int or a fraction of min(in, out).
        high: the largest; None stands for the break-even rank, which it never exceeds.
        step: from one to the next.
        dense: whether a trial may also leave the layer dense.
    """

    match: str = "*"
    keep: str | None = None
    low: int | float = 0.03125
    high: int | float | None = None
    step: int | float = 0.03125
    dense: bool = True

    def __post_init__(self) -> None:
        if self.keep not in (None, "dense"):
            raise UserError(
                f"space rule '{self.match}' has keep={self.keep}: 'dense' is the only value, or leave it out"
            )
        for what in ("low", "high", "step"):
            value = getattr(self, what)
            if value is None:
                continue
            try:
                resolve_latent_size(value, 1, 1)
            except UserError as error:
                raise UserError(f"space rule '{self.match}', {what}: {error}") from None


@dataclass(frozen=True)
class SpaceSettings:
    """The rules of a search space.

    Attributes:
        rules: the first that matches a layer decides.
        stem: ``"dense"`` or ``"search"``: the first convolution, where no rule matches it.
        classifier: the same for the last linear layer.
        default: for every layer that is left.
    """

    rules: list[Rule] = field(default_factory=list)
    stem: str = "dense"
    classifier: str = "dense"
    default: Rule = field(default_factory=Rule)

    def __post_init__(self) -> None:
        for what in ("stem", "classifier"):
            if getattr(self, what) not in ("dense", "search"):
                raise SettingError(what, getattr(self, what), "is unknown: use dense or search")


@dataclass(frozen=True)
class LayerSpace:
    """The choices of one layer: latent sizes ``low, low + step, ... high``, and dense where that is allowed.

    Choices are written as one int per layer, so that any sampler can draw them and near values mean near plans:
    the latent size itself, and one step beyond the largest for dense.
    """

    spec: LayerSpec
    low: int
    high: int
    step: int
    dense: bool

    @property
    def dense_value(self) -> int:
        """The int that stands for dense."""
        return self.high + self.step

    @property
    def largest_value(self) -> int:
        """The largest int that a trial may choose."""
        return self.dense_value if self.dense else self.high

    @property
    def latent_sizes(self) -> tuple[int | None, ...]:
        """All choices, the cheapest first; None stands for dense."""
        sizes: tuple[int | None, ...] = tuple(range(self.low, self.high + 1, self.step))
        return (*sizes, None) if self.dense else sizes


@dataclass(frozen=True)
class SearchSpace:
    """The choices of every layer under search, and what any plan of theirs costs."""

    layers: tuple[LayerSpace, ...]
    cost: NetworkCost

    def allows(self, name: str, value: int) -> bool:
        """Whether a layer may have this value."""
        layer = next(layer for layer in self.layers if layer.spec.name == name)
        return layer.low <= value <= layer.largest_value and (value - layer.low) % layer.step == 0

    def plan(self, values: Mapping[str, int]) -> RankPlan:
        """Read one int per layer as a plan."""
        return RankPlan(
            {
                layer.spec.name: LayerChoice(values[layer.spec.name])
                for layer in self.layers
                if values[layer.spec.name] <= layer.high
            }
        )

    def values(self, plan: RankPlan) -> dict[str, int]:
        """Write a plan as one int per layer."""
        return {layer.spec.name: plan.latent_size(layer.spec.name) or layer.dense_value for layer in self.layers}

    def options(self, errors: Mapping[str, Sequence[float]]) -> list[LayerOptions]:
        """Price every choice of every layer.

        Args:
            errors: layer name -> truncation error at rank 0, 1, ...
        """
        model = self.cost.model
        table = []
        for layer in self.layers:
            spec, sizes = layer.spec, layer.latent_sizes
            table.append(
                LayerOptions(
                    spec.name,
                    sizes,
                    tuple(0.0 if size is None else errors[spec.name][size] for size in sizes),
                    tuple(model.dense(spec) if size is None else model.at_rank(spec, size) for size in sizes),
                )
            )
        return table

    @property
    def _fixed_cost(self) -> int:
        """The cost of everything that no trial can change."""
        return self.cost.dense - sum(self.cost.model.dense(layer.spec) for layer in self.layers)

    def closed_form(self, errors: Mapping[str, Sequence[float]], budget: int) -> RankPlan:
        """The plan of least total truncation error whose network costs at most the budget."""
        return allocate(self.options(errors), budget - self._fixed_cost)

    @property
    def cheapest(self) -> RankPlan:
        """Every layer at its smallest latent size."""
        return RankPlan({layer.spec.name: LayerChoice(layer.low) for layer in self.layers})

    @property
    def highest_speedup(self) -> float:
        """Dense cost over the cost of the cheapest plan."""
        return self.cost.dense / self.cost.of(self.cheapest)

    def shrink(self, values: Mapping[str, int], budget: int) -> dict[str, int]:
        """Bring a proposal within the budget: every layer's choice moves down by one common factor.

        Args:
            values: one int per layer; kept as they are if their plan fits.
            budget: for the whole network, not below the cheapest plan.
        """
        if self.cost.of(self.plan(values)) <= budget:
            return dict(values)

        def scaled(factor: float) -> dict[str, int]:
            return {
                layer.spec.name: layer.low
                + int((values[layer.spec.name] - layer.low) / layer.step * factor) * layer.step
                for layer in self.layers
            }

        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if self.cost.of(self.plan(scaled(middle))) <= budget else (low, middle)
        return scaled(low)


def _choices(spec: LayerSpec, rule: Rule) -> LayerSpace:
    limit = spec.break_even_rank

    def rank(size: float) -> int:
        # One rule serves many layers, so ints too mean whole groups here.
        return spec.whole_groups(resolve_latent_size(size, spec.in_size, spec.out_size))

    low, step = spec.require_saving(rank(rule.low)), rank(rule.step)
    high = limit if rule.high is None else min(limit, rank(rule.high))
    if low > high:
        raise UserError(
            f"space rule '{rule.match}' gives '{spec.name}' low={low} above high={high}: lower low, or raise high"
        )
    return LayerSpace(spec, low, low + (high - low) // step * step, step, rule.dense)


def build_space(settings: SpaceSettings, profile: LayerProfile, cost: NetworkCost) -> SearchSpace:
    """Apply the rules to a model's layers.

    Args:
        settings: the rules.
        profile: the model's layers; a rule may also name those that cannot be factorized, to keep them dense.
        cost: of the network.

    Raises:
        UserError: a rule matches no layer or asks for sizes that a layer cannot have, or no layer is left.
    """
    for rule in settings.rules:
        _check_rule(rule, profile)
    kept = {profile.stem} if settings.stem == "dense" else set()
    if settings.classifier == "dense":
        kept.add(profile.classifier)
    searched = []
    for spec in profile.layers:
        matching = next((rule for rule in settings.rules if fnmatchcase(spec.name, rule.match)), None)
        if matching is None and spec.name in kept:
            continue
        rule = matching or settings.default
        if rule.keep is None:
            searched.append(_choices(spec, rule))
    if not searched:
        raise UserError("the space keeps every layer dense, so there is nothing to search: let a rule free some layers")
    return SearchSpace(tuple(searched), cost)


def _check_rule(rule: Rule, profile: LayerProfile) -> None:
    names = [*(spec.name for spec in profile.layers), *profile.skipped]
    matched = [name for name in names if fnmatchcase(name, rule.match)]
    if not matched:
        close = get_close_matches(rule.match, names, n=3, cutoff=0.0)
        raise UserError(f"space rule '{rule.match}' matches no layer: did you mean {', '.join(map(repr, close))}?")
    if rule.keep is None and all(name in profile.skipped for name in matched):
        raise UserError(
            f"space rule '{rule.match}' matches only layers that cannot be factorized "
            f"('{matched[0]}': {profile.skipped[matched[0]]}): take it out, or give it keep: dense"
        )

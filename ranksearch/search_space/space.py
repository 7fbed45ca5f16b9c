"""Search space: the choices of a trial for each layer, and their costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ranksearch.cost.base import NetworkCost
from ranksearch.plan import LayerChoice, LayerSpec, RankPlan, SkippedLayer

Value = int | str
# Layer name -> scheme -> expected error at rank 0, 1, ...
Errors = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class LayerSpace:
    """The choices of one layer: a scheme with a latent size ``low, low + step, ...``, or dense if allowed.

    A trial's parameters for the layer are a scheme, if there are several, and an int: the latent size, or any value
    above the scheme's largest latent size for dense. So any sampler can draw them, and close values mean similar plans.

    Attributes:
        spec: shape of the layer.
        low: smallest latent size.
        highs: scheme -> largest latent size.
        step: distance between latent sizes.
        dense: whether the layer may stay dense.
    """

    spec: LayerSpec
    low: int
    highs: Mapping[str, int]
    step: int
    dense: bool

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes to choose from."""
        return tuple(self.highs)

    @property
    def scheme_parameter(self) -> str:
        """Name of the trial's scheme parameter; the latent size's parameter has the layer's name."""
        return f"{self.spec.name}:scheme"

    @property
    def largest_value(self) -> int:
        """The largest int that a trial may choose."""
        return max(map(self.top, self.schemes))

    def top(self, scheme: str) -> int:
        """Return the largest useful int for a scheme: one step above its largest latent size if dense is allowed."""
        return self.highs[scheme] + (self.step if self.dense else 0)

    @property
    def choices(self) -> tuple[LayerChoice | None, ...]:
        """All choices, scheme by scheme, by rising latent size; None means dense."""
        sizes = {scheme: range(self.low, high + 1, self.step) for scheme, high in self.highs.items()}
        factorized = tuple(LayerChoice(size, scheme) for scheme, each in sizes.items() for size in each)
        return (*factorized, None) if self.dense else factorized

    def allows(self, values: Mapping[str, Value]) -> bool:
        """Return whether a trial may have these values."""
        value, scheme = values[self.spec.name], self._scheme(values)
        if scheme not in self.highs or not isinstance(value, int):
            return False
        return self.low <= value <= self.largest_value and (value - self.low) % self.step == 0

    def _scheme(self, values: Mapping[str, Value]) -> str:
        return str(values.get(self.scheme_parameter, self.schemes[0]))

    def choice(self, values: Mapping[str, Value]) -> LayerChoice | None:
        """Return the choice that a trial's values encode; None means dense."""
        scheme = self._scheme(values)
        size = min(int(values[self.spec.name]), self.top(scheme))
        return LayerChoice(size, scheme) if size <= self.highs[scheme] else None

    def values(self, choice: LayerChoice | None) -> dict[str, Value]:
        """Encode a choice as a trial's values."""
        if choice is None:
            return self._encoded(self.schemes[0], self.top(self.schemes[0]))
        return self._encoded(choice.scheme, choice.latent_size)

    def _encoded(self, scheme: str, size: int) -> dict[str, Value]:
        return {self.spec.name: size, **({self.scheme_parameter: scheme} if len(self.schemes) > 1 else {})}

    def scaled(self, values: Mapping[str, Value], factor: float) -> dict[str, Value]:
        """Scale the latent size's distance from the smallest by a factor of 0 to 1, keeping the scheme."""
        scheme = self._scheme(values)
        above = (min(int(values[self.spec.name]), self.top(scheme)) - self.low) // self.step
        return self._encoded(scheme, self.low + int(above * factor) * self.step)


@dataclass(frozen=True)
class SearchSpace:
    """The choices of every searched layer, with the cost of any plan.

    Attributes:
        layers: choices of each searched layer.
        cost: cost of any plan of the network.
        left: layer name -> reason and share of the MACs, for layers that stay dense.
    """

    layers: tuple[LayerSpace, ...]
    cost: NetworkCost
    left: Mapping[str, SkippedLayer] = field(default_factory=dict)

    @property
    def schemes(self) -> set[str]:
        """All schemes that at least one layer may have."""
        return {scheme for layer in self.layers for scheme in layer.schemes}

    def plan(self, values: Mapping[str, Value]) -> RankPlan:
        """Return the plan that a trial's values encode."""
        chosen = {layer.spec.name: layer.choice(values) for layer in self.layers}
        return RankPlan({name: choice for name, choice in chosen.items() if choice is not None})

    def values(self, plan: RankPlan) -> dict[str, Value]:
        """Encode a plan as a trial's values."""
        values: dict[str, Value] = {}
        for layer in self.layers:
            values |= layer.values(plan.layers.get(layer.spec.name))
        return values

    def price(self, spec: LayerSpec, choice: LayerChoice | None) -> int:
        """Return the cost of a layer under a choice; None means dense."""
        if choice is None:
            return self.cost.model.dense(spec)
        return self.cost.model.at_rank(spec, choice.latent_size, choice.scheme)

    @property
    def fixed_cost(self) -> int:
        """Cost of the parts of the network that no trial can change."""
        return self.cost.dense - sum(self.cost.model.dense(layer.spec) for layer in self.layers)

    def restricted(self, schemes: Collection[str]) -> SearchSpace:
        """Return the space restricted to some schemes; a layer that has none of them keeps all of its own."""
        layers = []
        for layer in self.layers:
            highs = {scheme: high for scheme, high in layer.highs.items() if scheme in schemes}
            layers.append(replace(layer, highs=highs or layer.highs))
        return replace(self, layers=tuple(layers))

    @property
    def cheapest(self) -> RankPlan:
        """The plan with every layer at its smallest latent size and its cheapest scheme there."""

        def cheapest(layer: LayerSpace) -> LayerChoice:
            choices = (LayerChoice(layer.low, scheme) for scheme in layer.schemes)
            return min(choices, key=lambda choice: self.price(layer.spec, choice))

        return RankPlan({layer.spec.name: cheapest(layer) for layer in self.layers})

    def lowest_budget(self, budget: int) -> int:
        """Return the lowest budget to explore: a quarter of the budget, but at least the cheapest plan's cost."""
        return max(self.cost.total(self.cheapest), budget // 4)

    @property
    def highest_speedup(self) -> float:
        """Ratio of the dense cost to the cost of the cheapest plan."""
        return self.cost.dense / self.cost.total(self.cheapest)

    def shrink(self, values: Mapping[str, Value], budget: int) -> dict[str, Value]:
        """Shrink latent sizes by a common factor until the plan fits; keep the schemes unless only the cheapest fit.

        Args:
            values: values of a trial; returned unchanged if their plan fits.
            budget: budget of the whole network, at least the cost of the cheapest plan.
        """
        if self.cost.total(self.plan(values)) <= budget:
            return dict(values)

        def scaled(factor: float) -> dict[str, Value]:
            return {name: value for layer in self.layers for name, value in layer.scaled(values, factor).items()}

        def fits(factor: float) -> bool:
            return self.cost.total(self.plan(scaled(factor))) <= budget

        if not fits(0.0):
            values = {**values, **{n: v for n, v in self.values(self.cheapest).items() if isinstance(v, str)}}
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return scaled(low)

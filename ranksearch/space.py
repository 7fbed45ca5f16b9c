"""What a trial may choose for each layer, and what that costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ranksearch.allocation import LayerOptions, allocate
from ranksearch.cost import NetworkCost
from ranksearch.plan import LayerChoice, LayerSpec, RankPlan

Value = int | str
# Layer name -> scheme -> the expected error at rank 0, 1, ...
Errors = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class LayerSpace:
    """The choices of one layer: a scheme, a latent size ``low, low + step, ...``, and dense where that is allowed.

    A trial's parameters for it are a scheme, where there are several, and one int, so that any sampler can draw them
    and near values mean near plans: the latent size itself, or anything beyond the scheme's largest for dense.

    Attributes:
        spec: of the layer.
        low: the smallest latent size.
        highs: scheme -> its largest latent size.
        step: from one to the next.
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
        """The trial's parameter for the scheme; the latent size's has the layer's name."""
        return f"{self.spec.name}:scheme"

    @property
    def largest_value(self) -> int:
        """The largest int that a trial may choose."""
        return max(map(self.top, self.schemes))

    def top(self, scheme: str) -> int:
        """The largest int that tells choices of a scheme apart: dense, or else the largest latent size."""
        return self.highs[scheme] + (self.step if self.dense else 0)

    @property
    def choices(self) -> tuple[LayerChoice | None, ...]:
        """All choices, scheme by scheme, the smallest first; None stands for dense."""
        sizes = tuple(
            LayerChoice(size, scheme)
            for scheme, high in self.highs.items()
            for size in range(self.low, high + 1, self.step)
        )
        return (*sizes, None) if self.dense else sizes

    def allows(self, values: Mapping[str, Value]) -> bool:
        """Whether a trial may have these values."""
        value, scheme = values[self.spec.name], self._scheme(values)
        return (
            scheme in self.highs
            and isinstance(value, int)
            and self.low <= value <= self.largest_value
            and (value - self.low) % self.step == 0
        )

    def _scheme(self, values: Mapping[str, Value]) -> str:
        return str(values.get(self.scheme_parameter, self.schemes[0]))

    def choice(self, values: Mapping[str, Value]) -> LayerChoice | None:
        """Read a trial's values."""
        scheme = self._scheme(values)
        size = min(int(values[self.spec.name]), self.top(scheme))
        return LayerChoice(size, scheme) if size <= self.highs[scheme] else None

    def values(self, choice: LayerChoice | None) -> dict[str, Value]:
        """Write a choice as a trial's values."""
        scheme = self.schemes[0] if choice is None else choice.scheme
        size = self.top(scheme) if choice is None else choice.latent_size
        return {self.spec.name: size, **({self.scheme_parameter: scheme} if len(self.schemes) > 1 else {})}

    def scaled(self, values: Mapping[str, Value], factor: float) -> dict[str, Value]:
        """The same scheme, its latent size brought nearer to the smallest by a factor of 0 to 1."""
        scheme = self._scheme(values)
        above = (min(int(values[self.spec.name]), self.top(scheme)) - self.low) // self.step
        size = self.low + int(above * factor) * self.step
        return {self.spec.name: size, **({self.scheme_parameter: scheme} if len(self.schemes) > 1 else {})}


@dataclass(frozen=True)
class SearchSpace:
    """The choices of every layer under search, and what any plan of theirs costs.

    Attributes:
        layers: their choices.
        cost: of any plan.
        left: name -> reason, of every convolution and linear layer that stays dense.
    """

    layers: tuple[LayerSpace, ...]
    cost: NetworkCost
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def schemes(self) -> set[str]:
        """Every scheme that some layer may have."""
        return {scheme for layer in self.layers for scheme in layer.schemes}

    def plan(self, values: Mapping[str, Value]) -> RankPlan:
        """Read a trial's values as a plan."""
        chosen = {layer.spec.name: layer.choice(values) for layer in self.layers}
        return RankPlan({name: choice for name, choice in chosen.items() if choice is not None})

    def values(self, plan: RankPlan) -> dict[str, Value]:
        """Write a plan as a trial's values."""
        return {
            name: value
            for layer in self.layers
            for name, value in layer.values(plan.layers.get(layer.spec.name)).items()
        }

    def _price(self, spec: LayerSpec, choice: LayerChoice | None) -> int:
        if choice is None:
            return self.cost.model.dense(spec)
        return self.cost.model.at_rank(spec, choice.latent_size, choice.scheme)

    def options(self, errors: Errors) -> list[LayerOptions]:
        """Price every choice of every layer.

        Args:
            errors: layer name -> scheme -> error at rank 0, 1, ...
        """
        return [
            LayerOptions(
                layer.spec.name,
                layer.choices,
                tuple(0.0 if c is None else errors[layer.spec.name][c.scheme][c.latent_size] for c in layer.choices),
                tuple(self._price(layer.spec, choice) for choice in layer.choices),
            )
            for layer in self.layers
        ]

    @property
    def fixed_cost(self) -> int:
        """The cost of everything that no trial can change."""
        return self.cost.dense - sum(self.cost.model.dense(layer.spec) for layer in self.layers)

    def allocate(self, errors: Errors, budget: int) -> RankPlan:
        """The plan of least total error whose network costs at most the budget.

        Raises:
            PlanError: no plan is that cheap.
        """
        return allocate(self.options(errors), budget - self.fixed_cost)

    def restricted(self, schemes: Collection[str]) -> SearchSpace:
        """The same space with some schemes only; a layer that can have none of these keeps those that it has."""
        layers = []
        for layer in self.layers:
            highs = {scheme: high for scheme, high in layer.highs.items() if scheme in schemes}
            layers.append(replace(layer, highs=highs or layer.highs))
        return replace(self, layers=tuple(layers))

    @property
    def cheapest(self) -> RankPlan:
        """Every layer at its smallest latent size, by its cheapest scheme."""
        return RankPlan(
            {
                layer.spec.name: min(
                    (LayerChoice(layer.low, scheme) for scheme in layer.schemes),
                    key=lambda choice: self._price(layer.spec, choice),  # called at once
                )
                for layer in self.layers
            }
        )

    def lowest_budget(self, budget: int) -> int:
        """The lowest that is worth a look: a quarter of the budget, or the cheapest plan's cost where that is more."""
        return max(self.cost.of(self.cheapest), budget // 4)

    @property
    def highest_speedup(self) -> float:
        """Dense cost over the cost of the cheapest plan."""
        return self.cost.dense / self.cost.of(self.cheapest)

    def shrink(self, values: Mapping[str, Value], budget: int) -> dict[str, Value]:
        """Bring a proposal within the budget: every layer's latent size moves down by one common factor.

        Schemes stay, unless with them even the smallest sizes exceed the budget; then they become the cheapest.

        Args:
            values: of a trial; kept as they are if their plan fits.
            budget: for the whole network, not below the cheapest plan.
        """
        if self.cost.of(self.plan(values)) <= budget:
            return dict(values)

        def scaled(factor: float) -> dict[str, Value]:
            return {name: value for layer in self.layers for name, value in layer.scaled(values, factor).items()}

        def fits(factor: float) -> bool:
            return self.cost.of(self.plan(scaled(factor))) <= budget

        if not fits(0.0):
            values = {**values, **{n: v for n, v in self.values(self.cheapest).items() if isinstance(v, str)}}
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return scaled(low)

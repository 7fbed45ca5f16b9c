"""Which layer gets how much: the plan with the least total error within a budget, by one Lagrange multiplier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranksearch.errors import PlanError
from ranksearch.plan import LayerChoice, RankPlan

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

# Beyond this multiplier of errors of about 1 no cost is worth an error; halving it so often leaves rounding.
HIGHEST_MULTIPLIER, BISECTIONS = 1e12, 60


@dataclass(frozen=True)
class LayerOptions:
    """What one layer may become, with the price of each option.

    Attributes:
        name: of the layer.
        choices: one per option, a scheme and a latent size; None stands for dense.
        errors: share of the output's variance that each option loses.
        costs: of each option, in the cost model's unit.
    """

    name: str
    choices: tuple[LayerChoice | None, ...]
    errors: tuple[float, ...]
    costs: tuple[int, ...]


@dataclass(frozen=True)
class OptionTable:
    """The options of all layers side by side, the cheapest first.

    Attributes:
        names: of the layers.
        choices: of each layer.
        errors: `[layers, options]`; infinite where a layer has fewer options than others.
        costs: of the same shape; whole numbers.
    """

    names: tuple[str, ...]
    choices: tuple[tuple[LayerChoice | None, ...], ...]
    errors: Array
    costs: Array

    @staticmethod
    def of(layers: Sequence[LayerOptions]) -> OptionTable:
        """Lay layers side by side."""
        width = max((len(layer.costs) for layer in layers), default=0)
        errors, costs = np.full((len(layers), width), np.inf), np.zeros((len(layers), width))
        choices = []
        for row, layer in enumerate(layers):
            order = np.argsort(layer.costs, kind="stable")
            errors[row, : len(order)] = np.asarray(layer.errors, dtype=np.float64)[order]
            costs[row, : len(order)] = np.asarray(layer.costs, dtype=np.float64)[order]
            choices.append(tuple(layer.choices[index] for index in order))
        return OptionTable(tuple(layer.name for layer in layers), tuple(choices), errors, costs)

    def plan(self, chosen: Indices) -> RankPlan:
        """The plan of one option per layer, `[layers]`."""
        picked = {name: options[index] for name, options, index in zip(self.names, self.choices, chosen, strict=True)}
        return RankPlan({name: choice for name, choice in picked.items() if choice is not None})

    def at_multiplier(self, errors: Array, multiplier: float) -> Indices:
        """The option of every layer with the least error plus cost times a multiplier; of equals, the cheapest."""
        # The cheapest come first, and argmin takes the first, so a multiplier of 0 wastes nothing.
        found: Indices = np.argmin(errors + multiplier * self.costs, axis=1)
        return found

    def cost(self, chosen: Indices) -> float:
        """What one option per layer costs together."""
        return float(self.costs[np.arange(len(chosen)), chosen].sum())

    def best(self, budget: float, errors: Array | None = None) -> Indices:
        """Choose one option per layer: least total error at a total cost within the budget.

        The problem separates over layers once costs are weighed by a multiplier (Everett, 1963). Bisection finds the
        smallest multiplier whose plan fits; what is left of the budget then goes, step by step, to the options that
        save the most error for their price, which reaches the plans between two multipliers.

        Args:
            budget: for these layers together.
            errors: to judge by instead of the table's own.

        Raises:
            PlanError: even the cheapest options exceed the budget.
        """
        errors = self.errors if errors is None else errors
        least = np.zeros(len(self.names), dtype=np.intp)
        if self.cost(least) > budget:
            raise PlanError(
                f"a budget of {int(budget)} is below {int(self.cost(least))}, the least that these layers can cost: "
                "raise it"
            )
        if not self.names:
            return least
        chosen = self.at_multiplier(errors, 0.0)
        if self.cost(chosen) > budget:
            low, high = 0.0, 1.0 / max(budget, 1)
            while self.cost(self.at_multiplier(errors, high)) > budget and high < HIGHEST_MULTIPLIER:
                low, high = high, high * 4
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                over = self.cost(self.at_multiplier(errors, middle)) > budget
                low, high = (middle, high) if over else (low, middle)
            chosen = self.at_multiplier(errors, high)
            if self.cost(chosen) > budget:
                chosen = least
        return self._spend(errors, chosen, budget - self.cost(chosen))

    def _spend(self, errors: Array, chosen: Indices, rest: float) -> Indices:
        """Upgrade one layer at a time by the best saving of error per cost that still fits."""
        rows, chosen = np.arange(len(chosen)), chosen.copy()
        while True:
            price = self.costs - self.costs[rows, chosen][:, None]
            saving = errors[rows, chosen][:, None] - errors
            gain = np.where((price <= rest) & (saving > 0), saving / np.maximum(price, 1e-9), 0.0)
            row, option = np.unravel_index(np.argmax(gain), gain.shape)
            if not gain[row, option] > 0:
                return chosen
            rest -= price[row, option]
            chosen[row] = option


def allocate(layers: Sequence[LayerOptions], budget: int) -> RankPlan:
    """The plan of least total error within a budget; see `OptionTable.best`.

    Args:
        layers: their options.
        budget: for these layers together.

    Raises:
        PlanError: even the cheapest options exceed the budget.
    """
    table = OptionTable.of(layers)
    return table.plan(table.best(budget))

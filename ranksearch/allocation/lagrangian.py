"""Rank allocation: the plan of lowest total error within a budget, by a Lagrange multiplier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranksearch.errors import PlanError
from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.search_space.space import Errors, SearchSpace

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

# Multiplier where the search for an upper bound stops (errors are about 1), and bisection steps down to rounding.
HIGHEST_MULTIPLIER, BISECTIONS = 1e12, 60


@dataclass(frozen=True)
class LayerOptions:
    """The options of one layer, with their errors and costs.

    Attributes:
        name: name of the layer.
        choices: scheme and latent size of each option; None means dense.
        errors: error of each option, as a share of the output's variance.
        costs: cost of each option, in the cost model's unit.
    """

    name: str
    choices: tuple[LayerChoice | None, ...]
    errors: tuple[float, ...]
    costs: tuple[int, ...]


@dataclass(frozen=True)
class RankAllocator:
    """The options of all layers as tables, cheapest first.

    Attributes:
        names: names of the layers.
        choices: options of each layer; None means dense.
        errors: error of each option, `[layers, options]`; padded with infinity for layers with fewer options.
        costs: cost of each option, `[layers, options]`; whole numbers.
    """

    names: tuple[str, ...]
    choices: tuple[tuple[LayerChoice | None, ...], ...]
    errors: Array
    costs: Array

    @staticmethod
    def from_options(layers: Sequence[LayerOptions]) -> RankAllocator:
        """Build the tables, with each layer's options sorted by cost."""
        width = max((len(layer.costs) for layer in layers), default=0)
        errors, costs = np.full((len(layers), width), np.inf), np.zeros((len(layers), width))
        choices = []
        for row, layer in enumerate(layers):
            order = np.argsort(layer.costs, kind="stable")
            errors[row, : len(order)] = np.asarray(layer.errors, dtype=np.float64)[order]
            costs[row, : len(order)] = np.asarray(layer.costs, dtype=np.float64)[order]
            choices.append(tuple(layer.choices[index] for index in order))
        return RankAllocator(tuple(layer.name for layer in layers), tuple(choices), errors, costs)

    def plan(self, chosen: Indices) -> RankPlan:
        """Return the plan that takes the chosen option of each layer, `[layers]`."""
        picked = {name: options[index] for name, options, index in zip(self.names, self.choices, chosen, strict=True)}
        return RankPlan({name: choice for name, choice in picked.items() if choice is not None})

    def at_multiplier(self, errors: Array, multiplier: float) -> Indices:
        """Return each layer's option of lowest error plus multiplier times cost; ties go to the cheapest."""
        # Options are sorted by cost and argmin returns the first minimum, so a multiplier of 0 wastes no budget.
        chosen: Indices = np.argmin(errors + multiplier * self.costs, axis=1)
        return chosen

    def cost(self, chosen: Indices) -> float:
        """Return the total cost of the chosen options, one per layer."""
        return float(self.costs[np.arange(len(chosen)), chosen].sum())

    def best(self, budget: float, errors: Array | None = None) -> Indices:
        """Choose one option per layer for low total error at a total cost within the budget.

        With a Lagrange multiplier on the cost, the problem separates over layers (Everett, 1963). Bisection finds the
        smallest multiplier whose plan fits; the rest of the budget is spent greedily on the options with the largest
        error reduction per cost, which reaches plans between two multipliers.

        Args:
            budget: total budget of these layers.
            errors: errors to minimize, `[layers, options]`; None for those of the table.

        Raises:
            PlanError: even the cheapest options exceed the budget.
        """
        errors = self.errors if errors is None else errors
        cheapest = np.zeros(len(self.names), dtype=np.intp)
        least = self.cost(cheapest)
        if least > budget:
            limits = f"a budget of {int(budget)} is below {int(least)}, the least that these layers can cost"
            raise PlanError(f"{limits}: raise it")
        if not self.names:
            return cheapest
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
                chosen = cheapest
        return self._spend(errors, chosen, budget - self.cost(chosen))

    def _spend(self, errors: Array, chosen: Indices, rest: float) -> Indices:
        """Upgrade layers greedily, by the largest error reduction per cost among the options that still fit."""
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


def layer_options(space: SearchSpace, errors: Errors) -> list[LayerOptions]:
    """Return the options of every layer of a space, with their errors and costs."""
    return [
        LayerOptions(
            layer.spec.name,
            layer.choices,
            tuple(0.0 if c is None else errors[layer.spec.name][c.scheme][c.latent_size] for c in layer.choices),
            tuple(space.price(layer.spec, choice) for choice in layer.choices),
        )
        for layer in space.layers
    ]


def allocate(space: SearchSpace, errors: Errors, budget: int) -> RankPlan:
    """Return a plan of low total error whose network costs at most the budget.

    Args:
        space: the search space.
        errors: layer name -> scheme -> error at rank 0, 1, ...
        budget: budget of the whole network.

    Raises:
        PlanError: even the cheapest plan exceeds the budget.
    """
    allocator = RankAllocator.from_options(layer_options(space, errors))
    return allocator.plan(allocator.best(budget - space.fixed_cost))

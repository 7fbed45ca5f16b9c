"""Which layer gets how much: the plan with the least total error within a budget, by one Lagrange multiplier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ranksearch.errors import PlanError
from ranksearch.plan import LayerChoice, RankPlan


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


def allocate(layers: Sequence[LayerOptions], budget: int) -> RankPlan:
    """Choose one option per layer: least total error at a total cost within the budget.

    The problem separates over layers once costs are weighed by a multiplier (Everett, 1963). Bisection finds the
    smallest multiplier whose plan fits; what is left of the budget then goes, step by step, to the options that
    save the most error for their price, which reaches the plans between two multipliers.

    Args:
        layers: their options.
        budget: for these layers together.

    Raises:
        PlanError: even the cheapest options exceed the budget.
    """
    errors = [np.asarray(layer.errors) for layer in layers]
    costs = [np.asarray(layer.costs, dtype=np.float64) for layer in layers]
    least = sum(min(layer.costs) for layer in layers)
    if least > budget:
        raise PlanError(f"a budget of {budget} is below {least}, the least that these layers can cost: raise it")

    def choose(multiplier: float) -> list[int]:
        return [
            # Among equals the cheapest, so that a multiplier of 0 wastes nothing.
            int(np.lexsort((cost, error + multiplier * cost))[0])
            for error, cost in zip(errors, costs, strict=True)
        ]

    def total(chosen: Sequence[int]) -> int:
        return sum(layer.costs[index] for layer, index in zip(layers, chosen, strict=True))

    chosen = choose(0.0)
    if total(chosen) > budget:
        low, high = 0.0, 1.0 / max(budget, 1)
        while total(choose(high)) > budget:
            low, high = high, high * 4
            if high > 1e12:
                break
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if total(choose(middle)) > budget else (low, middle)
        chosen = choose(high)
        if total(chosen) > budget:
            chosen = [int(np.argmin(cost)) for cost in costs]
    _spend_rest(errors, costs, chosen, budget - total(chosen))
    return RankPlan(
        {
            layer.name: choice
            for layer, index in zip(layers, chosen, strict=True)
            if (choice := layer.choices[index]) is not None
        }
    )


def _spend_rest(errors: Sequence[np.ndarray], costs: Sequence[np.ndarray], chosen: list[int], rest: float) -> None:
    """Upgrade one layer at a time, in place, by the best saving of error per cost that still fits."""
    while True:
        best, where = 0.0, None
        for layer, (error, cost) in enumerate(zip(errors, costs, strict=True)):
            price = cost - cost[chosen[layer]]
            saving = error[chosen[layer]] - error
            fits = (price <= rest) & (saving > 0)
            if not fits.any():
                continue
            gain = np.where(fits, saving / np.maximum(price, 1e-9), 0.0)
            option = int(np.argmax(gain))
            if gain[option] > best:
                best, where = float(gain[option]), (layer, option)
        if where is None:
            return
        layer, option = where
        rest -= float(costs[layer][option] - costs[layer][chosen[layer]])
        chosen[layer] = option

"""The closed form: feasible, locally complete, and within the duality gap of the best."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranksearch.allocation import LayerOptions, allocate
from ranksearch.errors import PlanError
from ranksearch.plan import SCHEMES, LayerChoice, RankPlan


@st.composite
def tables(draw: st.DrawFn) -> list[LayerOptions]:
    layers = []
    for index in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 5))
        costs = sorted(draw(st.lists(st.integers(1, 1000), min_size=count, max_size=count, unique=True)))
        errors = sorted(draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)), reverse=True)
        kinds = draw(st.lists(st.sampled_from(SCHEMES), min_size=count, max_size=count))
        choices = (*(LayerChoice(size + 1, kind) for size, kind in enumerate(kinds[1:])), None)
        layers.append(LayerOptions(f"layer{index}", choices, tuple(errors), tuple(costs)))
    return layers


def price(layers: list[LayerOptions], plan: RankPlan) -> tuple[float, int, list[int]]:
    chosen = [layer.choices.index(plan.layers.get(layer.name)) for layer in layers]
    error = sum(layer.errors[index] for layer, index in zip(layers, chosen, strict=True))
    cost = sum(layer.costs[index] for layer, index in zip(layers, chosen, strict=True))
    return error, cost, chosen


@given(tables(), st.floats(0, 1))
def test_a_plan_is_within_budget_and_within_the_duality_gap_of_the_best(
    layers: list[LayerOptions], share: float
) -> None:
    least, most = (sum(pick(layer.costs) for layer in layers) for pick in (min, max))
    budget = least + int(share * (most - least))
    error, cost, _ = price(layers, allocate(layers, budget))
    best = min(
        sum(layer.errors[index] for layer, index in zip(layers, option, strict=True))
        for option in product(*(range(len(layer.costs)) for layer in layers))
        if sum(layer.costs[index] for layer, index in zip(layers, option, strict=True)) <= budget
    )
    # With one constraint, a separable problem's gap is at most the widest layer's range of error.
    gap = max(layer.errors[0] - layer.errors[-1] for layer in layers)
    assert cost <= budget
    assert error <= best + gap + 1e-9


@given(tables(), st.floats(0, 1))
def test_no_single_layer_can_still_be_improved_within_the_budget(layers: list[LayerOptions], share: float) -> None:
    least, most = (sum(pick(layer.costs) for layer in layers) for pick in (min, max))
    budget = least + int(share * (most - least))
    _, cost, chosen = price(layers, allocate(layers, budget))
    for layer, index in zip(layers, chosen, strict=True):
        for option, (option_error, option_cost) in enumerate(zip(layer.errors, layer.costs, strict=True)):
            if option != index and cost - layer.costs[index] + option_cost <= budget:
                assert option_error >= layer.errors[index] - 1e-9


@given(tables())
def test_budgets_without_a_plan_are_refused_and_ample_ones_lose_nothing(layers: list[LayerOptions]) -> None:
    with pytest.raises(PlanError, match="budget"):
        allocate(layers, sum(min(layer.costs) for layer in layers) - 1)
    error, _, _ = price(layers, allocate(layers, sum(max(layer.costs) for layer in layers)))
    assert error == pytest.approx(sum(layer.errors[-1] for layer in layers))

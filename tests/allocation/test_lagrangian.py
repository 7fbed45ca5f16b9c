"""The closed form: feasible, locally complete, and within the duality gap of the best."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spaces import COST, space

from ranksearch.allocation import lagrangian
from ranksearch.allocation.lagrangian import LayerOptions, RankAllocator, layer_options
from ranksearch.errors import PlanError
from ranksearch.plan import SCHEMES, LayerChoice, RankPlan


def allocate(layers: list[LayerOptions], budget: float) -> RankPlan:
    allocator = RankAllocator.from_options(layers)
    return allocator.plan(allocator.best(budget))


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
    # With one constraint, a separable context's gap is at most the widest layer's range of error.
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


def slopes(layers: list[LayerOptions]) -> list[float]:
    """The multipliers at which some layer changes its option."""
    return sorted(
        {
            (layer.errors[one] - layer.errors[other]) / (layer.costs[other] - layer.costs[one])
            for layer in layers
            for one, other in combinations(range(len(layer.costs)), 2)
            if layer.costs[one] != layer.costs[other]
        }
    )


@given(tables(), st.floats(0, 1), st.sampled_from([1, 10**4, 10**8]))
def test_no_multiplier_s_plan_within_the_budget_is_better(layers: list[LayerOptions], share: float, scale: int) -> None:
    layers = [replace(layer, costs=tuple(scale * cost for cost in layer.costs)) for layer in layers]  # of any unit
    least, most = (sum(pick(layer.costs) for layer in layers) for pick in (min, max))
    budget = least + int(share * (most - least))
    error, _, _ = price(layers, allocate(layers, budget))
    table, known = RankAllocator.from_options(layers), slopes(layers)
    between = [(low + high) / 2 for low, high in pairwise([0.0, *known, 2 * max([*known, 1.0])])]
    for multiplier in between:
        weighted = [
            min(zip(layer.errors, layer.costs, strict=True), key=lambda pair: (pair[0] + multiplier * pair[1], pair[1]))
            for layer in layers
        ]
        assert table.cost(table.at_multiplier(table.errors, multiplier)) == sum(cost for _, cost in weighted)
        if sum(cost for _, cost in weighted) <= budget:
            assert error <= sum(error for error, _ in weighted) + 1e-9


@given(tables(), st.integers(0, 99))
def test_the_order_in_which_options_are_given_does_not_matter(layers: list[LayerOptions], seed: int) -> None:
    draw = random.Random(seed)
    budget = sum(sorted(layer.costs)[len(layer.costs) // 2] for layer in layers)
    shuffled = []
    for layer in layers:
        order = draw.sample(range(len(layer.costs)), len(layer.costs))
        fields = (tuple(part[place] for place in order) for part in (layer.choices, layer.errors, layer.costs))
        shuffled.append(LayerOptions(layer.name, *fields))
    assert price(layers, allocate(shuffled, budget))[:2] == pytest.approx(price(layers, allocate(layers, budget))[:2])


@given(tables(), st.floats(0, 1))
def test_other_errors_than_the_table_s_own_choose_as_a_table_of_them(layers: list[LayerOptions], share: float) -> None:
    others = [replace(layer, errors=tuple(error**2 for error in layer.errors)) for layer in layers]
    least, most = (sum(pick(layer.costs) for layer in layers) for pick in (min, max))
    budget = least + share * (most - least)
    table, own = RankAllocator.from_options(layers), RankAllocator.from_options(others)
    assert table.plan(table.best(budget, own.errors)) == own.plan(own.best(budget))


def test_no_layers_have_the_plan_that_leaves_all_dense() -> None:
    assert allocate([], 0) == RankPlan()


def test_of_equal_errors_the_cheapest_option_is_taken() -> None:
    choices = (LayerChoice(1), LayerChoice(2), None)
    layer = LayerOptions("layer", choices, (0.5, 0.1, 0.1), (10, 20, 30))
    assert allocate([layer], 100) == RankPlan({"layer": LayerChoice(2)})


def test_a_budget_that_nothing_meets_is_told_with_the_least_that_would() -> None:
    layer = LayerOptions("layer", (LayerChoice(1), None), (0.5, 0.0), (10, 20))
    with pytest.raises(PlanError, match=r"^a budget of 9 is below 10, the least that these layers can cost: raise it$"):
        allocate([layer, replace(layer, name="other", costs=(0, 5))], 9)


def test_of_options_alike_the_first_is_taken() -> None:
    choices = (LayerChoice(1, "vertical"), LayerChoice(2, "full"), LayerChoice(3, "horizontal"), None)
    layer = LayerOptions("layer", choices, (0.2, 0.1, 0.1, 0.0), (20, 20, 20, 90))
    assert allocate([layer], 30) == RankPlan({"layer": LayerChoice(2, "full")})


def test_a_plan_takes_one_option_for_each_layer() -> None:
    layer = LayerOptions("layer", (LayerChoice(1), None), (0.5, 0.0), (10, 20))
    table = RankAllocator.from_options([layer, replace(layer, name="other")])
    assert table.plan(np.array([0, 1])) == RankPlan({"layer": LayerChoice(1)})
    with pytest.raises(ValueError, match="shorter"):
        table.plan(np.array([0]))


def test_what_is_left_of_a_budget_goes_to_the_best_savings_for_their_price_to_the_last_unit() -> None:
    # No multiplier takes any of the small ones, for `large` comes first and does not fit; by savings alone `dear`
    # would then take all there is.
    large = LayerOptions("large", (LayerChoice(1), None), (200.0, 0.0), (0, 1000))
    dear = LayerOptions("dear", (LayerChoice(1), None), (0.7, 0.1), (0, 10))
    cheap = LayerOptions("cheap", (LayerChoice(1), None), (0.6, 0.1), (0, 5))
    other = LayerOptions("other", (LayerChoice(1), None), (0.6, 0.2), (0, 5))
    plan = allocate([large, dear, cheap, other], 10)
    assert plan == RankPlan({"large": LayerChoice(1), "dear": LayerChoice(1)})


def errors_of(decay: float) -> dict[str, dict[str, list[float]]]:
    """Errors that fall to 0 at the rank above the largest; some schemes lose more than others."""
    return {
        layer.spec.name: {
            scheme: [(1 + index / 8) * (1 - rank / (high + 1)) ** decay for rank in range(high + 1)]
            for index, (scheme, high) in enumerate(layer.highs.items())
        }
        for layer in space().layers
    }


def test_the_options_of_a_layer_are_its_choices_with_their_errors_and_costs() -> None:
    errors = errors_of(2.0)
    for layer, options in zip(space().layers, layer_options(space(), errors), strict=True):
        assert (options.name, options.choices) == (layer.spec.name, layer.choices)
        for choice, error, cost in zip(options.choices, options.errors, options.costs, strict=True):
            assert cost == COST.model.dense(layer.spec) if choice is None else cost == space().price(layer.spec, choice)
            assert error == (0.0 if choice is None else errors[layer.spec.name][choice.scheme][choice.latent_size])


@given(st.floats(0, 1), st.floats(0.2, 8))
def test_the_plan_of_a_whole_network_is_that_of_its_layers_beside_what_is_fixed(share: float, decay: float) -> None:
    errors, cheapest = errors_of(decay), COST.total(space().cheapest)
    budget = cheapest + int(share * (COST.dense - cheapest))
    plan = lagrangian.allocate(space(), errors, budget)
    assert COST.total(plan) <= budget
    table = RankAllocator.from_options(layer_options(space(), errors))
    assert plan == table.plan(table.best(budget - space().fixed_cost))
    with pytest.raises(PlanError, match=f"a budget of {-space().fixed_cost} is below"):
        lagrangian.allocate(space(), errors, 0)


def test_other_errors_than_those_of_the_table_may_be_given() -> None:
    layer = LayerOptions("layer", (LayerChoice(1), LayerChoice(2), None), (0.5, 0.1, 0.0), (10, 20, 30))
    table = RankAllocator.from_options([layer])
    assert table.best(20).tolist() == [1]
    assert table.best(20, np.array([[0.1, 0.5, 0.0]])).tolist() == [0]

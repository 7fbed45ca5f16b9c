"""The closed form's plan is the proposal of least divergence of predictions times total expected error."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spaces import COST, space
from torch import nn
from torch.nn import functional as F

from ranksearch.allocation.closed_form import (
    EXPONENTS,
    MORE_EXPONENTS,
    SOLVED_ON,
    SUBSETS,
    choose,
    closed_form,
    propose,
    total_error,
)
from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.predictions import divergence, predict
from ranksearch.study.context import SearchContext


@given(st.floats(0, 1), st.floats(0.2, 8), st.integers(0, 2**16))
def test_proposals_fit_the_budget_and_each_is_made_once(share: float, decay: float, seed: int) -> None:
    here, generator = space(), torch.Generator().manual_seed(seed)
    errors = {}
    for layer in here.layers:
        strengths = 1 + torch.rand(len(layer.schemes), generator=generator)
        errors[layer.spec.name] = {
            scheme: [float((1 - rank / (high + 1)) ** (decay * strength)) for rank in range(high + 1)]
            for (scheme, high), strength in zip(layer.highs.items(), strengths, strict=True)
        }
    cheapest = COST.total(here.cheapest)
    budget = cheapest + int(share * (COST.dense - cheapest))
    plans = propose(here, errors, budget)
    assert 1 <= len(plans) == len(set(plans)) <= len(EXPONENTS) * len(SUBSETS)
    assert all(COST.total(plan) <= budget for plan in plans)
    assert all(layer.allows(here.values(plan)) for plan in plans for layer in here.layers)


def test_the_divergence_is_that_of_predictions() -> None:
    torch.manual_seed(0)
    dense, other = nn.Linear(6, 4), nn.Linear(6, 4)
    images = [torch.randn(size, 6) for size in (5, 3)]
    with torch.no_grad():
        x = torch.cat(images)
        expected = F.kl_div(other(x).log_softmax(1), dense(x).softmax(1), reduction="batchmean")
    ours, theirs = predict(other, images), predict(dense, images)
    assert divergence(theirs, theirs) == 0
    assert divergence(ours, theirs) == pytest.approx(float(expected), rel=1e-5)
    assert divergence(ours * float("nan"), theirs) == float("inf")


ERRORS = {"": {"full": [1.0, 0.5, 0.25, 0.125, 0.0625]}}


@given(st.permutations([1.0, 0.3, 0.3, 2.0]), st.booleans())
def test_the_plan_of_least_divergence_times_error_is_chosen(shifts: list[float], collapsed: bool) -> None:
    torch.manual_seed(0)
    dense, images = nn.Linear(6, 4), [torch.randn(9, 6)]
    errors = {"": {"full": [1.0, 0.44, 0.43, 0.42, 0.41]}}  # so near to each other that all are compared
    plans = [RankPlan({"": LayerChoice(index + 1)}) for index in range(len(shifts))]

    def build(plan: RankPlan) -> nn.Module:
        network = nn.Linear(6, 4)
        network.load_state_dict(dense.state_dict())
        with torch.no_grad():
            network.weight[0] += float("nan") if collapsed else shifts[plan.layers[""].latent_size - 1]
        return network

    def harm(plan: RankPlan) -> float:
        return total_error(plan, errors) * divergence(predict(build(plan), images), predict(dense, images))

    chosen = choose(plans, errors, build, images, predict(dense, images))
    if collapsed:
        assert chosen == min(plans, key=lambda plan: total_error(plan, errors))
    else:
        assert harm(chosen) == min(map(harm, plans))


def test_a_plan_that_leaves_all_dense_is_chosen() -> None:
    torch.manual_seed(0)
    dense, other, images = nn.Linear(6, 4), nn.Linear(6, 4), [torch.randn(9, 6)]
    plans = [RankPlan({"": LayerChoice(1)}), RankPlan()]
    assert choose(plans, ERRORS, lambda plan: other if len(plan) else dense, images, predict(dense, images)) == plans[1]


@pytest.mark.parametrize("curve", [[1.0, 0.1], [1.0, 0.1, 0.02]])
def test_no_network_is_built_where_there_is_nothing_to_compare(curve: list[float]) -> None:
    plans = [RankPlan({"": LayerChoice(rank)}) for rank in range(1, len(curve))]
    errors = {"": {"full": curve}}
    assert choose(plans, errors, lambda plan: pytest.fail("a network was built"), [], torch.zeros(())) == plans[-1]


def test_no_proposal_is_better_than_the_closed_form(context: SearchContext) -> None:
    budget = int(context.space.cost.dense / 4)

    def harm(plan: RankPlan) -> float:
        network = context.solve(plan, {}, SOLVED_ON)
        error = sum(context.errors[name][choice.scheme][choice.latent_size] for name, choice in plan)
        return error * divergence(*(predict(model, context.comparison) for model in (network, context.model)))

    [chosen] = closed_form(context, [budget])
    proposals = propose(context.space, context.errors, budget, MORE_EXPONENTS)
    assert chosen in proposals
    assert len(proposals) > 2
    assert context.affords_solving
    assert harm(chosen) == min(map(harm, proposals))


def test_plans_are_compared_on_images_that_were_not_calibrated_with(context: SearchContext) -> None:
    seen = {image.numpy().tobytes() for batch in context.calibration for image in batch.value}
    compared = [image.numpy().tobytes() for batch in context.comparison for image in batch.value]
    assert len(compared) > 200
    assert sum(image in seen for image in compared) == 0

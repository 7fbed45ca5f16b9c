"""A plan from a model and images alone."""

from __future__ import annotations

import copy

import pytest
import torch

import ranksearch
from ranksearch.allocation.closed_form import total_error
from ranksearch.batches import join
from ranksearch.cost.macs import count_macs
from ranksearch.errors import UserError
from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.search_space.rules import Rule, SpaceSettings
from ranksearch.study.context import SearchContext


@pytest.mark.parametrize("speedup", [1.5, 3.0])
def test_the_plan_s_network_reaches_the_speedup_and_the_model_is_as_it_was(
    context: SearchContext, speedup: float
) -> None:
    model, batches = context.model, context.calibration
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = ranksearch.find_plan(model, batches, speedup)
    network = ranksearch.apply_plan(plan, model, batches)
    shape = tuple(batches[0].value.shape[1:])
    assert count_macs(model, shape) >= speedup * count_macs(network, shape)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert ranksearch.find_plan(model, batches, speedup) == plan


def test_rules_serve_without_a_configuration(context: SearchContext) -> None:
    rules = SpaceSettings(rules=[Rule(match="layer1.*", keep="dense")])
    plan = ranksearch.find_plan(context.model, context.calibration, 1.3, rules)
    assert plan.layers
    assert not [name for name in plan.layers if name.startswith("layer1.")]


def test_too_few_images_and_too_high_speedups_are_refused(context: SearchContext) -> None:
    with pytest.raises(UserError, match="3 examples are too few to plan on: give 8 or more"):
        ranksearch.find_plan(context.model, [torch.zeros(3, 3, 8, 8)], 2)
    with pytest.raises(UserError, match="speedup=1000 exceeds"):
        ranksearch.find_plan(context.model, context.calibration, 1000)


def test_how_images_are_cut_into_batches_hardly_moves_the_plan(context: SearchContext) -> None:
    images = join(context.calibration).value
    plans = [ranksearch.find_plan(context.model, images.split(size), 2) for size in (len(images), 50)]
    first, second = (total_error(plan, context.errors) for plan in plans)
    assert first == pytest.approx(second, rel=0.05)


def test_images_or_weights_that_are_not_numbers_are_told_with_the_layer(context: SearchContext) -> None:
    images = torch.full((16, 3, 8, 8), float("nan"))
    with pytest.raises(UserError, match=r"the examples have values that are not finite: remove them"):
        ranksearch.find_plan(context.model, [images], 2)
    broken = copy.deepcopy(context.model)
    with torch.no_grad():
        broken.layer1[0].conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"'layer1.0.conv1' cannot be decomposed, .* not finite: check"):
        ranksearch.find_plan(broken, context.calibration, 2)
    with pytest.raises(UserError, match="0 examples are too few to plan on"):
        ranksearch.find_plan(context.model, [], 2)
    with pytest.raises(UserError, match="0 examples are too few to solve on: give 1 or more"):
        ranksearch.apply_plan(RankPlan({"layer1.0.conv1": LayerChoice(2)}), context.model, [])

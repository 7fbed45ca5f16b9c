"""A plan from a model and images alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ranksearch
from ranksearch.cost import count_macs
from ranksearch.errors import UserError
from ranksearch.problem import Problem
from ranksearch.rules import Rule, SpaceSettings


@pytest.mark.parametrize("speedup", [1.5, 3.0])
def test_the_plan_s_network_reaches_the_speedup_and_the_model_is_as_it_was(problem: Problem, speedup: float) -> None:
    model, batches = problem.model, problem.calibration
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = ranksearch.find_plan(model, batches, speedup)
    network = ranksearch.apply(plan, model, batches)
    shape = tuple(batches[0].shape[1:])
    assert count_macs(model, shape) >= speedup * count_macs(network, shape)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert ranksearch.find_plan(model, batches, speedup) == plan


def test_rules_serve_without_a_configuration(problem: Problem) -> None:
    rules = SpaceSettings(rules=[Rule(match="layer1.*", keep="dense")])
    plan = ranksearch.find_plan(problem.model, problem.calibration, 1.3, rules)
    assert plan.layers
    assert not [name for name in plan.layers if name.startswith("layer1.")]


def test_too_few_images_and_too_high_speedups_are_refused(problem: Problem) -> None:
    with pytest.raises(UserError, match="3 images are too few to plan on: give 8 or more"):
        ranksearch.find_plan(problem.model, [torch.zeros(3, 3, 8, 8)], 2)
    with pytest.raises(UserError, match="speedup=1000 exceeds"):
        ranksearch.find_plan(problem.model, problem.calibration, 1000)


def test_one_big_batch_is_as_good_as_many(problem: Problem) -> None:
    images = torch.cat(problem.calibration)
    assert isinstance(problem.model, nn.Module)
    assert ranksearch.find_plan(problem.model, [images], 2).layers

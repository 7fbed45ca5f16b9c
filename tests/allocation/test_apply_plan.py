"""A plan is schemes and latent sizes: it fits any weights of its architecture, and says so where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import CPU
from torch import nn

import ranksearch
from ranksearch.allocation.decomposed_model import decompose_model, hold_out
from ranksearch.allocation.lagrangian import allocate
from ranksearch.batches import join
from ranksearch.data.loaders import batches, draw, endless_batches
from ranksearch.data.splits import Splits
from ranksearch.errors import PlanError
from ranksearch.factorize import factorized_like, recalibrate_batchnorm
from ranksearch.formats.serialization import save_network
from ranksearch.models.cifar import cifar_resnet
from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.study.context import SearchContext
from ranksearch.training.loop import evaluate, train
from ranksearch.training.recipe import Recipe


def test_on_the_same_weights_and_images_it_is_what_a_trial_builds(context: SearchContext) -> None:
    plan = allocate(context.space, context.errors, context.space.cost.dense // 3)
    comparison, calibration = hold_out(context.calibration)
    assert len(join(comparison)) * 3 == len(join(calibration))
    trials = decompose_model(context.model, context.space, calibration, comparison, sequential_images=256)
    ours, theirs = ranksearch.apply_plan(plan, context.model, context.calibration), trials.build(plan)
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, rtol=1e-3, atol=1e-4), name  # sums in another order


def test_other_weights_of_the_architecture_keep_most_of_their_accuracy(
    context: SearchContext, splits: Splits, tmp_path: Path
) -> None:
    plan = allocate(context.space, context.errors, context.space.cost.dense // 2)
    save_network(tmp_path, context.build(plan), plan, {"_target_": "ranksearch.models.cifar_resnet"}, {})
    torch.manual_seed(7)
    other = cifar_resnet(8, 10)
    train(other, endless_batches(splits.train, 64, CPU, seed=7), Recipe(steps=100))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    images = torch.split(draw(splits.train, 256, CPU, seed=3), 64)
    network = ranksearch.apply_plan(tmp_path, other, images)

    def accuracy(model: nn.Module) -> float:
        return evaluate(model, batches(splits.validation, 256, CPU)).accuracy

    copied = factorized_like(other, plan)
    copied.load_state_dict(context.build(plan).state_dict())  # the factors of the first weights
    copied.load_state_dict(other.state_dict(), strict=False)
    recalibrate_batchnorm(copied, images)
    assert accuracy(network) > accuracy(other) - 0.1
    assert accuracy(copied) < accuracy(network) - 0.2
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())


def test_what_does_not_fit_is_named(context: SearchContext, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="the plan names 'layer9', which the model lacks: remove it"):
        ranksearch.apply_plan(RankPlan({"layer9": LayerChoice(2)}), context.model, context.calibration)
    with pytest.raises(PlanError, match=r"latent size 60 for 'layer1.0.conv1' exceeds its break-even rank"):
        ranksearch.apply_plan(RankPlan({"layer1.0.conv1": LayerChoice(60)}), context.model, context.calibration)
    with pytest.raises(PlanError, match=r"plan.json does not exist"):
        ranksearch.apply_plan(tmp_path, context.model, context.calibration)

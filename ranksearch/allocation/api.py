"""Find a closed-form plan for a model from unlabeled images, and apply a plan; needs no configuration or study."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.allocation.closed_form import closed_form
from ranksearch.allocation.decomposed_model import (
    DenseReference,
    build_network,
    decompose_layer,
    decompose_model,
    hold_out,
    sequential_inputs,
)
from ranksearch.batches import collect_inputs, require_running
from ranksearch.cost.base import NetworkCost
from ranksearch.cost.macs import MacsCost
from ranksearch.factorize.calibration import collect_statistics
from ranksearch.factorize.source_model import require_ready, untouched, unwrap
from ranksearch.factorize.surgery import factorized_like
from ranksearch.factorize.trace import profile_layers
from ranksearch.plan import RankPlan
from ranksearch.results.study_files import read_plan_file
from ranksearch.search_space.constraint import Constraint
from ranksearch.search_space.rules import SpaceSettings, build_space

FEWEST_IMAGES = 8


@torch.inference_mode(False)
@torch.no_grad()
def find_plan(
    model: nn.Module,
    batches: Iterable[Any],
    speedup: float,
    space: SpaceSettings | None = None,
    sequential_images: int = 256,
) -> RankPlan:
    """Find the closed-form plan for a speedup in MACs; `apply_plan` turns it into a network.

    Args:
        model: the trained network, in any mode; left unchanged. It maps `[B, C, H, W]` to logits `[B, num_classes]`,
            or to any output that contains a tensor of floats.
        batches: training images of equal size, `[B, C, H, W]` each, on the model's device, or tuples that begin with
            them, as a `DataLoader` yields; a few hundred in total. A quarter is held out to compare plans on.
        speedup: minimum ratio of dense MACs to the plan's MACs.
        space: rules for the options of each layer; None leaves stem and classifier dense, as `conf/space/default.yaml`.
        sequential_images: maximum number of images for sequential factorization, fewer if maps are large; 0 for none.

    Raises:
        UserError: there are too few images, images or weights are not finite, no plan reaches the speedup, or the
            model cannot be copied or run layer by layer.
    """
    model = unwrap(model)
    comparison, calibration = hold_out(collect_inputs(batches, FEWEST_IMAGES, "plan on"), FEWEST_IMAGES)
    example = comparison[0][:1]
    require_ready(model)
    with untouched(model):
        require_running(model, example)
    profile = profile_layers(model, example)
    dense = MacsCost().network(model, example.shape[1:])
    cost = NetworkCost(MacsCost(), dense, {spec.name: spec for spec in profile.layers})
    searched = build_space(space or SpaceSettings(), profile, cost)
    budget = Constraint(speedup).budget(searched)
    layers = decompose_model(model, searched, calibration, comparison, sequential_images=sequential_images)
    return closed_form(layers, [budget])[0]


@torch.inference_mode(False)
@torch.no_grad()
def apply_plan(
    plan: RankPlan | str | Path, model: nn.Module, batches: Iterable[Any], sequential_images: int = 256
) -> nn.Module:
    """Factorize a trained model by a plan, calibrating the factors on images.

    Args:
        plan: the plan, or the output folder of a search.
        model: a trained model of the architecture that the plan was made for, in any mode; left unchanged.
        batches: calibration images of equal size, `[B, C, H, W]` each, on the model's device, or tuples that begin with
            them; a few hundred in total. Of 32 or more, a quarter is held out to decide how BatchNorm is adapted.
        sequential_images: maximum number of images for sequential factorization, where each layer is solved on the
            outputs of the factorized layers before it; fewer if feature maps are large; 0 solves layers independently.

    Returns:
        The factorized network with adapted BatchNorm statistics, in eval mode, ready for fine-tuning.

    Raises:
        PlanError: the plan does not fit the model, or the folder contains no plan.
        DataError: there are no images, or images or weights are not finite.
        UserError: the model cannot be copied or run layer by layer.
    """
    if not isinstance(plan, RankPlan):
        plan = RankPlan.from_json(read_plan_file(Path(plan))["layers"])
    model = unwrap(model)
    factorized_like(model, plan)  # fails early if the plan does not fit, before any image is read
    comparison, calibration = hold_out(collect_inputs(batches, 1, "solve on"))
    with untouched(model):
        require_running(model, calibration[0][:1])
    statistics = collect_statistics(model, calibration, plan.layers, {choice.scheme for _, choice in plan})
    decompositions = {
        name: decompose_layer(model, name, statistics.get(name), None, [choice.scheme]) for name, choice in plan
    }
    inputs = sequential_inputs(model, calibration, sequential_images)
    reference = DenseReference.from_model(model, calibration, comparison)
    return build_network(model, plan, decompositions, reference, inputs)

"""A plan from a model and some images, without a configuration, a study or labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ranksearch.batches import all_inputs, require_running
from ranksearch.calibrated import decompose_layers, held_back
from ranksearch.closed_form import closed_form
from ranksearch.constraint import Constraint
from ranksearch.cost import MacsCost, NetworkCost
from ranksearch.factorize import profile_layers, require_ready, untouched, unwrap
from ranksearch.plan import RankPlan
from ranksearch.rules import SpaceSettings, build_space

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
    """Find the closed form's plan of a speedup in MACs; give it to `apply` for the network.

    Args:
        model: the trained network, in any mode, from `[B, C, H, W]` to logits `[B, num_classes]`, or to whatever else
            has a tensor of floats in it; is not touched.
        batches: training images, `[B, C, H, W]` each, of one size, on the model's device, or tuples that begin with
            them, as a `DataLoader` gives them; a few hundred in all. A quarter of them are kept from the
            decompositions, to compare plans on.
        speedup: dense MACs over the plan's, at least.
        space: what each layer may have; None leaves stem and classifier dense, as `conf/space/default.yaml` does.
        sequential_images: how many of the images layers are solved on one after another; fewer where their maps are
            large; 0 solves each by itself.

    Raises:
        UserError: there are too few images, they or the weights are not finite, no plan reaches the speedup, or the
            model cannot be copied or run layer by layer.
    """
    model = unwrap(model)
    comparison, calibration = held_back(all_inputs(batches, FEWEST_IMAGES, "plan on"), FEWEST_IMAGES)
    example = comparison[0][:1]
    require_ready(model)
    with untouched(model):
        require_running(model, example)
    profile = profile_layers(model, example)
    dense = MacsCost().network(model, example.shape[1:])
    cost = NetworkCost(MacsCost(), dense, {spec.name: spec for spec in profile.layers})
    searched = build_space(space or SpaceSettings(), profile, cost)
    budget = Constraint(speedup).budget(searched)
    layers = decompose_layers(model, searched, calibration, comparison, sequential_images)
    [plan] = closed_form(layers, [budget])
    return plan

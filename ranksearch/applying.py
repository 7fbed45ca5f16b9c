"""A plan that was found for one set of weights, applied to another of the same architecture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.batches import all_inputs, require_running
from ranksearch.calibrated import DenseReference, build_network, decompose_layer, held_back, sequential_inputs
from ranksearch.factorize import collect_statistics, factorized_like, untouched, unwrap
from ranksearch.loading import read_plan_file
from ranksearch.plan import RankPlan


@torch.inference_mode(False)
@torch.no_grad()
def apply(
    plan: RankPlan | str | Path, model: nn.Module, batches: Iterable[Any], sequential_images: int = 256
) -> nn.Module:
    """Factorize a trained model by a plan: its own weights, solved for its own inputs.

    Args:
        plan: the plan, or a folder that a search wrote.
        model: of the architecture that the plan was made for, in any mode; is not touched.
        batches: training images to solve on, `[B, C, H, W]` each, of one size, on the model's device, or tuples that
            begin with them; a few hundred in all. Of 32 or more, a quarter is kept back to decide how BatchNorm's
            statistics are adapted.
        sequential_images: of the first, how many the layers are solved on one after another, each for what those
            before it leave it; fewer where their maps are large; 0 solves each by itself.

    Returns:
        The factorized network, BatchNorm adapted, in eval mode; fine-tune it as any other.

    Raises:
        PlanError: the plan does not fit the model, or its folder holds none.
        DataError: there are no images, or they or the weights are not finite.
        UserError: the model cannot be copied or run layer by layer.
    """
    if not isinstance(plan, RankPlan):
        plan = RankPlan.from_json(read_plan_file(Path(plan))["layers"])
    model = unwrap(model)
    factorized_like(model, plan)  # what does not fit shows here, before any image is seen
    comparison, calibration = held_back(all_inputs(batches, 1, "solve on"))
    with untouched(model):
        require_running(model, calibration[0][:1])
    statistics = collect_statistics(model, calibration, plan.layers, {choice.scheme for _, choice in plan})
    decompositions = {
        name: decompose_layer(model, name, statistics.get(name), None, [choice.scheme]) for name, choice in plan
    }
    inputs = sequential_inputs(model, calibration, sequential_images)
    reference = DenseReference.from_model(model, calibration, comparison)
    return build_network(model, plan, decompositions, reference, inputs)

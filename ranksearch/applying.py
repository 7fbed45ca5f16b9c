"""A plan that was found for one set of weights, applied to another of the same architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ranksearch.factorize import (
    affordable_images,
    collect_statistics,
    decompose_schemes,
    factorize_model,
    factorize_sequentially,
    factorized_like,
    recalibrate_batchnorm,
)
from ranksearch.loading import read_plan_file
from ranksearch.plan import RankPlan


def apply(
    plan: RankPlan | str | Path, model: nn.Module, batches: Sequence[Tensor], sequential_images: int = 256
) -> nn.Module:
    """Factorize a trained model by a plan: its own weights, solved for its own inputs.

    Args:
        plan: the plan, or a folder that a search wrote.
        model: of the architecture that the plan was made for; is not touched.
        batches: training images to solve on, `[B, C, H, W]` each, of one size, on the model's device; a few hundred
            in all.
        sequential_images: of the first, how many the layers are solved on one after another, each for what those
            before it leave it; fewer where their maps are large; 0 solves each by itself.

    Returns:
        The factorized network, BatchNorm recalibrated, in eval mode; fine-tune it as any other.

    Raises:
        PlanError: the plan does not fit the model, or its folder holds none.
    """
    if not isinstance(plan, RankPlan):
        plan = RankPlan.from_json(read_plan_file(Path(plan))["layers"])
    factorized_like(model, plan)  # what does not fit shows here, before any image is seen
    schemes = {choice.scheme for _, choice in plan}
    statistics = collect_statistics(model, batches, plan.layers, schemes)
    decompositions = {
        name: decompose_schemes(model.get_submodule(name), statistics.get(name), schemes=[choice.scheme])  # type: ignore[arg-type]  # a layer, as was seen
        for name, choice in plan
    }
    images = torch.cat(list(batches))
    images = images[: min(sequential_images, affordable_images(model, images[:1]))]
    if len(images) > 1:
        network = factorize_sequentially(model, plan, decompositions, images)
    else:
        network = factorize_model(model, plan, decompositions)
    recalibrate_batchnorm(network, batches)
    return network.eval()

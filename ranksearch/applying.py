"""A plan that was found for one set of weights, applied to another of the same architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from ranksearch.calibrated import build_network, decompose_layer, sequential_inputs
from ranksearch.errors import DataError
from ranksearch.factorize import collect_statistics, factorized_like
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
        DataError: there are no images, or they or the weights are not finite.
    """
    if not isinstance(plan, RankPlan):
        plan = RankPlan.from_json(read_plan_file(Path(plan))["layers"])
    factorized_like(model, plan)  # what does not fit shows here, before any image is seen
    if not sum(map(len, batches)):
        raise DataError("0 images are too few to solve on: give some, better hundreds")
    statistics = collect_statistics(model, batches, plan.layers, {choice.scheme for _, choice in plan})
    decompositions = {
        name: decompose_layer(model, name, statistics.get(name), None, [choice.scheme]) for name, choice in plan
    }
    inputs = sequential_inputs(model, batches, sequential_images)
    return build_network(model, plan, decompositions, batches, inputs)

"""A plan from a model and some images, without a configuration, a study or labels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ranksearch.calibrated import decompose_layers
from ranksearch.closed_form import closed_form
from ranksearch.constraint import Constraint
from ranksearch.cost import MacsCost, NetworkCost
from ranksearch.errors import UserError
from ranksearch.factorize import profile_layers
from ranksearch.plan import RankPlan
from ranksearch.rules import SpaceSettings, build_space

FEWEST_IMAGES = 8


@torch.no_grad()
def find_plan(
    model: nn.Module,
    batches: Iterable[Tensor],
    speedup: float,
    space: SpaceSettings | None = None,
    sequential_images: int = 256,
) -> RankPlan:
    """Find the closed form's plan of a speedup in MACs; give it to `apply` for the network.

    Args:
        model: the trained network, in eval mode, from `[B, C, H, W]` to logits `[B, num_classes]`; is not touched.
        batches: training images, `[B, C, H, W]` each, of one size, on the model's device; a few hundred in all. A
            quarter of them are kept from the decompositions, to compare plans on.
        speedup: dense MACs over the plan's, at least.
        space: what each layer may have; None leaves stem and classifier dense, as `conf/space/default.yaml` does.
        sequential_images: how many of the images layers are solved on one after another; fewer where their maps are
            large; 0 solves each by itself.

    Raises:
        UserError: there are too few images, they or the weights are not finite, or no plan reaches the speedup.
    """
    known = list(batches)
    count = sum(map(len, known))
    if count < FEWEST_IMAGES:
        raise UserError(f"{count} images are too few to plan on: give {FEWEST_IMAGES} or more, better hundreds")
    images = torch.cat(known)
    profile = profile_layers(model, images[:1])
    dense = MacsCost().network(model, images.shape[1:])
    cost = NetworkCost(MacsCost(), dense, {spec.name: spec for spec in profile.layers})
    searched = build_space(space or SpaceSettings(), profile, cost)
    budget = Constraint(speedup).budget(searched)
    unseen, size = len(images) // 4, len(known[0])
    comparison, calibration = (torch.split(part, size) for part in (images[:unseen], images[unseen:]))
    layers = decompose_layers(model, searched, calibration, comparison, sequential_images)
    [plan] = closed_form(layers, [budget])
    return plan

"""The closed form's plan of a budget: a few proposals, and the one that keeps the network's predictions best.

A plan's expected errors, added up over layers, rank plans well while they are small, but no one sum does at every
budget: an error of the pointwise scheme harms more than an equal one of a strip, and at high speedups one layer that
is nearly lost harms more than many that lose a little. So proposals are made under several such views, each a matter
of milliseconds, and what they do to the predictions on a few training images decides; no label is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.errors import PlanError
from ranksearch.factorize import factorize_model, recalibrate_batchnorm
from ranksearch.plan import SCHEMES, RankPlan
from ranksearch.problem import Problem
from ranksearch.space import Errors, SearchSpace

SUBSETS = (SCHEMES, ("full", "vertical", "horizontal"), ("full", "pointwise"), ("full",))
EXPONENTS = (1.0, 2.0)


def propose(space: SearchSpace, errors: Errors, budget: int) -> list[RankPlan]:
    """The plans of least total error within a budget, under several views of what an error harms; each plan once.

    Args:
        space: what a plan may choose; where a layer has none of a view's schemes, the view takes those that it has.
        errors: layer name -> scheme -> the error to expect at rank 0, 1, ...
        budget: for the whole network, not below the cheapest plan of the space.
    """
    plans = []
    for schemes in SUBSETS:
        restricted = space.restricted(schemes)
        for exponent in EXPONENTS:
            harms = {
                layer: {scheme: [error**exponent for error in curve] for scheme, curve in curves.items()}
                for layer, curves in errors.items()
            }
            try:
                plans.append(restricted.allocate(harms, budget))
            except PlanError:
                break  # these schemes alone do not reach the budget
    return list(dict.fromkeys(plans))


@torch.no_grad()
def divergence(network: nn.Module, dense: nn.Module, images: Iterable[Tensor]) -> float:
    """Kullback-Leibler divergence of a network's predictions from the dense one's, in nats, the mean over images.

    Args:
        network: in eval mode; maps `[B, C, H, W]` to logits `[B, num_classes]`.
        dense: the same.
        images: batches.
    """
    total, count = 0.0, 0
    for batch in images:
        ours, theirs = (F.log_softmax(model(batch).double(), dim=1) for model in (network, dense))
        total += float(F.kl_div(ours, theirs, reduction="sum", log_target=True))
        count += len(batch)
    return total / max(count, 1)


def nearest(
    plans: Sequence[RankPlan], build: Callable[[RankPlan], nn.Module], dense: nn.Module, images: Sequence[Tensor]
) -> RankPlan:
    """The plan whose network's predictions diverge least from the dense one's; of equals, the first."""
    if len(plans) == 1:
        return plans[0]
    return min(plans, key=lambda plan: divergence(build(plan), dense, images))


def closed_form(problem: Problem, budget: int) -> RankPlan:
    """The plan of a budget, before any trial.

    Args:
        problem: that is searched.
        budget: for the whole network, not below the cheapest plan of the space.
    """

    def build(plan: RankPlan) -> nn.Module:
        network = factorize_model(problem.model, plan, problem.decompositions)
        recalibrate_batchnorm(network, problem.calibration)
        return network

    return nearest(propose(problem.space, problem.errors, budget), build, problem.model, problem.comparison)

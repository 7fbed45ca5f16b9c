"""The closed form's plan of a budget: a few proposals, and the one that leaves the network best off.

A plan's expected errors, added up over layers, rank plans well while they are small, but no one sum does at every
budget: an error of the pointwise scheme harms more than an equal one of a strip, and at high speedups one layer that
is nearly lost harms more than many that lose a little. So proposals are made under several such views, each a matter
of milliseconds, and what they do to the predictions on a few training images decides, together with their total error:
where the predictions have all but collapsed, they say little of what fine-tuning will recover, and the errors still do.
No label is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from torch import Tensor, nn

from ranksearch.batches import divergence, predict
from ranksearch.calibrated import Calibrated
from ranksearch.errors import PlanError
from ranksearch.plan import SCHEMES, RankPlan
from ranksearch.space import Errors, SearchSpace

# Schemes that a proposal is restricted to, for what an equal error harms differs between them.
SUBSETS = (SCHEMES, ("full", "vertical", "horizontal"), ("full", "pointwise"), ("full",))
# Of the errors that are added up: squares weigh the layers that lose most.
EXPONENTS = (1.0, 2.0)
# Images that layers are solved on for a comparison: a quarter of a trial's, which ranks plans as well.
COMPARED_ON = 64
# A plan of more total error than this times the least is not compared: the predictions have never preferred one.
HOPEFUL = 1.25


def closed_form_budgets(space: SearchSpace, budget: int, count: int, first: int | None = None) -> list[int]:
    """Budgets to begin with, evenly on a logarithmic scale from the constraint's downwards.

    The lowest is a quarter of the constraint's, or the lowest that the space reaches.

    Args:
        space: what a plan may choose.
        budget: the constraint's.
        count: of budgets on that scale.
        first: of these, how many to give; None for all.
    """
    lowest = space.lowest_budget(budget)
    step = (lowest / budget) ** (1 / max(count - 1, 1))
    return [max(int(budget * step**index), lowest) for index in range(count if first is None else min(count, first))]


def propose(space: SearchSpace, errors: Errors, budget: int) -> list[RankPlan]:
    """The plans of least total error within a budget, under several views of what an error harms; each plan once.

    Args:
        space: what a plan may choose; where a layer has none of a view's schemes, the view takes those that it has.
        errors: layer name -> scheme -> the expected error at rank 0, 1, ...
        budget: for the whole network, not below the cheapest plan of the space.
    """
    views = [
        {
            layer: {scheme: [error**exponent for error in curve] for scheme, curve in curves.items()}
            for layer, curves in errors.items()
        }
        for exponent in EXPONENTS
    ]
    plans = []
    for schemes in SUBSETS:
        restricted = space.restricted(schemes)
        with suppress(PlanError):  # these schemes alone do not reach the budget
            plans += [restricted.allocate(harms, budget) for harms in views]
    return list(dict.fromkeys(plans))


def choose(
    plans: Sequence[RankPlan],
    errors: Errors,
    build: Callable[[RankPlan], nn.Module],
    images: Sequence[Tensor],
    dense: Tensor,
) -> RankPlan:
    """The plan of the least divergence times total expected error; of equals, that of less error.

    Building a network is what takes time, so that plans of far more error than another are left out.

    Args:
        plans: one or more.
        errors: layer name -> scheme -> the expected error at rank 0, 1, ...
        build: gives a plan's network, in eval mode.
        images: batches to predict on.
        dense: the dense network's predictions of these, from `predict`.
    """
    totals = {plan: total_error(plan, errors) for plan in plans}
    least = min(totals.values())
    hopeful = [plan for plan, total in totals.items() if total <= HOPEFUL * least]
    if len(hopeful) == 1:
        return hopeful[0]

    def harm(plan: RankPlan) -> tuple[float, float]:
        return totals[plan] * divergence(predict(build(plan), images), dense), totals[plan]

    return min(hopeful, key=harm)


def total_error(plan: RankPlan, errors: Errors) -> float:
    """The expected errors of a plan's layers, added up."""
    return sum(errors[name][choice.scheme][choice.latent_size] for name, choice in plan)


def closed_form(layers: Calibrated, budgets: Sequence[int]) -> list[RankPlan]:
    """The plans of some budgets, before any trial; each costs a few passes over the calibration images.

    Args:
        layers: of the network, with their space.
        budgets: for the whole network, none below the cheapest plan of the space.
    """

    def build(plan: RankPlan) -> nn.Module:
        return layers.build(plan, COMPARED_ON)

    dense = layers.reference.predictions
    proposals = (propose(layers.space, layers.harms, budget) for budget in budgets)
    return [choose(plans, layers.errors, build, layers.comparison, dense) for plans in proposals]

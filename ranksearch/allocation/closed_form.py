"""Closed-form plans: a few candidates per budget, of which the one closest to the dense network is chosen.

No single sum of a plan's expected errors ranks plans well at every budget: an error of the pointwise scheme costs more
accuracy than an equal error of a vertical or horizontal scheme, and at high speedups one layer with a large error costs
more than many with small errors. Candidates are therefore allocated under several error metrics. The choice minimizes
total error times divergence from the dense network's predictions on a few images without labels: once predictions have
nearly collapsed, divergence says little about what fine-tuning recovers, while the errors still do.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from torch import Tensor, nn

from ranksearch.allocation.decomposed_model import DecomposedModel
from ranksearch.allocation.lagrangian import allocate
from ranksearch.errors import PlanError
from ranksearch.plan import SCHEMES, RankPlan
from ranksearch.predictions import divergence, predict
from ranksearch.progress import Tick, unseen
from ranksearch.search_space.space import Errors, SearchSpace

# Scheme subsets that candidates are restricted to: equal errors of different schemes cost different accuracy.
SUBSETS = (SCHEMES, ("full", "vertical", "horizontal"), ("full", "pointwise"), ("full",))
# Powers of the errors that are summed; squares emphasize the layers with the largest errors.
EXPONENTS = (1.0, 2.0)
# The same where networks are compared more exactly, so that more candidates pay.
MORE_EXPONENTS = (0.75, *EXPONENTS)
# Images that networks are solved on in turn to compare plans, where maps are small.
SOLVED_ON = 64
# Candidates whose total error exceeds this multiple of the lowest are discarded: divergence seldom prefers one.
HOPEFUL = 1.15


def closed_form_budgets(space: SearchSpace, budget: int, count: int, first: int | None = None) -> list[int]:
    """Return initial budgets, log-spaced from the constraint's budget down to `SearchSpace.lowest_budget`.

    Args:
        space: the search space.
        budget: budget of the constraint.
        count: number of budgets on the scale.
        first: number of budgets to return, from the highest; None for all.
    """
    lowest = space.lowest_budget(budget)
    step = (lowest / budget) ** (1 / max(count - 1, 1))
    return [max(int(budget * step**index), lowest) for index in range(count if first is None else min(count, first))]


def propose(space: SearchSpace, errors: Errors, budget: int, exponents: Sequence[float] = EXPONENTS) -> list[RankPlan]:
    """Return the distinct plans of low total error within a budget, one per exponent and scheme subset.

    Args:
        space: the search space; a layer that has none of a subset's schemes keeps all of its own.
        errors: layer name -> scheme -> expected error at rank 0, 1, ...
        budget: budget of the whole network, at least the cost of the space's cheapest plan.
        exponents: powers of the errors that are summed.
    """

    def powers(curves: Mapping[str, Sequence[float]], exponent: float) -> dict[str, list[float]]:
        return {scheme: [error**exponent for error in curve] for scheme, curve in curves.items()}

    views = [{layer: powers(curves, exponent) for layer, curves in errors.items()} for exponent in exponents]
    plans = []
    for schemes in SUBSETS:
        restricted = space.restricted(schemes)
        with suppress(PlanError):  # the budget may be out of reach of this subset
            plans += [allocate(restricted, view, budget) for view in views]
    return list(dict.fromkeys(plans))


def choose(
    plans: Sequence[RankPlan],
    errors: Errors,
    build: Callable[[RankPlan], nn.Module],
    images: Sequence[Any],
    dense: Tensor,
) -> RankPlan:
    """Return the plan with the lowest product of divergence and total expected error; ties go to the lower error.

    Building networks dominates the run time, so plans of much higher error than the lowest are skipped.

    Args:
        plans: candidate plans, at least one.
        errors: layer name -> scheme -> expected error at rank 0, 1, ...
        build: function that builds a plan's network, in eval mode.
        images: batches of examples to predict on; see `read_batch`.
        dense: the dense network's predictions for them, from `predict`.
    """
    totals = {plan: total_error(plan, errors) for plan in plans}
    lowest = min(totals.values())
    candidates = [plan for plan, total in totals.items() if total <= HOPEFUL * lowest]
    if len(candidates) == 1:
        return candidates[0]

    def objective(plan: RankPlan) -> tuple[float, float]:
        return totals[plan] * divergence(predict(build(plan), images), dense), totals[plan]

    return min(candidates, key=objective)


def total_error(plan: RankPlan, errors: Errors) -> float:
    """Return the sum of the expected errors of a plan's layers."""
    return sum(errors[name][choice.scheme][choice.latent_size] for name, choice in plan)


def closed_form(model: DecomposedModel, budgets: Sequence[int], *, tick: Tick = unseen) -> list[RankPlan]:
    """Return one closed-form plan per budget; each takes a few passes over the calibration images.

    Args:
        model: the decomposed model.
        budgets: budgets of the whole network, each at least the cost of the space's cheapest plan.
        tick: is called for every budget.
    """
    if model.effort.compare == "no":
        return [allocate(model.space, model.weighted_errors, budget) for budget in budgets]
    dense, chosen = model.reference.predictions, list[RankPlan]()
    tick("comparing plans", 0, len(budgets))
    for budget in budgets:
        exponents = MORE_EXPONENTS if model.affords_solving else EXPONENTS
        plans = propose(model.space, model.weighted_errors, budget, exponents)
        chosen.append(choose(plans, model.errors, _builder(model), model.comparison, dense))
        tick("comparing plans", len(chosen), len(budgets))
    return chosen


def _builder(model: DecomposedModel) -> Callable[[RankPlan], nn.Module]:
    """Return the function that builds networks to compare plans by.

    Solving in turn gains more for some schemes than for others, which networks that are built roughly do not show; but
    where maps are large, it takes several times as long.
    """
    if model.effort.compare == "in turn":
        return partial(model.solve, solved={})
    if model.affords_solving:
        return partial(model.solve, solved={}, images=SOLVED_ON)
    return partial(model.sketch, solved={})

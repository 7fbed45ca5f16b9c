"""The trials of a study: closed-form plans first, then the sampler's, each scored by accuracy and cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from optuna import Study, Trial, TrialPruned
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from ranksearch.closed_form import closed_form, closed_form_budgets
from ranksearch.errors import BehindError, DivergedError, PlanError, first_line
from ranksearch.guided import GuidedSampler
from ranksearch.plan import RankPlan
from ranksearch.problem import Problem
from ranksearch.pruning import PruningSettings, Standing, why_pruned
from ranksearch.queueing import is_known, queue, queue_next, take_up
from ranksearch.records import (
    CLOSED_FORM,
    COST,
    DRAWN_TWICE,
    INTERRUPTED,
    REASON,
    RESULT,
    RUNGS,
    TrialRecord,
    finished,
    read_trial,
    standings,
)
from ranksearch.sampler import FeasibleSampler, distributions
from ranksearch.storage.database_storage import was_cut_off
from ranksearch.study import StudySettings
from ranksearch.trial import TrialResult, evaluate_plan

PLANS = "ranksearch:closed_form_plans"
NO_PRUNING = PruningSettings(rungs=[])
FAILED = float("nan"), float("nan"), None
OnResult = Callable[[Trial, TrialResult], None]

log = logging.getLogger(__name__)


def closed_form_plans(study: Study, problem: Problem, budgets: Sequence[int]) -> list[RankPlan]:
    """The closed form's plans of some budgets, each once.

    The study keeps them, so that a run that continues it does not compare them again.
    """
    storage, study_id = study._storage, study._study_id
    start, kept = time.perf_counter(), _kept_plans(storage.get_study_system_attrs(study_id).get(PLANS), problem)
    wanted = [budget for budget in budgets if str(budget) not in kept]
    if wanted:
        found = closed_form(problem, wanted)
        kept |= {str(budget): plan.to_json() for budget, plan in zip(wanted, found, strict=True)}
        storage.set_study_system_attr(study_id, PLANS, kept)
        log.info("closed form: plans of %d budgets in %.1f s", len(wanted), time.perf_counter() - start)
    return list(dict.fromkeys(RankPlan.from_json(kept[str(budget)]) for budget in budgets))


def _kept_plans(stored: Any, problem: Problem) -> dict[str, Any]:
    """What a study keeps of the closed form, budget -> plan, without what is damaged."""
    kept = {}
    for budget, layers in stored.items() if isinstance(stored, Mapping) else ():
        try:
            problem.space.cost.of(RankPlan.from_json(layers))
        except (PlanError, KeyError):
            continue
        kept[budget] = layers
    return kept


def run_trials(
    study: Study,
    problem: Problem,
    settings: StudySettings,
    sampler: BaseSampler,
    on_trial: Callable[[TrialRecord], None],
    pruning: PruningSettings = NO_PRUNING,
    on_result: OnResult = lambda trial, result: None,
) -> None:
    """Run trials until the study has its number of finished ones.

    Args:
        study: from `study.open_study`.
        problem: what is searched.
        settings: how long.
        sampler: any Optuna sampler for the study's objectives.
        on_trial: is told every trial that ends.
        pruning: which trials are pruned.
        on_result: is told what became of a plan, while its trial can still be written to.

    Raises:
        KeyboardInterrupt: the person asked to stop; everything finished is in the study.
    """
    if isinstance(sampler, GuidedSampler):
        study.sampler = sampler.knowing(problem.space, problem.harms, problem.budget)
    else:
        study.sampler = FeasibleSampler(sampler, problem.space, problem.budget)

    def tell(_: Study, trial: FrozenTrial) -> None:
        on_trial(read_trial(trial))

    def objective(trial: Trial) -> Sequence[float]:
        return _objective(study, trial, problem, pruning, on_result)

    # One at a time, for others may work on the same study.
    while True:
        try:
            if finished(trials := study.get_trials(deepcopy=False)) >= settings.n_trials:
                return
            if isinstance(study.sampler, GuidedSampler):
                queue_next(study, trials, study.sampler, problem.space)
            study.optimize(objective, n_trials=1, callbacks=[tell])
        except (UpdateFinishedTrialError, ValueError) as error:
            if isinstance(error, ValueError) and not str(error).startswith("Cannot tell a "):
                raise
            log.warning("another process took this one for dead and gave its trial up: going on")
        except (StorageInternalError, AssertionError, UnboundLocalError) as error:
            # Where the value of a trial cannot be told, Optuna stumbles over that in turn.
            cause = error if isinstance(error, StorageInternalError) else error.__context__
            if cause is None or not was_cut_off(cause):
                raise
            log.warning("the connection to the study's database broke: going on")


def queue_closed_form(study: Study, problem: Problem, settings: StudySettings) -> None:
    """Put the closed form's plans into the queue, those that the study does not have; one process at a time does it.

    Args:
        study: from `study.open_study`.
        problem: what is searched.
        settings: how many.
    """
    count = settings.closed_form_trials
    budgets = closed_form_budgets(problem.space, problem.budget, count, settings.n_trials)
    if len(study.directions) == 1:
        budgets = budgets[:1]  # a cheaper plan is no better
    for plan in closed_form_plans(study, problem, budgets):
        values = problem.space.values(plan)
        if not is_known(study, values):
            queue(study, problem.space, values, closed_form=True)


def _objective(
    study: Study, trial: Trial, problem: Problem, pruning: PruningSettings, on_result: OnResult
) -> Sequence[float]:
    try:
        accuracy, cost, result = _score(study, trial, problem, pruning)
        if result is not None:
            on_result(trial, result)
        return (accuracy, cost)[: len(study.directions)]
    except (KeyboardInterrupt, StorageInternalError):
        trial.set_user_attr(REASON, INTERRUPTED)
        values, space = trial.params, problem.space
        if values.keys() == distributions(space).keys() and all(layer.allows(values) for layer in space.layers):
            # The plan is not lost: a later run takes it up.
            queue(study, space, values, trial.user_attrs.get(CLOSED_FORM, False))
        raise


def _score(
    study: Study, trial: Trial, problem: Problem, pruning: PruningSettings
) -> tuple[float, float, TrialResult | None]:
    """A trial's accuracy and cost, with what else there is to know; NaN and None where it failed."""
    plan = _feasible_plan(study, trial, problem)
    if plan is None:
        trial.set_user_attr(REASON, DRAWN_TWICE)
        return FAILED
    steps = problem.fine_tuning.steps
    on_rung = _looks(study, trial, problem.space.cost.of(plan), steps, pruning)
    try:
        _, result = evaluate_plan(problem, plan, problem.fine_tuning, pruning.steps(steps), on_rung)
    except BehindError as error:
        _prune(trial, str(error))
    except (DivergedError, torch.OutOfMemoryError) as error:
        broken = f"out of memory ({first_line(error)}): lower calibration.sequential_images"
        trial.set_user_attr(REASON, str(error) if isinstance(error, DivergedError) else broken)
        # Optuna ends a trial of no value as FAIL and goes on.
        return FAILED
    trial.storage.set_trial_system_attr(trial._trial_id, RESULT, result.to_json())
    return result.accuracy, result.cost, result


def _feasible_plan(study: Study, trial: Trial, problem: Problem) -> RankPlan | None:
    """The plan that a trial is for, which ends it here if it may not be built; None where another has drawn it too."""
    try:
        taken, is_anothers = take_up(study, trial, problem.space)
    except ValueError as error:  # someone enqueued a scheme that Optuna does not find among the choices
        _prune(trial, f"outside the space: {first_line(error)}")
    values = taken.params
    outside = [layer for layer in problem.space.layers if not layer.allows(values)]
    if outside:
        name, scheme = outside[0].spec.name, values.get(outside[0].scheme_parameter)
        by_scheme = "" if scheme is None else f" by scheme '{scheme}'"
        _prune(trial, f"outside the space: latent size {values[name]}{by_scheme} for '{name}'")
    if is_anothers:
        return None
    plan = problem.space.plan(values)
    cost = problem.space.cost.of(plan)
    trial.set_constraint("budget", cost - problem.budget)
    if cost > problem.budget:
        _prune(trial, f"infeasible: {cost} {problem.space.cost.model.unit} exceed the budget of {problem.budget}")
    if COST not in taken.user_attrs:  # from the queue it comes with it
        trial.set_user_attr(COST, cost)
    return plan


def _looks(study: Study, trial: Trial, cost: int, steps: int, pruning: PruningSettings) -> Callable[[int, float], None]:
    """What is done with a trial's accuracy on the way: it is kept, compared with others', and may end the trial."""
    seen: dict[int, float] = {}

    def on_rung(step: int, accuracy: float) -> None:
        seen[step] = accuracy
        trial.set_user_attr(RUNGS, {str(step): accuracy for step, accuracy in seen.items()})
        others = [other for other in standings(study) if other.number != trial.number]
        reason = why_pruned(pruning, steps, step, Standing(trial.number, cost, seen), others)
        if reason is None and len(study.directions) == 1:
            trial.report(accuracy, step)
            if trial.should_prune():
                reason = f"{type(study.pruner).__name__}: {100 * accuracy:.2f} % after {step} steps"
        if reason is not None:
            raise BehindError(reason)

    return on_rung


def _prune(trial: Trial, reason: str) -> NoReturn:
    trial.set_user_attr(REASON, reason)
    raise TrialPruned(reason)

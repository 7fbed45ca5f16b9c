"""The trials of a study: closed-form plans first, then the sampler's, each scored by accuracy and cost."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from optuna import Study, Trial, TrialPruned
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from ranksearch.allocation.closed_form import closed_form, closed_form_budgets
from ranksearch.errors import BehindError, DivergedError, PlanError, first_line
from ranksearch.plan import RankPlan
from ranksearch.results import TrialRecord, TrialResult, attributes
from ranksearch.results.trials import LearningCurve, count_finished, learning_curves, read_trial
from ranksearch.samplers.base import PlanSampler, distributions
from ranksearch.samplers.feasible import FeasibleSampler
from ranksearch.storage.rdb_storage import was_cut_off
from ranksearch.study.context import SearchContext
from ranksearch.study.evaluate import evaluate_plan
from ranksearch.study.pruning import pruning_reason
from ranksearch.study.queue import claim, enqueue, enqueue_next, has_trial
from ranksearch.study.settings import PruningSettings, StudySettings

FAILED = float("nan"), float("nan"), None
OnResult = Callable[[Trial, TrialResult], None]

log = logging.getLogger(__name__)


def run_trials(
    study: Study,
    context: SearchContext,
    settings: StudySettings,
    sampler: BaseSampler,
    on_trial: Callable[[TrialRecord], None],
    *,
    pruning: PruningSettings | None = None,
    on_result: OnResult = lambda trial, result: None,
) -> None:
    """Run trials until the study has its number of finished ones.

    Args:
        study: from `create.open_study`.
        context: what is searched.
        settings: number of trials.
        sampler: any Optuna sampler for the study's objectives.
        on_trial: called with every trial that ends.
        pruning: which trials are pruned; None prunes nothing.
        on_result: called with the result of a plan, while its trial can still be written to.

    Raises:
        KeyboardInterrupt: the run was interrupted; everything finished is in the study.
    """
    pruning = PruningSettings(rungs=[]) if pruning is None else pruning
    if isinstance(sampler, PlanSampler):
        study.sampler = sampler.bind(context.space, context.weighted_errors, context.budget)
    else:
        study.sampler = FeasibleSampler(sampler, context.space, context.budget)
    objective = _Objective(study, context, pruning, on_result)
    # One trial at a time, because other processes may work on the same study.
    while count_finished(trials := study.get_trials(deepcopy=False)) < settings.n_trials:
        try:
            if isinstance(study.sampler, PlanSampler):
                enqueue_next(study, trials, study.sampler, context.space)
            study.optimize(objective, n_trials=1, callbacks=[lambda _, trial: on_trial(read_trial(trial))])
        except (UpdateFinishedTrialError, ValueError) as error:
            if not objective.was_ended_elsewhere(error):
                raise
            log.warning("a trial was failed by another worker after a missed heartbeat; continuing")
        except (StorageInternalError, AssertionError, UnboundLocalError) as error:
            # Optuna fails in turn if it cannot store the value of a trial.
            cause = error if isinstance(error, StorageInternalError) else error.__context__
            if cause is None or not was_cut_off(cause):
                raise
            log.warning("the connection to the study's database was lost; continuing")


class _Objective:
    """Optuna's objective: a trial's plan, evaluated."""

    def __init__(self, study: Study, context: SearchContext, pruning: PruningSettings, on_result: OnResult) -> None:
        self._study, self._context, self._pruning, self._on_result = study, context, pruning, on_result
        self._number: int | None = None
        self._error: BaseException | None = None

    def __call__(self, trial: Trial) -> Sequence[float]:
        self._number, self._error = trial.number, None
        try:
            accuracy, cost, result = self._score(trial)
            if result is not None:
                self._on_result(trial, result)
            return (accuracy, cost)[: len(self._study.directions)]
        except BaseException as error:
            self._error = error
            if isinstance(error, KeyboardInterrupt | StorageInternalError):
                trial.set_user_attr(attributes.REASON, attributes.INTERRUPTED)
                self._requeue(trial)
            raise

    def was_ended_elsewhere(self, error: Exception) -> bool:
        """Return whether Optuna refused the outcome of the last trial because another worker has failed it."""
        if isinstance(error, UpdateFinishedTrialError):
            return True
        if self._number is None or error is self._error:
            return False
        return self._study.get_trials(deepcopy=False)[self._number].state == TrialState.FAIL

    def _requeue(self, trial: Trial) -> None:
        """Put the plan of an interrupted trial back into the queue, for a later run."""
        values, space = trial.params, self._context.space
        if values.keys() == distributions(space).keys() and all(layer.allows(values) for layer in space.layers):
            enqueue(self._study, space, values, trial.user_attrs.get(attributes.CLOSED_FORM, False))

    def _score(self, trial: Trial) -> tuple[float, float, TrialResult | None]:
        """Return a trial's accuracy and cost, with its whole result; NaN and None if it failed."""
        context, plan = self._context, self._feasible_plan(trial)
        if plan is None:
            trial.set_user_attr(attributes.REASON, attributes.DRAWN_TWICE)
            return FAILED
        rungs, on_rung = self._pruning.rung_steps(context.fine_tuner.steps), self._make_rung_callback(trial, plan)
        try:
            _, result = evaluate_plan(context, plan, context.fine_tuner, rungs=rungs, on_rung=on_rung)
        except BehindError as error:
            _prune(trial, str(error))
        except (DivergedError, torch.OutOfMemoryError) as error:
            memory = f"out of memory ({first_line(error)}): lower calibration.sequential_images"
            trial.set_user_attr(attributes.REASON, str(error) if isinstance(error, DivergedError) else memory)
            return FAILED  # Optuna ends a trial without a value as FAIL, and continues
        attributes.write_trial_attribute(trial, attributes.RESULT, result.to_json())
        return result.accuracy, result.cost, result

    def _feasible_plan(self, trial: Trial) -> RankPlan | None:
        """Return the plan of a trial, or None if another has drawn it too; prune it if it is infeasible."""
        context, space = self._context, self._context.space
        try:
            claimed, is_taken = claim(self._study, trial, space)
        except ValueError as error:  # someone enqueued a scheme that is not among the choices
            _prune(trial, f"outside the space: {first_line(error)}")
        values = claimed.params
        outside = next((layer for layer in space.layers if not layer.allows(values)), None)
        if outside is not None:
            name, scheme = outside.spec.name, values.get(outside.scheme_parameter)
            by_scheme = "" if scheme is None else f" by scheme '{scheme}'"
            _prune(trial, f"outside the space: latent size {values[name]}{by_scheme} for '{name}'")
        if is_taken:
            return None
        plan = space.plan(values)
        cost = space.cost.total(plan)
        trial.set_constraint("budget", cost - context.budget)
        if cost > context.budget:
            _prune(trial, f"infeasible: {cost} {space.cost.model.unit} exceed the budget of {context.budget}")
        if attributes.COST not in claimed.user_attrs:  # from the queue it comes with it
            trial.set_user_attr(attributes.COST, cost)
        return plan

    def _make_rung_callback(self, trial: Trial, plan: RankPlan) -> Callable[[int, float], None]:
        """Make a callback that stores a trial's accuracy at a rung and prunes it if others are well ahead."""
        study, pruning, steps = self._study, self._pruning, self._context.fine_tuner.steps
        cost, accuracies = self._context.space.cost.total(plan), dict[int, float]()

        def on_rung(step: int, accuracy: float) -> None:
            accuracies[step] = accuracy
            trial.set_user_attr(attributes.RUNGS, {str(step): accuracy for step, accuracy in accuracies.items()})
            others = [curve for curve in learning_curves(study) if curve.number != trial.number]
            reason = pruning_reason(pruning, steps, step, LearningCurve(trial.number, cost, accuracies), others)
            if reason is None and len(study.directions) == 1:
                trial.report(accuracy, step)
                if trial.should_prune():
                    reason = f"{type(study.pruner).__name__}: {100 * accuracy:.2f} % after {step} steps"
            if reason is not None:
                raise BehindError(reason)

        return on_rung


def _prune(trial: Trial, reason: str) -> NoReturn:
    trial.set_user_attr(attributes.REASON, reason)
    raise TrialPruned(reason)


def enqueue_closed_form(study: Study, storage: BaseStorage, context: SearchContext, settings: StudySettings) -> None:
    """Enqueue the closed form's plans that the study does not have; one process at a time may call this."""
    budgets = closed_form_budgets(context.space, context.budget, settings.closed_form_trials, settings.n_trials)
    if len(study.directions) == 1:
        budgets = budgets[:1]  # a cheaper plan is no better
    for plan in closed_form_plans(study.study_name, storage, context, budgets):
        values = context.space.values(plan)
        if not has_trial(study, values):
            enqueue(study, context.space, values, closed_form=True)


def closed_form_plans(
    study: str, storage: BaseStorage, context: SearchContext, budgets: Sequence[int]
) -> list[RankPlan]:
    """Return the closed form's plans of some budgets, each once; the study keeps them for a run that continues it."""
    start, stored = time.perf_counter(), attributes.read_study_attribute(storage, study, attributes.CLOSED_FORM_PLANS)
    plans = _stored_plans(stored, context)
    missing = [budget for budget in budgets if str(budget) not in plans]
    if missing:
        new = zip(missing, closed_form(context, missing), strict=True)
        plans |= {str(budget): plan.to_json() for budget, plan in new}
        attributes.write_study_attribute(storage, study, attributes.CLOSED_FORM_PLANS, plans)
        log.info("closed form: plans of %d budgets in %.1f s", len(missing), time.perf_counter() - start)
    return list(dict.fromkeys(RankPlan.from_json(plans[str(budget)]) for budget in budgets))


def _stored_plans(stored: Any, context: SearchContext) -> dict[str, Any]:
    """Return the plans that a study keeps, by budget, without damaged ones."""
    plans = {}
    for budget, layers in stored.items() if isinstance(stored, Mapping) else ():
        try:
            context.space.cost.total(RankPlan.from_json(layers))
        except (PlanError, KeyError):
            continue
        plans[budget] = layers
    return plans

"""Plans wait in the study as whole trials, so that a process that claims one and dies leaves no half of a plan."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

from ranksearch.results.attributes import CLOSED_FORM, COST, FIXED, REASON
from ranksearch.samplers.base import PlanSampler, distributions, suggest
from ranksearch.search_space.space import SearchSpace


def enqueue(study: Study, space: SearchSpace, values: Mapping[str, Any], closed_form: bool) -> None:
    """Add a waiting trial with values of all parameters, in one step, as any number of processes take trials."""
    state, choices = TrialState.WAITING, distributions(space)
    attrs = {CLOSED_FORM: closed_form, COST: space.cost.total(space.plan(values))}
    study.add_trial(optuna.create_trial(state=state, params=dict(values), distributions=choices, user_attrs=attrs))


def enqueue_next(study: Study, trials: Sequence[FrozenTrial], sampler: PlanSampler, space: SearchSpace) -> None:
    """Add the bound sampler's next plan, unless a trial is waiting already, or there is no other plan."""
    if any(trial.state == TrialState.WAITING for trial in trials):
        return
    values = sampler.propose(study, trials, len(trials))
    if values is not None:
        enqueue(study, space, values, closed_form=False)


def has_trial(study: Study, values: Mapping[str, Any]) -> bool:
    """Return whether the study has a trial of these values, other than a failed one."""
    return any(
        (trial.params or trial.system_attrs.get(FIXED)) == values
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.FAIL
    )


def claim(study: Study, trial: Trial, space: SearchSpace) -> tuple[FrozenTrial, bool]:
    """Draw the values that a trial lacks, and check whether another trial has the same plan.

    Two trials may have one plan if both were drawn before either could be seen. A plan from the queue is visible from
    the first, so of two such trials the earlier one continues. A plan that a trial drew for itself, as the queue was
    empty, becomes visible later than its number says, and yields to any other; if both yield, it may be drawn again.

    Args:
        study: the study of the trial.
        trial: a running trial.
        space: what is searched.

    Returns:
        The trial with all its values, and whether it should leave its plan to another trial.

    Raises:
        ValueError: a value that was enqueued by hand is none of the choices.
    """
    trials = study.get_trials(deepcopy=False)
    own = trials[trial.number]
    if own.params.keys() != distributions(space).keys():
        suggest(trial, space)
        trials = study.get_trials(deepcopy=False)
        own = trials[trial.number]
    if FIXED in own.system_attrs:
        return own, False  # enqueued by hand, on purpose
    queued, states = CLOSED_FORM in own.user_attrs, {TrialState.RUNNING}
    # Other samplers may well draw a plan whose trial has ended.
    if queued or isinstance(study.sampler, PlanSampler):
        states |= {TrialState.WAITING, TrialState.COMPLETE, TrialState.PRUNED}
    taken = any(
        other.params == own.params
        and other.state in states
        and (other.number < own.number if queued else other.number != own.number)
        # An interrupted trial has just put this plan into the queue.
        and (other.state != TrialState.RUNNING or REASON not in other.user_attrs)
        for other in trials
    )
    if taken and not queued and isinstance(study.sampler, PlanSampler):
        # Without any new plan to draw, the trial keeps the one that it has.
        taken = study.sampler.propose(study, trials[: own.number], own.number) is not None
    return own, taken

"""Plans wait in the study as trials of their own, whole: a process that takes one up and dies leaves no half of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

from ranksearch.guided import AGAIN, GuidedSampler
from ranksearch.records import CLOSED_FORM, COST, FIXED, REASON
from ranksearch.sampler import distributions, suggest
from ranksearch.space import SearchSpace


def queue(study: Study, space: SearchSpace, values: Mapping[str, Any], closed_form: bool) -> None:
    """Add a waiting trial with all its parameters, in one step.

    Args:
        study: that any number of processes take trials from.
        space: that the values belong to.
        values: of all parameters.
        closed_form: whether the plan is one of the closed form's.
    """
    waiting = optuna.create_trial(
        state=TrialState.WAITING,
        params=dict(values),
        distributions=distributions(space),
        user_attrs={CLOSED_FORM: closed_form, COST: space.cost.of(space.plan(values))},
    )
    study.add_trial(waiting)


def queue_next(study: Study, trials: Sequence[FrozenTrial], sampler: GuidedSampler, space: SearchSpace) -> None:
    """Add the sampler's next plan, unless something waits already, or there is no other plan.

    Args:
        study: that any number of processes take trials from.
        trials: all that it has.
        sampler: that knows the problem.
        space: what is searched.
    """
    if any(trial.state == TrialState.WAITING for trial in trials):
        return
    values = sampler.propose(study, trials, len(trials))
    if values is not None:
        queue(study, space, values, closed_form=False)


def is_known(study: Study, values: Mapping[str, Any]) -> bool:
    """Whether the study has a trial of these values, other than one that failed."""
    return any(
        (trial.params or trial.system_attrs.get(FIXED)) == values
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.FAIL
    )


def take_up(study: Study, trial: Trial, space: SearchSpace) -> tuple[FrozenTrial, bool]:
    """Draw what a trial does not have from the queue, and look whether another trial has the same plan.

    Two may have it where both were drawn before either could be seen. A plan from the queue is there for all to see
    from the first, so of two such the one that came first goes on. A plan that a trial drew for itself, because others
    had emptied the queue, shows later than its number says, and yields to any other. So no plan is tried twice; one
    that both gave up may be drawn again.

    Args:
        study: the trial's.
        trial: that runs.
        space: what is searched.

    Returns:
        The trial with all its values, and whether it should leave them to another.

    Raises:
        ValueError: a value that someone enqueued is none of the choices.
    """
    trials = study.get_trials(deepcopy=False)
    ours = trials[trial.number]
    if ours.params.keys() != distributions(space).keys():
        suggest(trial, space)
        trials = study.get_trials(deepcopy=False)
        ours = trials[trial.number]
    if AGAIN in ours.user_attrs or FIXED in ours.system_attrs:
        return ours, False  # someone wants it again
    queued, states = CLOSED_FORM in ours.user_attrs, {TrialState.RUNNING}
    # Other samplers may well draw what they have seen the end of.
    if queued or isinstance(study.sampler, GuidedSampler):
        states |= {TrialState.WAITING, TrialState.COMPLETE, TrialState.PRUNED}
    return ours, any(
        other.params == ours.params
        and other.state in states
        and (other.number < ours.number if queued else other.number != ours.number)
        # An interrupted one has just put this one into the queue.
        and (other.state != TrialState.RUNNING or REASON not in other.user_attrs)
        for other in trials
    )

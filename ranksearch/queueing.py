"""Plans wait in the study as trials of their own, whole: a process that takes one up and dies leaves no half of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna import Study, Trial
from optuna.trial import TrialState

from ranksearch.guided import AGAIN, GuidedSampler
from ranksearch.records import CLOSED_FORM, FIXED, REASON
from ranksearch.sampler import distributions
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
        user_attrs={CLOSED_FORM: closed_form},
    )
    study.add_trial(waiting)


def queue_next(study: Study, sampler: GuidedSampler, space: SearchSpace) -> None:
    """Add the sampler's next plan, unless something waits already, or there is no other plan.

    Args:
        study: that any number of processes take trials from.
        sampler: that knows the problem.
        space: what is searched.
    """
    trials = study.get_trials(deepcopy=False)
    if any(trial.state == TrialState.WAITING for trial in trials):
        return
    values = sampler.propose(study, len(trials))
    if values is not None:
        queue(study, space, values, closed_form=False)


def is_known(study: Study, values: Mapping[str, Any]) -> bool:
    """Whether the study has a trial of these values, other than one that failed."""
    return any(
        (trial.params or trial.system_attrs.get("fixed_params")) == values
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.FAIL
    )


def is_drawn_twice(study: Study, trial: Trial) -> bool:
    """Whether another process drew the same plan first: both drew before either could see the other's.

    Args:
        study: the trial's.
        trial: that runs.
    """
    trials = study.get_trials(deepcopy=False)
    ours = next(frozen for frozen in trials if frozen.number == trial.number)
    if AGAIN in ours.user_attrs or FIXED in ours.system_attrs:
        return False  # someone wants it again
    states = {TrialState.RUNNING}
    if CLOSED_FORM in ours.user_attrs:  # from the queue, where no plan is put that a trial has had
        states |= {TrialState.WAITING, TrialState.COMPLETE, TrialState.PRUNED}
    return any(
        other.number < ours.number
        and other.state in states
        and other.params == ours.params
        # An interrupted one has just put this one into the queue.
        and (other.state != TrialState.RUNNING or REASON not in other.user_attrs)
        for other in trials
    )

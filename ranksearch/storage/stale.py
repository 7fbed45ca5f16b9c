"""Trials whose process is gone: how they are told from slow ones, and what becomes of their plans."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.storages import fail_stale_trials
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.trial import FrozenTrial, TrialState

from ranksearch.records import CLOSED_FORM, COST, FIXED

log = logging.getLogger(__name__)

# A plan that took its process down so often is given up.
RETRIES = 3
RETRY = "retry"
KEPT = (CLOSED_FORM, COST)


class SignsOfLife:
    """Signs of life as this process sees them, by its own clock alone: machines may disagree on the time."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, float]] = {}

    def silent(self, signs: Mapping[int, Any], seconds: float) -> list[int]:
        """Which trials have given the same sign for longer than some time.

        Args:
            signs: trial -> any value that changes as long as its process lives, of all that are running.
            seconds: that a living process may be silent.
        """
        now = time.monotonic()
        self._seen = {
            trial: self._seen[trial] if trial in self._seen and self._seen[trial][0] == sign else (sign, now)
            for trial, sign in signs.items()
        }
        return [trial for trial, (_, since) in self._seen.items() if now - since > seconds]


def take_up_again(study: Study, trial: FrozenTrial) -> None:
    """Put the plan of a trial whose process is gone back into the queue; one that was not yet whole is lost.

    Args:
        study: the trial's.
        trial: that was ended for want of a sign of life.
    """
    fixed = {FIXED: trial.system_attrs[FIXED]} if FIXED in trial.system_attrs else {}
    whole = CLOSED_FORM in trial.user_attrs or COST in trial.user_attrs
    retries = trial.user_attrs.get(RETRY, 0) + 1
    if retries > RETRIES or not (whole or fixed):
        return
    again = optuna.create_trial(
        state=TrialState.WAITING,
        params=trial.params if whole else {},
        distributions=trial.distributions if whole else {},
        user_attrs={RETRY: retries, **{key: trial.user_attrs[key] for key in KEPT if key in trial.user_attrs}},
        system_attrs=fixed,
    )
    study.add_trial(again)


def wait_for_others(study: Study) -> None:
    """Wait until no other process is at a trial, where their signs of life tell; those whose process is gone end."""
    told = False
    while is_heartbeat_enabled(study._storage):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)
        running = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        if not running:
            return
        if not told:
            log.info("waiting for %d trials that other processes are at, or were when they were killed", running)
            told = True
        time.sleep(1)

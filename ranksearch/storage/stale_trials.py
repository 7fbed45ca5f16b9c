"""Detection of trials whose process died, and requeueing of their plans."""

import logging
import time
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from ranksearch.results.attributes import CLOSED_FORM, COST, FIXED, RETRY

log = logging.getLogger(__name__)

# Maximum number of times that a plan is requeued.
RETRIES = 3
KEPT = (CLOSED_FORM, COST)


class HeartbeatMonitor:
    """Changes of heartbeats timed by this process's own clock, since the clocks of machines may differ."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, float]] = {}

    def silent(self, signs: Mapping[int, Any], seconds: float) -> list[int]:
        """Return the trials whose heartbeat has been unchanged for longer than some time.

        Args:
            signs: trial id -> heartbeat, a value that changes while the process lives, of all running trials.
            seconds: maximum time without a change in a living process.
        """
        now = time.monotonic()
        self._seen = {
            trial: self._seen[trial] if trial in self._seen and self._seen[trial][0] == sign else (sign, now)
            for trial, sign in signs.items()
        }
        return [trial for trial, (_, since) in self._seen.items() if now - since > seconds]


def requeue_stale_trial(study: Study, trial: FrozenTrial) -> None:
    """Requeue the plan of a trial whose process died; an incomplete plan is lost, but for enqueued parameters."""
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


def wait_for_running_trials(study: Study, storage: BaseStorage) -> None:
    """Wait until no other process runs a trial, failing stale ones; without heartbeats, return at once."""
    interval, logged = getattr(storage, "get_heartbeat_interval", lambda: None), False
    while interval() is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)
        running = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        if not running:
            return
        if not logged:
            log.info("waiting for %d trials of other processes, which are running or were killed", running)
            logged = True
        time.sleep(1)

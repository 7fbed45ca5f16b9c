"""Studies in a database: many processes may open it at once, and it may be away for a while."""

from __future__ import annotations

import logging
import random
import time
import warnings
from collections.abc import Callable, Container
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, or_
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from ranksearch.errors import UserError
from ranksearch.storage.reading import Parameters, read_trials
from ranksearch.storage.stale import SignsOfLife, take_up_again

log = logging.getLogger(__name__)

Made = TypeVar("Made")
# Tables made by several processes at once: all but one fail, and find them made the next time.
TRIES = 8
# Seconds that a database may be away before a process gives up.
PATIENCE = 600


class Database(RDBStorage):
    """Optuna's storage in a relational database.

    It writes and reads all parameters of a trial at once, and only once, ends trials whose process was killed before
    its first sign of life, and waits where the database is away.

    Args:
        url: SQLAlchemy's.
        heartbeat_seconds: how often a running trial says that it is alive; one that has not for twice as long is ended,
            and its plan is put back into the queue.
        engine: what SQLAlchemy's `create_engine` is given.

    Raises:
        sqlalchemy.exc.DatabaseError: it cannot be reached, or refuses.
        ImportError: its driver is not installed.
        RuntimeError: its tables are of another version of Optuna.
    """

    def __init__(self, url: str, heartbeat_seconds: int, engine: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(
                url,
                engine_kwargs=engine,
                heartbeat_interval=heartbeat_seconds,
                heartbeat_stale_trial_callback=take_up_again,
            )
        self._watch = SignsOfLife()
        self._plans: dict[
            int, Parameters
        ] = {}  # parameters and their distributions, of trials that get no more of them

    def _set_trial_param_without_commit(
        self,
        session: Session,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        """Add a row, without asking first what other trials have: a study's space is the same for all."""
        row = models.TrialParamModel(
            trial_id=trial_id,
            param_name=param_name,
            param_value=param_value_internal,
            distribution_json=distribution_to_json(distribution),
        )
        session.add(row)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read one trial."""
        found = self._read(models.TrialModel.trial_id == trial_id)
        if not found:
            raise KeyError(models.NOT_FOUND_MSG)
        return found[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Read some trials; what of their parameters is known already, and changes no more, is not asked for again."""
        trial = models.TrialModel
        wanted = [
            trial.study_id == study_id,
            or_(trial.trial_id > trial_id_greater_than, trial.trial_id.in_(included_trial_ids)),
        ]
        if states is not None:
            wanted.append(trial.state.in_([state for state in TrialState if state in states]))
        return self._read(*wanted)

    def _read(self, *wanted: Any) -> list[FrozenTrial]:
        with _create_scoped_session(self.scoped_session) as session:
            return read_trials(session, wanted, self._plans)

    def record_heartbeat(self, trial_id: int) -> None:
        """Say that a trial is alive; a connection that breaks meanwhile must not end the thread that says so."""
        try:
            super().record_heartbeat(trial_id)
        except UserError:  # which the trial's own thread meets as well
            return
        except StorageInternalError as error:
            if not was_cut_off(error):
                raise

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """Those whose heartbeat is old by the database's clock, and those that have had none for as long by ours."""
        old: list[int] = super()._get_stale_trial_ids(study_id)
        trial, heartbeat = models.TrialModel, models.TrialHeartbeatModel
        with _create_scoped_session(self.scoped_session) as session:
            never = (
                session.query(trial.trial_id)
                .outerjoin(heartbeat, heartbeat.trial_id == trial.trial_id)
                .filter(trial.study_id == study_id, trial.state == TrialState.RUNNING, heartbeat.trial_id.is_(None))
            )
            ids = [row.trial_id for row in never]
        assert self.heartbeat_interval is not None
        return [*old, *self._watch.silent(dict.fromkeys(ids), 2 * self.heartbeat_interval)]


def open_database(url: str, heartbeat_seconds: int, engine: dict[str, Any]) -> Database:
    """Open a database, whoever else does at the same moment; from then on wait where it is away.

    Args:
        url: SQLAlchemy's.
        heartbeat_seconds: see `Database`.
        engine: see `Database`.

    Raises:
        sqlalchemy.exc.DatabaseError: see `Database`.
        ImportError: see `Database`.
        RuntimeError: see `Database`.
    """
    database = _in_turn(lambda: Database(url, heartbeat_seconds, engine))
    event.listen(database.engine, "do_connect", _wait_for_connection)
    database.engine.dispose()
    return database


def was_cut_off(error: BaseException) -> bool:
    """Whether a storage failed because its connection was lost, and a new one may do."""
    cause = error.__cause__
    given_up = getattr(getattr(cause, "orig", None), "given_up", False)
    return bool(getattr(cause, "connection_invalidated", False)) and not given_up


def _in_turn(make: Callable[[], Made]) -> Made:
    for attempt in range(TRIES):
        try:
            return make()
        except DatabaseError as error:
            if attempt == TRIES - 1 or not _is_a_race(error):
                raise
            # Of random length, or the same processes would meet again.
            time.sleep(random.uniform(0.05, 0.2) * 2**attempt)
    raise AssertionError


def _is_a_race(error: DatabaseError) -> bool:
    said = str(error.orig).lower()
    return any(sign in said for sign in ("already exists", "unique", "duplicate", "locked", "deadlock"))


def _wait_for_connection(dialect: Any, record: object, arguments: list[Any], settings: dict[str, Any]) -> Any:
    """Connect as often as it takes, told once."""
    start, told = time.monotonic(), False
    while True:
        try:
            connection = dialect.connect(*arguments, **settings)
        except dialect.loaded_dbapi.OperationalError as error:
            if time.monotonic() - start > PATIENCE:
                error.given_up = True
                raise
            if not told:
                log.warning("the study's database is away: waiting for up to %d s", PATIENCE)
                told = True
            time.sleep(1)
        else:
            if told:
                log.warning("the study's database is back")
            return connection

"""Studies in a relational database, which many processes may open at once and which may be unreachable for a while."""

import json
import logging
import random
import time
import warnings
from collections.abc import Container, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, inspect, or_, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from ranksearch.errors import UserError, first_line, shorten
from ranksearch.results.attributes import CLOSED_FORM
from ranksearch.storage.optuna_private import models, scoped_session
from ranksearch.storage.stale_trials import HeartbeatMonitor, requeue_stale_trial

log = logging.getLogger(__name__)

# Attempts to open a database: of processes that create its tables at once, all but one fail and retry.
TRIES = 8
# Seconds that a database may be unreachable before a process gives up.
PATIENCE = 600
# Parameter values and their distributions, by name.
Parameters = tuple[dict[str, Any], dict[str, BaseDistribution]]


def _read_rows(session: Session, wanted: Sequence[Any], cached: dict[int, Parameters]) -> list[FrozenTrial]:
    """Read trials in the order of creation; ``cached``, trial id -> final parameters, is used and extended in place."""
    trial, value, step = models.TrialModel, models.TrialValueModel, models.TrialIntermediateValueModel
    rows: Sequence[Any] = session.scalars(select(trial).where(*wanted).order_by(trial.trial_id)).all()
    ids = [row.trial_id for row in rows]
    plans = cached | _plans(session, [trial_id for trial_id in ids if trial_id not in cached])
    values = _by_trial(session, ids, value, value.objective, value.value, value.value_type)
    steps = _by_trial(session, ids, step, step.step, step.intermediate_value, step.intermediate_value_type)
    user, system = (
        _by_trial(session, ids, table, table.key, table.value_json)
        for table in (models.TrialUserAttributeModel, models.TrialSystemAttributeModel)
    )
    trials = []
    for row in rows:
        params, distributions = plans.get(row.trial_id, ({}, {}))
        scores = sorted(values.get(row.trial_id, []), key=itemgetter(0))
        read = FrozenTrial(
            number=row.number,
            state=row.state,
            value=None,
            values=[value.stored_repr_to_value(*stored) for _, *stored in scores] or None,
            datetime_start=row.datetime_start,
            datetime_complete=row.datetime_complete,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={key: json.loads(text) for key, text in user.get(row.trial_id, [])},
            system_attrs={key: json.loads(text) for key, text in system.get(row.trial_id, [])},
            intermediate_values={
                at: step.stored_repr_to_intermediate_value(*stored) for at, *stored in steps.get(row.trial_id, [])
            },
            trial_id=row.trial_id,
        )
        if params and (read.state.is_finished() or CLOSED_FORM in read.user_attrs):
            cached[row.trial_id] = (params, distributions)
        trials.append(read)
    return trials


def _plans(session: Session, trials: Sequence[int]) -> dict[int, Parameters]:
    param, plans = models.TrialParamModel, {}
    stored = _by_trial(session, trials, param, param.param_name, param.param_value, param.distribution_json)
    for trial_id, entries in stored.items():
        distributions = {name: _distribution(text) for name, _, text in entries}
        params = {name: distributions[name].to_external_repr(value) for name, value, _ in entries}
        plans[trial_id] = params, distributions
    return plans


def _by_trial(session: Session, trials: Sequence[int], table: Any, *columns: Any) -> dict[int, list[list[Any]]]:
    """Return, by trial, columns of a table's rows in the order in which they were written."""
    rows: dict[int, list[list[Any]]] = {}
    if trials:
        query = select(table.trial_id, *columns).where(table.trial_id.in_(trials))
        for trial_id, *entries in session.execute(query.order_by(inspect(table).primary_key[0])):
            rows.setdefault(trial_id, []).append(entries)
    return rows


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    distribution: BaseDistribution = json_to_distribution(text)
    return distribution


class Database(RDBStorage):
    """Optuna's storage in a relational database.

    Writes and reads all parameters of a trial at once and only once, fails trials whose process died before its first
    heartbeat, and, opened by `open_database`, waits while the database is unreachable.

    Args:
        url: SQLAlchemy URL.
        heartbeat_seconds: heartbeat interval; a trial silent for twice as long is failed, and its plan is requeued.
        engine: keyword arguments of SQLAlchemy's `create_engine`.

    Raises:
        sqlalchemy.exc.DatabaseError: the database cannot be reached, or refuses the connection.
        ImportError: the database's driver is not installed.
        RuntimeError: the tables are of another version of Optuna.
    """

    def __init__(self, url: str, heartbeat_seconds: int, engine: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(
                url, engine, heartbeat_interval=heartbeat_seconds, heartbeat_stale_trial_callback=requeue_stale_trial
            )
        self._watch = HeartbeatMonitor()
        self._plans: dict[int, Parameters] = {}  # trial id -> final parameters and their distributions

    def _set_trial_param_without_commit(
        self,
        session: Session,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        """Add a row without querying other trials first: a study's search space is the same for all."""
        text = distribution_to_json(distribution)
        row = models.TrialParamModel(
            trial_id=trial_id, param_name=param_name, param_value=param_value_internal, distribution_json=text
        )
        session.add(row)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read one trial."""
        trials = self._read(models.TrialModel.trial_id == trial_id)
        if not trials:
            raise KeyError(models.NOT_FOUND_MSG)
        return trials[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Read trials; cached parameters that are final are not queried again."""
        trial = models.TrialModel
        new = or_(trial.trial_id > trial_id_greater_than, trial.trial_id.in_(included_trial_ids))
        wanted = [trial.study_id == study_id, new]
        if states is not None:
            wanted.append(trial.state.in_([state for state in TrialState if state in states]))
        return self._read(*wanted)

    def _read(self, *wanted: Any) -> list[FrozenTrial]:
        with scoped_session(self.scoped_session) as session:
            try:
                return _read_rows(session, wanted, self._plans)
            except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
                damage = f"the study's database is damaged ({shorten(first_line(error), 120)})"
                raise UserError(f"{damage}: move it away, or restore it from a backup") from error

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat of a trial; a lost connection must not end the heartbeat thread."""
        try:
            super().record_heartbeat(trial_id)
        except UserError:  # the trial's own thread meets it as well
            return
        except StorageInternalError as error:
            if not was_cut_off(error):
                raise

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """Return trials whose heartbeat is stale by the database's clock, or missing for as long by the local clock."""
        old: list[int] = super()._get_stale_trial_ids(study_id)
        trial, heartbeat = models.TrialModel, models.TrialHeartbeatModel
        with scoped_session(self.scoped_session) as session:
            never = (
                session.query(trial.trial_id)
                .outerjoin(heartbeat, heartbeat.trial_id == trial.trial_id)
                .filter(trial.study_id == study_id, trial.state == TrialState.RUNNING, heartbeat.trial_id.is_(None))
            )
            ids = [row.trial_id for row in never]
        assert self.heartbeat_interval is not None
        return [*old, *self._watch.silent(dict.fromkeys(ids), 2 * self.heartbeat_interval)]


def open_database(url: str, heartbeat_seconds: int, engine: dict[str, Any]) -> Database:
    """Open a database, retrying on races with other processes; later connections wait while it is unreachable.

    Args:
        url: SQLAlchemy URL.
        heartbeat_seconds: heartbeat interval; see `Database`.
        engine: keyword arguments of `create_engine`; see `Database`.

    Raises:
        sqlalchemy.exc.DatabaseError, ImportError, RuntimeError: see `Database`.
    """
    for attempt in range(TRIES):
        try:
            database = Database(url, heartbeat_seconds, engine)
            break
        except DatabaseError as error:
            if attempt == TRIES - 1 or not _is_a_race(error):
                raise
            # A random delay, so that the same processes do not collide again.
            time.sleep(random.uniform(0.05, 0.2) * 2**attempt)
    event.listen(database.engine, "do_connect", _wait_for_connection)
    database.engine.dispose()
    return database


def was_cut_off(error: BaseException) -> bool:
    """Return whether a storage failed because its connection was lost, so that a new one may succeed."""
    cause = error.__cause__
    given_up = getattr(getattr(cause, "orig", None), "given_up", False)
    return bool(getattr(cause, "connection_invalidated", False)) and not given_up


def _is_a_race(error: DatabaseError) -> bool:
    message = str(error.orig).lower()
    return any(sign in message for sign in ("already exists", "unique", "duplicate", "locked", "deadlock"))


def _wait_for_connection(dialect: Any, record: object, arguments: list[Any], settings: dict[str, Any]) -> Any:
    """Connect, retrying for up to `PATIENCE` seconds; an outage is logged once."""
    start, logged = time.monotonic(), False
    while True:
        try:
            connection = dialect.connect(*arguments, **settings)
        except dialect.loaded_dbapi.OperationalError as error:
            if time.monotonic() - start > PATIENCE:
                error.given_up = True
                raise
            if not logged:
                log.warning("the study's database is unreachable: waiting for up to %d s", PATIENCE)
                logged = True
            time.sleep(1)
        else:
            if logged:
                log.warning("the study's database is reachable again")
            return connection

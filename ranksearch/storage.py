"""Where studies are kept. `conf/storage` points here, or at any Optuna storage."""

from __future__ import annotations

import sqlite3
import warnings
from pathlib import Path

from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError

from ranksearch.errors import UserError


def sqlite(path: str, heartbeat_seconds: int = 60) -> RDBStorage:
    """Open or make an SQLite file of studies.

    Args:
        path: of the file; its folder is made as needed.
        heartbeat_seconds: how often a running trial says that it is alive; one that stops saying so, because its
            process was killed, is started anew.

    Raises:
        UserError: the file cannot be opened, or is not a database of Optuna's.
    """
    file = Path(path).absolute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _prepare(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = RDBStorage(
                f"sqlite:///{file}",
                engine_kwargs={"connect_args": {"timeout": 60}},
                heartbeat_interval=heartbeat_seconds,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=3),
            )
    except (OSError, sqlite3.Error, DatabaseError, RuntimeError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise UserError(
            f"the study database {file} cannot be opened ({reason}): move it away, or choose storage.path"
        ) from None
    event.listen(storage.engine, "connect", _relax_syncing)
    storage.engine.dispose()
    return storage


def _prepare(file: Path) -> None:
    """Switch the file to write-ahead logging, which stays with it: readers and the writer no longer wait."""
    with sqlite3.connect(file, timeout=60) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def _relax_syncing(connection: sqlite3.Connection, _: object) -> None:
    # With write-ahead logging a killed process loses nothing; only a power cut may take the last moment with it.
    connection.execute("PRAGMA synchronous=NORMAL")

"""Storages opened, and what hinders that told in one line without a secret."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from optuna.exceptions import StorageInternalError
from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from ranksearch.errors import SettingError, UserError, first_line, is_full_disk
from ranksearch.locks import alone
from ranksearch.redaction import Redactor, has_unescaped_at, passwords_in
from ranksearch.storage.database_storage import Database, open_database
from ranksearch.storage.in_place import require_in_place
from ranksearch.storage.journal_storage import Journal

# By driver, when a server that has vanished without a word counts as gone: after two minutes, longer than a lock is
# waited for, and than most pauses of a network. All in seconds but for tcp_user_timeout, in milliseconds.
LIBPQ = {"keepalives_idle": 60, "keepalives_interval": 15, "keepalives_count": 4, "tcp_user_timeout": 120_000}
MYSQL = {"read_timeout": 120, "write_timeout": 120}
TIMEOUTS = {"psycopg": LIBPQ, "psycopg2": LIBPQ, "pymysql": MYSQL, "mysqldb": MYSQL}


def sqlite(path: str, heartbeat_seconds: int = 60) -> Database:
    """Open or make an SQLite file of studies, for processes of one machine.

    Args:
        path: of the file; its folder is made as needed.
        heartbeat_seconds: see `Database`.

    Raises:
        UserError: the file cannot be opened, or is not a database of Optuna's.
    """
    _require_heartbeat(heartbeat_seconds)
    hindrances = (OSError, sqlite3.Error, DatabaseError, RuntimeError)
    with _file("database", path, hindrances) as file:
        require_database(file)
        with alone(file.with_name(f"{file.name}.ranksearch-lock"), "opens the study database"):
            require_database(file)  # which another process may have made by now
            _prepare(file)
            storage = open_database(sqlite_address(file), heartbeat_seconds, {"connect_args": {"timeout": 60}})
            known = file.stat()

    def lock(connection: Connection) -> None:
        require_in_place(file, known)
        _lock_at_once(connection)

    event.listen(storage.engine, "connect", _prepare_connection)
    event.listen(storage.engine, "begin", lock)
    storage.engine.dispose()
    return storage


def journal(path: str, heartbeat_seconds: int = 60) -> Journal:
    """Open or make a journal of studies, for processes of one machine or of one file system that can lock files.

    Args:
        path: of the file; its folder is made as needed.
        heartbeat_seconds: see `Journal`.

    Raises:
        UserError: the file cannot be opened, or is not a journal of Optuna's.
    """
    _require_heartbeat(heartbeat_seconds)
    with _file("journal", path, (OSError, ValueError, KeyError, TypeError, AttributeError)) as file:
        return Journal(file, heartbeat_seconds)


def rdb(url: str, heartbeat_seconds: int = 60) -> Database:
    """Open a database server, for processes of any number of machines.

    Args:
        url: SQLAlchemy's, such as ``postgresql+psycopg://user:password@host/name``. It comes from the environment, for
            a password in the configuration would be written down with it; it appears in no message either.
        heartbeat_seconds: see `Database`.

    Raises:
        SettingError: the URL is none.
        UserError: the server cannot be reached or refuses, or its driver is not installed.
    """
    _require_heartbeat(heartbeat_seconds)
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        advice = "is no address of a database: use dialect+driver://user:password@host:port/name"
        raise SettingError("url", "(hidden, it may hold a password)", advice) from None
    if has_unescaped_at(url):
        advice = "has an @ in its password or name: write that as %40 (and : as %3A, / as %2F)"
        raise SettingError("url", "(hidden, it may hold a password)", advice)
    if parsed.get_backend_name() == "sqlite":
        raise SettingError("url", "sqlite:///...", "is a file, not a server: use storage=sqlite and storage.path")
    place = f"{parsed.get_backend_name()} at {parsed.host or 'its default host'}, database '{parsed.database or ''}'"
    engine = {
        "pool_size": 2,  # the trial and its heartbeat
        "max_overflow": 2,
        "pool_pre_ping": True,  # a connection that a restart of the server has cut is replaced
        "pool_recycle": 1800,  # seconds, before firewalls forget it
        "connect_args": {"connect_timeout": 10, **TIMEOUTS.get(parsed.get_driver_name(), {})},
    }
    try:
        return open_database(url, heartbeat_seconds, engine)
    except ImportError as error:
        extra = {"postgresql": "postgresql", "mysql": "mysql"}.get(parsed.get_backend_name())
        remedy = f"pip install 'ranksearch[{extra}]'" if extra else "install it, or use PostgreSQL or MySQL"
        reason = first_line(error.__cause__ or error)
        raise UserError(f"the driver of {place} is missing ({reason}): {remedy}") from None
    except (DatabaseError, StorageInternalError, RuntimeError) as error:
        reason = Redactor({str(parsed.password or ""), url} | passwords_in(url))(_reason(error))
        raise UserError(f"{place}, cannot be opened ({reason}): check RANKSEARCH_STORAGE and the server") from None


def _require_heartbeat(seconds: int) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds <= 86_400:
        raise SettingError("heartbeat_seconds", seconds, "is out of range: use 1 to 86400")


@contextmanager
def _file(what: str, path: str, hindrances: tuple[type[Exception], ...]) -> Iterator[Path]:
    """Make a file's folder, and tell what hinders the block from opening it."""
    file = Path(path).absolute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield file
    except hindrances as error:
        raise UserError(
            f"the study {what} {file} cannot be opened ({_reason(error)}): move it away, or choose storage.path"
        ) from None


def _reason(error: BaseException) -> str:
    return first_line(getattr(error, "orig", None) or error)


# Tables of a database of Optuna's.
OPTUNA = {"studies", "trials", "version_info"}


def sqlite_address(file: Path) -> str:
    """SQLAlchemy's address of an SQLite file, whatever characters its path has."""
    address = URL.create("sqlite", database=f"file:{quote(str(file))}", query={"uri": "true"})
    return address.render_as_string(hide_password=False)  # versions of SQLAlchemy differ in what they escape


def require_database(file: Path) -> None:
    """Raise if a file that stands is no database of Optuna's; it is not written to.

    Raises:
        UserError: it is something else.
    """
    if not file.is_file() or not file.stat().st_size:
        return
    with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=60)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and not tables >= OPTUNA:
        raise UserError(f"{file} is a database of another program: choose another storage.path")


def _prepare(file: Path) -> None:
    """Switch the file to write-ahead logging, which stays with it: readers and the writer no longer wait."""
    with sqlite3.connect(file, timeout=60) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def _prepare_connection(connection: sqlite3.Connection, _: object) -> None:
    # With write-ahead logging a killed process loses nothing; only a power cut may take the last moment with it.
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so


def _lock_at_once(connection: Connection) -> None:
    """Lock the file before the first read: SQLite has no row locks, and two processes would take the same trial."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def failures_told() -> Iterator[None]:
    """Say in one line that the storage failed, but for a full disk, which is told of elsewhere."""
    try:
        yield
    except StorageInternalError as error:
        if is_full_disk(error):
            raise
        reason = first_line(getattr(error.__cause__, "orig", None) or error)
        raise UserError(
            f"the study's storage failed ({reason}), what finished is kept: mend it and run this again"
        ) from error

"""Factories of study storages; failures are reported in one line, without secrets."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import quote

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from ranksearch.errors import SettingError, UserError, first_line, is_full_disk
from ranksearch.locks import exclusive
from ranksearch.redaction import Redactor, has_unescaped_at, passwords_in
from ranksearch.storage.file_identity import require_in_place
from ranksearch.storage.journal_storage import Journal
from ranksearch.storage.rdb_storage import Database, open_database

# Per driver, the time until an unresponsive server counts as lost: two minutes, longer than lock waits and most network
# outages. In seconds, except for tcp_user_timeout in milliseconds.
LIBPQ = {"keepalives_idle": 60, "keepalives_interval": 15, "keepalives_count": 4, "tcp_user_timeout": 120_000}
MYSQL = {"read_timeout": 120, "write_timeout": 120}
TIMEOUTS = {"psycopg": LIBPQ, "psycopg2": LIBPQ, "pymysql": MYSQL, "mysqldb": MYSQL}


def sqlite(path: str, heartbeat_seconds: int = 60) -> Database:
    """Open or create an SQLite study database, for processes of one machine.

    Args:
        path: path of the file; its folder is created if needed.
        heartbeat_seconds: heartbeat interval; see `Database`.

    Raises:
        UserError: the file cannot be opened, or is not an Optuna database.
    """
    _require_heartbeat(heartbeat_seconds)
    with _file("database", path, (OSError, sqlite3.Error, DatabaseError, RuntimeError)) as file:
        require_database(file)
        with exclusive(file.with_name(f"{file.name}.ranksearch-lock"), "opens the study database"):
            require_database(file)  # another process may have created it meanwhile
            with closing(sqlite3.connect(file, timeout=60)) as connection:
                # Write-ahead logging, a permanent setting: readers and the writer do not block each other.
                connection.execute("PRAGMA journal_mode=WAL")
            storage = open_database(sqlite_address(file), heartbeat_seconds, {"connect_args": {"timeout": 60}})
            identity = file.stat()

    def lock(connection: Connection) -> None:
        """Lock the file before the first read: without row locks, two processes would take the same trial."""
        require_in_place(file, identity)
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(storage.engine, "connect", _prepare_connection)
    event.listen(storage.engine, "begin", lock)
    storage.engine.dispose()
    return storage


def journal(path: str, heartbeat_seconds: int = 60) -> Journal:
    """Open or create a study journal, for processes of one machine or of a shared file system with file locks.

    Args:
        path: path of the file; its folder is created if needed.
        heartbeat_seconds: heartbeat interval; see `Journal`.

    Raises:
        UserError: the file cannot be opened, or is not an Optuna journal.
    """
    _require_heartbeat(heartbeat_seconds)
    with _file("journal", path, (OSError, ValueError, KeyError, TypeError, AttributeError)) as file:
        return Journal(file, heartbeat_seconds)


def rdb(url: str, heartbeat_seconds: int = 60) -> Database:
    """Open a database server, for processes of any number of machines.

    Args:
        url: SQLAlchemy URL, such as ``postgresql+psycopg://user:password@host/name``. It is read from the environment,
            because a password in the configuration would be stored with it; error messages omit it.
        heartbeat_seconds: heartbeat interval; see `Database`.

    Raises:
        SettingError: the URL is not that of a database server.
        UserError: the server cannot be reached or refuses the connection, or its driver is not installed.
    """
    _require_heartbeat(heartbeat_seconds)
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        advice = "is not the address of a database: use dialect+driver://user:password@host:port/name"
        raise SettingError("url", "(hidden, it may hold a password)", advice) from None
    if has_unescaped_at(url):
        advice = "has an @ in its password or name: write that as %40 (and : as %3A, / as %2F)"
        raise SettingError("url", "(hidden, it may hold a password)", advice)
    if parsed.get_backend_name() == "sqlite":
        raise SettingError("url", "sqlite:///...", "is a file, not a server: use storage=sqlite and storage.path")
    place = f"{parsed.get_backend_name()} at {parsed.host or 'its default host'}, database '{parsed.database or ''}'"
    engine = {
        "pool_size": 2,  # one for the trial, one for its heartbeat
        "max_overflow": 2,
        "pool_pre_ping": True,  # replaces connections lost in a server restart
        "pool_recycle": 1800,  # seconds, before firewalls drop idle connections
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
def _file(kind: str, path: str, errors: tuple[type[Exception], ...]) -> Iterator[Path]:
    """Create a file's folder, and convert errors of the block to UserError."""
    file = Path(path).absolute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield file
    except errors as error:
        remedy = "move it away, or choose storage.path"
        raise UserError(f"the study {kind} {file} cannot be opened ({_reason(error)}): {remedy}") from None


def _reason(error: BaseException) -> str:
    return first_line(getattr(error, "orig", None) or error)


def sqlite_address(file: Path) -> str:
    """Return the SQLAlchemy URL of an SQLite file, for any characters in its path."""
    address = URL.create("sqlite", database=f"file:{quote(str(file))}", query={"uri": "true"})
    return address.render_as_string(hide_password=False)  # escaping differs between SQLAlchemy versions


def require_database(file: Path) -> None:
    """Raise UserError if an existing file is not an Optuna database; the file is opened read-only."""
    if not file.is_file() or not file.stat().st_size:
        return
    with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=60)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and not tables >= {"studies", "trials", "version_info"}:  # tables of Optuna
        raise UserError(f"{file} is a database of another program: choose another storage.path")


def _prepare_connection(connection: sqlite3.Connection, _: object) -> None:
    # With write-ahead logging a killed process loses nothing; only a power failure may lose the last transactions.
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.isolation_level = None  # SQLAlchemy begins transactions explicitly


@contextmanager
def storage_errors() -> Iterator[None]:
    """Convert storage errors to a one-line UserError, except for a full disk, which is handled elsewhere."""
    try:
        yield
    except StorageInternalError as error:
        if is_full_disk(error):
            raise
        reason = first_line(getattr(error.__cause__, "orig", None) or error)
        failure = f"the study's storage failed ({reason}), finished trials are kept"
        raise UserError(f"{failure}: fix it and run this again") from error


def require_studies(storage: BaseStorage, names: Iterable[str], purpose: str) -> None:
    """Raise unless a storage contains all named studies.

    Args:
        storage: the storage.
        names: names of the studies.
        purpose: purpose of the studies, for the error message ``there is no study 'x' to <purpose>``.

    Raises:
        UserError: a study is missing.
    """
    existing = optuna.get_all_study_names(storage)
    for name in names:
        if name not in existing:
            near = get_close_matches(name, existing) or sorted(existing)[:8]
            advice = f"use {', '.join(near)}" if near else "run mode=search first"
            raise UserError(f"there is no study '{name}' to {purpose} in this storage: {advice}")

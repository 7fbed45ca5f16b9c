"""Locks between processes, for work that one process does while the others wait or skip it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ranksearch.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lock during the block, after waiting for other processes of this machine or file system to release it.

    The operating system releases the lock of a killed process.

    Args:
        path: path of the lock file; its folder is created if needed.
        what: what the holder of the lock does, for the log message about waiting.
    """
    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that %s", what)
        lock.acquire()
    with _held(lock, path):
        yield


@contextmanager
def try_exclusive(path: Path) -> Iterator[bool]:
    """Hold a lock during the block if no other process does, and yield whether it is held.

    Args:
        path: path of the lock file; its folder is created if needed.
    """
    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    with _held(lock, path):
        yield True


@contextmanager
def _held(lock: BaseFileLock, path: Path) -> Iterator[None]:
    """Release a lock after the block and remove its file: a waiting process detects this and locks a new file."""
    try:
        yield
    finally:
        with suppress(OSError):  # some systems cannot remove open files
            path.unlink(missing_ok=True)
        lock.release()


def _lock(path: Path) -> BaseFileLock:
    require_lock(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def require_lock(path: Path) -> None:
    """Raise if the path of a lock leads to anything but an empty file.

    Raises:
        UserError: the path leads to something else.
    """
    try:
        size = path.stat().st_size
    except OSError:
        return
    if size or not path.is_file():
        raise UserError(f"{path} is in the place of a lock file, but is not one: move it away")

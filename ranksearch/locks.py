"""Work that one process of several does while the others wait, or leave."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ranksearch.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Wait until no other process of this machine or file system holds a lock, and hold it.

    The system frees the lock of a process that is killed.

    Args:
        path: of the lock file; its folder is made as needed.
        what: the holder does, for the line that tells of waiting.
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
def first(path: Path) -> Iterator[bool]:
    """Hold a lock if no other process does, and say whether.

    Args:
        path: of the lock file; its folder is made as needed.
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
    """Leave no file behind: whoever waited for the one that is gone then sees so, and locks a new one."""
    try:
        yield
    finally:
        with suppress(OSError):  # a system where a file that is open stays
            path.unlink(missing_ok=True)
        lock.release()


def _lock(path: Path) -> BaseFileLock:
    require_lock(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def require_lock(path: Path) -> None:
    """Raise if a file in a lock's place holds anything, as no lock does.

    Raises:
        UserError: it does.
    """
    try:
        size = path.stat().st_size
    except OSError:
        return
    if size or not path.is_file():
        raise UserError(f"{path} stands where ranksearch would lock, and is no lock: move it away")

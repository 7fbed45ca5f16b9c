"""Studies in a journal: a file that is only ever appended to, by many processes of one file system."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import FrozenTrial, TrialState

from ranksearch.errors import UserError, first_line, shorten
from ranksearch.locks import require_lock
from ranksearch.storage.in_place import require_in_place
from ranksearch.storage.stale import SignsOfLife, take_up_again

HEARTBEAT = "heartbeat"


# What every line of a journal of Optuna's begins with.
FIRST = b'{"op_code":'


def require_journal(path: Path) -> None:
    """Raise if a file that stands is no journal of Optuna's; it is not written to.

    Raises:
        UserError: it is something else, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(FIRST))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"the study journal {path} cannot be read ({error.strerror}): choose storage.path") from None
    if not FIRST.startswith(head):  # or half a line of one, or nothing yet
        raise UserError(f"{path} is no journal of Optuna's: choose another storage.path, or its own storage for it")


class Journal(JournalStorage, BaseHeartbeat):
    """Optuna's journal storage with heartbeats: a trial counts up while it runs, and others watch it by their clocks.

    Args:
        path: of the file.
        heartbeat_seconds: how often a running trial says that it is alive; one that has not for twice as long is ended,
            and its plan is put back into the queue.
    """

    def __init__(self, path: Path, heartbeat_seconds: int) -> None:
        require_journal(path)
        self._path = path
        super().__init__(_JournalFile(path))
        self._heartbeat_seconds = heartbeat_seconds
        self._beats, self._watch = count(), SignsOfLife()

    def _sync_with_backend(self) -> None:
        try:
            super()._sync_with_backend()
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError, LookupError, RecursionError) as error:
            reason = shorten(first_line(error), 120)
            raise UserError(
                f"the study journal {self._path} is damaged ({reason}): move it away, or take it from a backup"
            ) from error

    def record_heartbeat(self, trial_id: int) -> None:
        """Give a sign of life."""
        with suppress(UpdateFinishedTrialError):  # it ended in between, or was ended by another that took it for dead
            self.set_trial_system_attr(trial_id, HEARTBEAT, next(self._beats))

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        signs = {trial._trial_id: trial.system_attrs.get(HEARTBEAT) for trial in running}
        return self._watch.silent(signs, 2 * self._heartbeat_seconds)

    def get_heartbeat_interval(self) -> int:
        """Seconds between two signs of life."""
        return self._heartbeat_seconds

    def get_heartbeat_stale_trial_callback(self) -> Callable[[Study, FrozenTrial], None]:
        """What is done with trials that give none."""
        return take_up_again


class _JournalFile(JournalFileBackend):
    """Optuna's journal file, under a lock that the system frees when its process is killed."""

    def __init__(self, path: Path) -> None:
        lock = _MendingLock(path)
        super().__init__(str(path), lock)
        self._path = path
        held = os.open(path, os.O_RDONLY)  # so that the system gives no other file its number
        weakref.finalize(self, os.close, held)
        self._known = lock.known = os.fstat(held)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # a generator
        """Read the entries from a number on."""
        require_in_place(self._path, self._known)
        try:
            entries = list(super().read_logs(log_number_from))
        except ValueError:  # a torn line was cut off while it was read; under the lock nobody does
            self._lock.acquire()
            try:
                entries = list(super().read_logs(log_number_from))
            finally:
                self._lock.release()
        yield from entries


class _MendingLock(BaseJournalFileLock):
    """A lock whose holder finds a journal of whole lines.

    A process that is killed while it writes, or finds no room, leaves half a line, which nobody has acted upon.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: os.stat_result | None = None  # the file, once there is one
        lock = path.with_name(path.name + ".ranksearch-lock")
        require_lock(lock)
        self._lock = FileLock(lock)

    def acquire(self) -> bool:
        """Wait for the lock, and cut half a line off."""
        self._lock.acquire()
        try:
            if self.known is not None:
                require_in_place(self._path, self.known)
        except UserError:
            self._lock.release()
            raise
        with self._path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            if file.read(1) not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let the next one in."""
        self._lock.release()

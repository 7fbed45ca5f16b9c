"""Studies in a journal: an append-only file, shared by processes of one file system."""

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
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from ranksearch.errors import UserError, first_line, shorten
from ranksearch.locks import require_lock
from ranksearch.results.attributes import HEARTBEAT
from ranksearch.storage.file_identity import require_in_place
from ranksearch.storage.optuna_private import BaseHeartbeat
from ranksearch.storage.stale_trials import HeartbeatMonitor, requeue_stale_trial

# First bytes of every line of an Optuna journal.
FIRST = b'{"op_code":'


def require_journal(path: Path) -> None:
    """Raise UserError if an existing file is not an Optuna journal; the file is opened read-only."""
    try:
        with path.open("rb") as file:
            head = file.read(len(FIRST))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"the study journal {path} cannot be read ({error.strerror}): choose storage.path") from None
    if not FIRST.startswith(head):  # an empty file or a partial first line passes
        raise UserError(f"{path} is not an Optuna journal: choose another storage.path, or the storage that fits it")


class Journal(JournalStorage, BaseHeartbeat):
    """Optuna's journal storage with heartbeats: counters that other processes watch by their own clocks.

    Args:
        path: path of the file.
        heartbeat_seconds: heartbeat interval; a trial silent for twice as long is failed, and its plan is requeued.
    """

    def __init__(self, path: Path, heartbeat_seconds: int) -> None:
        require_journal(path)
        self._path = path
        super().__init__(_JournalFile(path))
        self._heartbeat_seconds = heartbeat_seconds
        self._beats, self._watch = count(), HeartbeatMonitor()

    def _sync_with_backend(self) -> None:
        try:
            super()._sync_with_backend()
        except (ValueError, TypeError, AttributeError, AssertionError, LookupError, RecursionError) as error:
            damage = f"the study journal {self._path} is damaged ({shorten(first_line(error), 120)})"
            raise UserError(f"{damage}: move it away, or restore it from a backup") from error

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat of a trial."""
        with suppress(UpdateFinishedTrialError):  # it has ended, or another process failed it as stale
            self.set_trial_system_attr(trial_id, HEARTBEAT, next(self._beats))

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        signs = {trial._trial_id: trial.system_attrs.get(HEARTBEAT) for trial in running}
        return self._watch.silent(signs, 2 * self._heartbeat_seconds)

    def get_heartbeat_interval(self) -> int:
        """Return the heartbeat interval in seconds."""
        return self._heartbeat_seconds

    def get_heartbeat_stale_trial_callback(self) -> Callable[[Study, FrozenTrial], None]:
        """Return the callback that requeues stale trials."""
        return requeue_stale_trial


class _JournalFile(JournalFileBackend):
    """Optuna's journal file, with a lock that the operating system releases when its process is killed."""

    def __init__(self, path: Path) -> None:
        lock = _MendingLock(path)
        super().__init__(str(path), lock)
        self._path = path
        held = os.open(path, os.O_RDONLY)  # prevents reuse of the inode number
        weakref.finalize(self, os.close, held)
        self._opened = lock.opened = os.fstat(held)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # a generator
        """Yield the log entries from an index on."""
        require_in_place(self._path, self._opened)
        try:
            entries = list(super().read_logs(log_number_from))
        except ValueError:  # a partial line was truncated during the read, which the lock prevents
            self._lock.acquire()
            try:
                entries = list(super().read_logs(log_number_from))
            finally:
                self._lock.release()
        yield from entries


class _MendingLock(JournalFileOpenLock):
    """A lock that, when acquired, removes a partial last line, left by a process that was killed or had no space."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.opened: os.stat_result | None = None  # status of the opened file
        lock = path.with_name(path.name + ".ranksearch-lock")
        require_lock(lock)
        self._lock = FileLock(lock)

    def acquire(self) -> bool:
        """Wait for the lock, and truncate a partial last line."""
        self._lock.acquire()
        try:
            if self.opened is not None:
                require_in_place(self._path, self.opened)
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
        """Release the lock."""
        self._lock.release()

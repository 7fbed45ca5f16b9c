"""Optuna's private API that ranksearch relies on, which is why `pyproject.toml` requires optuna>=5.0,<5.1.

Names imported below:

- `BaseHeartbeat`: Optuna records heartbeats only for storages of this class, and its journal storage is not one.
  Pinned by ``test_a_silent_trial_is_requeued`` in `tests/storage/test_storage.py`.
- `models`, `scoped_session`: tables and sessions of the database storage, for reads in a few plain queries instead of
  one object per parameter row. Pinned by ``test_trials_are_read_as_optuna_reads_them``.

Private methods and attributes that the storages override or read:

- `RDBStorage._set_trial_param_without_commit`: adds a parameter without querying other trials first.
- `RDBStorage._get_trials`: skips cached parameters that are final.
- `RDBStorage._get_stale_trial_ids`, `JournalStorage` with `BaseHeartbeat._get_stale_trial_ids`: detect trials whose
  process died before its first heartbeat, by the local clock.
- `JournalStorage._sync_with_backend`: reports a damaged journal in one line.
- `FrozenTrial._trial_id`: the key that heartbeats are stored under.

All of these are pinned by `tests/storage/`, which compares reads with those of Optuna's own storages.
"""

from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session as scoped_session

__all__ = ["BaseHeartbeat", "models", "scoped_session"]

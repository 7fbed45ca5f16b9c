"""Study storages; `conf/storage` refers to these, or to any Optuna storage."""

from ranksearch.storage.factory import journal, rdb, sqlite, storage_errors

__all__ = ["journal", "rdb", "sqlite", "storage_errors"]

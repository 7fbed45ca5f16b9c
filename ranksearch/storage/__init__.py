"""Where studies are kept. `conf/storage` points here, or at any Optuna storage."""

from ranksearch.storage.opening import failures_told, journal, rdb, sqlite

__all__ = ["failures_told", "journal", "rdb", "sqlite"]

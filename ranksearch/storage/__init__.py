"""Where studies are kept. `conf/storage` points here, or at any Optuna storage."""

from ranksearch.storage.opening import journal, rdb, sqlite

__all__ = ["journal", "rdb", "sqlite"]

"""Logs of a run: redacted, quiet if asked for, and complete in the log file even before Hydra has made it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ranksearch.redaction import Redactor


class EarlyLog(logging.Handler):
    """Shows what is logged before Hydra has made a run's log file, and writes it there later."""

    def __init__(self, cfg: DictConfig, redactor: Redactor) -> None:
        super().__init__(logging.DEBUG if cfg.hydra.verbose is True else logging.INFO)
        self._records: list[logging.LogRecord] = []
        self._shown = logging.ERROR if cfg.quiet else self.level
        self.addFilter(redactor)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, and keep it."""
        self._records.append(record)
        if record.levelno >= self._shown:
            print(self.format(record), flush=True)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the place of all other handlers inside the block."""
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level
        root.handlers[:] = [self]
        root.setLevel(self.level)
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)

    def replay(self) -> None:
        """Write all records to the log files that exist now."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                for record in self._records:
                    handler.handle(record)


def redact_logs(redactor: Redactor, quiet: bool) -> None:
    """Redact all logs; if quiet, leave the terminal to errors, while the log file has everything."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(redactor)
        if quiet and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)


def quiet_optuna() -> None:
    """Send Optuna's messages through our log, without those about trials, which ranksearch logs itself."""
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    if HydraConfig.get().verbose is False:
        optuna.logging.set_verbosity(optuna.logging.ERROR)

"""What Hydra is asked to do once all jobs of a sweep are done."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ranksearch.report import format_table
from ranksearch.sweep import apart, read_outcomes, write_sweep

log = logging.getLogger(__name__)


class SweepSummary(Callback):
    """Lays the fronts of all jobs over one another, and ends the process with status 1 where a job failed."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write `sweep.csv` and `sweep.html`, print the table, and name the jobs that failed."""
        folder = Path(config.hydra.sweep.dir)
        print(format_table(write_sweep(folder)), flush=True)
        print(f"written to {folder}: sweep.csv, sweep.html", flush=True)
        outcomes = read_outcomes(folder)
        failed = [
            (outcome, settings) for outcome, settings in zip(outcomes, apart(outcomes), strict=True) if outcome.reason
        ]
        for outcome, settings in failed:
            print(f"ranksearch: job {outcome.number} ({settings}) failed: {outcome.reason}", file=sys.stderr)
        if failed:
            print(f"ranksearch: {len(failed)} of {len(outcomes)} jobs failed", file=sys.stderr)
            sys.exit(1)

"""Hydra callback that runs once all jobs of a sweep are done."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ranksearch.report.sweep import apart, read_outcomes, write_sweep
from ranksearch.report.tables import format_table


class SweepSummary(Callback):
    """Callback that compares the fronts of all jobs, and exits with the status of a failed job if there is one."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write `sweep.csv` and `sweep.html`, print the table, and name the jobs that failed."""
        folder = Path(config.hydra.sweep.dir)
        outcomes = read_outcomes(folder)
        rows = write_sweep(folder, outcomes)
        if not config.quiet:
            print(f"{format_table(rows)}\nwritten to {folder}: sweep.csv, sweep.html", flush=True)
        failed = [pair for pair in zip(outcomes, apart(outcomes), strict=True) if pair[0].status]
        for outcome, settings in failed:
            print(f"ranksearch: job {outcome.number} ({settings}) failed: {outcome.reason}", file=sys.stderr)
        if failed:
            print(f"ranksearch: {len(failed)} of {len(outcomes)} jobs failed", file=sys.stderr)
            # The status of a single run; that of an unexpected failure, the lowest, takes precedence.
            sys.exit(min(outcome.status for outcome, _ in failed))

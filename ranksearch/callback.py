"""What Hydra is asked to do once all jobs of a sweep are done."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ranksearch.summary import format_table
from ranksearch.sweep import apart, read_outcomes, write_sweep


class SweepSummary(Callback):
    """Lays the fronts of all jobs over one another, and ends the process with the status of jobs that failed."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write `sweep.csv` and `sweep.html`, print the table, and name the jobs that failed."""
        folder = Path(config.hydra.sweep.dir)
        outcomes = read_outcomes(folder)
        rows = write_sweep(folder, outcomes)
        if not config.quiet:
            print(format_table(rows), flush=True)
            print(f"written to {folder}: sweep.csv, sweep.html", flush=True)
        failed = [
            (outcome, settings) for outcome, settings in zip(outcomes, apart(outcomes), strict=True) if outcome.status
        ]
        for outcome, settings in failed:
            print(f"ranksearch: job {outcome.number} ({settings}) failed: {outcome.reason}", file=sys.stderr)
        if failed:
            print(f"ranksearch: {len(failed)} of {len(outcomes)} jobs failed", file=sys.stderr)
            # As a single run would, and a failure that nobody foresaw first.
            sys.exit(min(outcome.status for outcome, _ in failed))

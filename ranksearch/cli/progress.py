"""What the user sees while a run works: a bar and the front in a terminal, informative log lines elsewhere."""

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from statistics import median
from typing import TextIO, cast

import rich.progress
from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ranksearch.results.metadata import StudyMetadata
from ranksearch.results.pareto import best_at, evenly_spaced, pareto_front
from ranksearch.results.trials import FeasibleTrial, TrialRecord, feasible_trials

log = logging.getLogger(__name__)

ROWS = 8  # of the front's table
SPEEDUPS = (2.0, 4.0)
WHOLE_STAGE = 1e9  # seconds over which the speed of a stage is estimated


class Progress:
    """Follows a run from stage to stage; logs a line for every trial, and for every fifth of a training.

    Args:
        console: terminal that the progress is shown in.
        get_time: clock, in seconds.
    """

    def __init__(self, console: Console | None = None, get_time: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("[bold]{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[counted]}"),
            rich.progress.TextColumn("{task.fields[note]}"),
            console=self._console,
            auto_refresh=False,
            get_time=get_time,
            speed_estimate_period=WHOLE_STAGE,
        )
        self._task: rich.progress.Task | None = None
        self._metadata: StudyMetadata | None = None
        self._records: Sequence[TrialRecord] = ()
        self._batch_size, self._finalize_steps, self._images_per_second = 0, 0, 0.0

    def stage(self, name: str, total: int = 0, batch_size: int = 0) -> None:
        """Begin a stage.

        Args:
            name: name of the stage.
            total: number of its steps; 0 if they are not counted.
            batch_size: images that each step trains on.
        """
        self._begin(name, 0, total)
        self._batch_size, self._images_per_second = batch_size, 0.0

    def step(self, step: int, loss: float) -> None:
        """Record one finished training step of the stage."""
        task = self._current()
        if task.completed == 0 and step > 1:  # the training continues from a checkpoint
            task = self._begin(task.description, step - 1, int(task.total or 0))
        self._bars.update(task.id, completed=step)
        self._images_per_second = (task.speed or 0.0) * self._batch_size
        self._note(f"{step} of {task.total:g} steps", task.time_remaining, f"loss {loss:.3f}")
        total = int(task.total or 0)
        if step == total or step % max(1, total // 5) == 0:
            log.info("%s: step %d of %d, loss %.3f", task.description, step, total, loss)

    def tick(self, stage: str, done: int, total: int) -> None:
        """Record that some of a stage's steps are done; 0 begins the stage."""
        if done == 0:
            self.stage(stage, total)
        task = self._current()
        self._bars.update(task.id, completed=done)
        self._note(f"{done} of {total}", task.time_remaining)

    def trials(
        self, metadata: StudyMetadata, records: Sequence[TrialRecord], batch_size: int, finalize_steps: int
    ) -> None:
        """Begin the trials.

        Args:
            metadata: metadata of the study.
            records: its trials so far.
            batch_size: images of a step of their fine-tuning.
            finalize_steps: fine-tuning steps that follow the last trial.
        """
        self._metadata, self._records = metadata, records
        self._batch_size, self._finalize_steps = batch_size, finalize_steps
        done = sum(record.finished for record in records)
        self._begin("search", done, metadata.trials)
        self._note(f"{done} of {metadata.trials} trials", None)

    def trial(self, record: TrialRecord, records: Sequence[TrialRecord]) -> None:
        """Record one finished trial; ``records`` are all trials, those of other processes too."""
        task, metadata = self._current(), self._metadata
        assert metadata is not None
        self._records, done = records, sum(other.finished for other in records)
        self._bars.update(task.id, completed=done)
        left = (task.time_remaining or 0.0) + self._finalize_steps * self._seconds_per_step(metadata)
        if record.result is not None and (seconds := record.result.seconds.get("fine_tune")):
            self._images_per_second = metadata.fine_tune_steps * self._batch_size / seconds
        self._note(f"{done} of {metadata.trials} trials", left)
        best = max(feasible_trials(records), key=lambda t: (t.result.accuracy, -t.result.cost), default=None)
        leader = "none" if best is None else f"{_describe(best)} (trial {best.number})"
        message = "trial %d (%d of %d): %s in %.1f s; best %s; %d s left"
        log.info(message, record.number, done, metadata.trials, _describe(record), record.seconds, leader, round(left))

    def __rich__(self) -> RenderableType:
        """Lay out the bar, a summary and the front."""
        parts: list[RenderableType] = [self._bars, Text(" · ".join(self._summary()))]
        front = pareto_front(self._records)
        if front and self._console.height > ROWS + 8:
            parts.append(_front_table(front))
        return Group(*parts)

    def _summary(self) -> list[str]:
        parts = []
        if self._metadata is not None:
            front = pareto_front(self._records)
            parts.append(f"dense {self._metadata.accuracy:.2%}")
            for speedup in SPEEDUPS:
                best = best_at(front, speedup)
                parts.append(f"best at {speedup:g}x {'-' if best is None else f'{best.result.accuracy:.2%}'}")
            outcomes = Counter(record.outcome for record in self._records)
            parts += [f"{outcomes[outcome]} {outcome}" for outcome in ("pruned", "failed")]
        return [*parts, f"{self._images_per_second:,.0f} images/s"] if self._images_per_second else parts

    def _current(self) -> rich.progress.Task:
        return self._task or self._begin("starting", 0, 0)

    def _begin(self, name: str, done: int, total: int) -> rich.progress.Task:
        if self._task is not None:
            self._bars.remove_task(self._task.id)
        task = self._bars.add_task(name, total=total or None, completed=done, counted="", note="")
        self._bars.advance(task, 0)  # the first sample of the clock
        self._task = self._bars.tasks[-1]
        return self._task

    def _note(self, counted: str, seconds_left: float | None, note: str = "") -> None:
        left = "" if seconds_left is None else f"{timedelta(seconds=round(seconds_left))} left"
        self._bars.update(self._current().id, counted=counted, note=" ".join(filter(None, (left, note))))

    def _seconds_per_step(self, metadata: StudyMetadata) -> float:
        """Return the seconds of a fine-tuning step in the trials so far; 0 if they have none."""
        seconds = [record.result.seconds.get("fine_tune", 0.0) for record in self._records if record.result]
        return median(seconds) / metadata.fine_tune_steps if seconds and metadata.fine_tune_steps else 0.0


def _describe(record: TrialRecord) -> str:
    if record.result is None:
        return f"{record.state.lower()}: {record.reason}"
    return f"{record.result.accuracy:.2%} at {record.result.speedup:.2f}x"


def _front_table(front: Sequence[FeasibleTrial]) -> Table:
    """Lay out the front, the fastest trial first."""
    table = Table("trial", "speedup", "validation accuracy", "params", box=None, header_style="bold blue")
    for trial in evenly_spaced(front, ROWS):
        result = trial.result
        cells = (str(trial.number), f"{result.speedup:.2f}x", f"{result.accuracy:.2%}", f"{result.params / 1e6:.3f} M")
        table.add_row(*cells)
    return table


@contextmanager
def watched(live: bool = True) -> Iterator[Progress]:
    """Follow a run inside the block: in place in a terminal, if it may be, and by log lines elsewhere."""
    if not live or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Progress()
        return
    console = Console(stderr=True)
    progress = Progress(console)
    with Live(progress, console=console, refresh_per_second=4, transient=True), _logging_above(console):
        yield progress


@contextmanager
def _logging_above(console: Console) -> Iterator[None]:
    """Print log lines above the live view; lines that repeat it go to the log file alone."""

    def is_new(record: logging.LogRecord) -> bool:
        return record.name != log.name or logging.getLogger().isEnabledFor(logging.DEBUG)

    streams = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler)]
    terminals = [handler for handler in streams if handler.stream.isatty()]
    before = [(handler, handler.setStream(cast(TextIO, FileProxy(console, handler.stream)))) for handler in terminals]
    for handler in terminals:
        handler.addFilter(is_new)
    try:
        yield
    finally:
        for handler, stream in before:
            handler.removeFilter(is_new)
            if stream is not None:
                handler.setStream(stream)

"""What the person sees while it runs: one live view in a terminal, informative lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from ranksearch.facts import StudyFacts
from ranksearch.records import TrialRecord

log = logging.getLogger(__name__)


@dataclass
class Standing:
    """How far a run is.

    Attributes:
        stage: what is going on.
        done: of its steps or trials.
        total: of the same; 0 where that is not known.
        unit: what is counted.
        said: of the last step.
        images_per_second: that were trained on, or else evaluated; 0 where that is not known.
        seconds_left: until the run ends; None where that is not known.
        facts: of the study, once they are known.
        records: all its trials.
    """

    stage: str = "starting"
    done: int = 0
    total: int = 0
    unit: str = "steps"
    said: str = ""
    images_per_second: float = 0.0
    seconds_left: float | None = None
    facts: StudyFacts | None = None
    records: Sequence[TrialRecord] = field(default_factory=list)


class View(Protocol):
    """Where a standing is shown."""

    def show(self, standing: Standing) -> None:
        """Show it."""
        ...


class Progress:
    """Follows a run from stage to stage and shows how it stands; logs a line a trial, and one a fifth of a training."""

    def __init__(self, view: View | None = None) -> None:
        self._view = view
        self._standing = Standing()
        self._start, self._batch, self._before, self._finishing = 0.0, 0, 0, 0

    @contextmanager
    def stage(self, name: str, total: int = 0, batch_size: int = 0) -> Iterator[None]:
        """A stage inside the block.

        Args:
            name: of the stage.
            total: steps of it; 0 where they are not counted.
            batch_size: images that each of them trains on.
        """
        known = self._standing
        self._standing = Standing(name, total=total, facts=known.facts, records=known.records)
        self._start, self._batch = time.perf_counter(), batch_size
        self._show()
        yield

    def step(self, step: int, loss: float) -> None:
        """One training step of the stage is over."""
        standing = self._standing
        taken = time.perf_counter() - self._start
        standing.done, standing.said = step, f"loss {loss:.3f}"
        standing.images_per_second = step * self._batch / taken
        standing.seconds_left = taken / step * (standing.total - step)
        self._show()
        if step == standing.total or step % max(1, standing.total // 5) == 0:
            log.info("%s: step %d of %d, loss %.3f", standing.stage, step, standing.total, loss)

    @contextmanager
    def trials(
        self, facts: StudyFacts, records: Sequence[TrialRecord], batch_size: int, finishing_steps: int
    ) -> Iterator[None]:
        """The trials inside the block.

        Args:
            facts: of the study.
            records: its trials so far.
            batch_size: images of a step of their fine-tuning.
            finishing_steps: of fine-tuning that come after the last trial.
        """
        done = sum(record.finished for record in records)
        self._standing = Standing("search", done, facts.trials, "trials", facts=facts, records=records)
        self._start, self._batch, self._before, self._finishing = time.perf_counter(), batch_size, done, finishing_steps
        self._show()
        yield

    def trial(self, record: TrialRecord, records: Sequence[TrialRecord]) -> None:
        """One trial is over.

        Args:
            record: of the trial.
            records: all trials, those of other processes too.
        """
        standing = self._standing
        standing.records, standing.done = records, sum(other.finished for other in records)
        new = max(standing.done - self._before, 1)  # other processes' as well: they shorten what is left
        left = (time.perf_counter() - self._start) / new * max(0, standing.total - standing.done)
        standing.seconds_left = left + self._finishing * self._seconds_of_a_step()
        if record.result is not None and (tuning := record.result.seconds.get("fine_tune")):
            assert standing.facts is not None
            standing.images_per_second = standing.facts.fine_tune_steps * self._batch / tuning
        self._show()
        best = max((other for other in records if other.feasible), key=_rank, default=None)
        log.info(
            "trial %d (%d of %d): %s in %.1f s; best %s; %d s left",
            record.number,
            standing.done,
            standing.total,
            _describe(record) if record.result is not None else f"{record.state.lower()}: {record.reason}",
            record.seconds,
            "none" if best is None else f"{_describe(best)} (trial {best.number})",
            round(standing.seconds_left),
        )

    def _seconds_of_a_step(self) -> float:
        """Of fine-tuning, by the trials so far; 0 where they have none."""
        facts = self._standing.facts
        if facts is None or not facts.fine_tune_steps:
            return 0.0
        known = [record.result.seconds.get("fine_tune", 0.0) for record in self._standing.records if record.result]
        return median(known) / facts.fine_tune_steps if known else 0.0

    def _show(self) -> None:
        if self._view is not None:
            self._view.show(self._standing)


def _rank(record: TrialRecord) -> tuple[float, int]:
    assert record.result is not None
    return record.result.accuracy, -record.result.cost


def _describe(record: TrialRecord) -> str:
    assert record.result is not None
    return f"{record.result.accuracy:.2%} at {record.result.speedup:.2f}x"

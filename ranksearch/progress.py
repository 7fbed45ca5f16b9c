"""What the person sees while it runs: one live view in a terminal, informative lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from ranksearch.facts import StudyFacts
from ranksearch.records import TrialRecord

log = logging.getLogger(__name__)


@dataclass
class RunState:
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
    """Where a state is shown."""

    def show(self, state: RunState) -> None:
        """Show it."""
        ...


class Progress:
    """Follows a run from stage to stage and shows how it stands; logs a line a trial, and one a fifth of a training."""

    def __init__(self, view: View | None = None) -> None:
        self._view = view
        self._state = RunState()
        self._start, self._batch, self._finalize_steps = 0.0, 0, 0
        self._before: int | None = None  # steps or trials that were over when the stage began

    def stage(self, name: str, total: int = 0, batch_size: int = 0) -> None:
        """A stage begins.

        Args:
            name: of the stage.
            total: steps of it; 0 where they are not counted.
            batch_size: images that each of them trains on.
        """
        known = self._state
        self._state = RunState(name, total=total, facts=known.facts, records=known.records)
        self._start, self._batch, self._before = time.perf_counter(), batch_size, None
        self._show()

    def step(self, step: int, loss: float) -> None:
        """One training step of the stage is over."""
        state = self._state
        if self._before is None:  # not none, where a training goes on
            self._before = step - 1
        new, taken = step - self._before, time.perf_counter() - self._start
        state.done, state.said = step, f"loss {loss:.3f}"
        state.images_per_second = new * self._batch / taken
        state.seconds_left = taken / new * (state.total - step)
        self._show()
        if step == state.total or step % max(1, state.total // 5) == 0:
            log.info("%s: step %d of %d, loss %.3f", state.stage, step, state.total, loss)

    def trials(self, facts: StudyFacts, records: Sequence[TrialRecord], batch_size: int, finalize_steps: int) -> None:
        """The trials begin.

        Args:
            facts: of the study.
            records: its trials so far.
            batch_size: images of a step of their fine-tuning.
            finalize_steps: of fine-tuning that come after the last trial.
        """
        done = sum(record.finished for record in records)
        self._state = RunState("search", done, facts.trials, "trials", facts=facts, records=records)
        self._start, self._before = time.perf_counter(), done
        self._batch, self._finalize_steps = batch_size, finalize_steps
        self._show()

    def trial(self, record: TrialRecord, records: Sequence[TrialRecord]) -> None:
        """One trial is over.

        Args:
            record: of the trial.
            records: all trials, those of other processes too.
        """
        state = self._state
        state.records, state.done = records, sum(other.finished for other in records)
        new = max(state.done - (self._before or 0), 1)  # other processes' as well: they shorten what is left
        left = (time.perf_counter() - self._start) / new * max(0, state.total - state.done)
        state.seconds_left = left + self._finalize_steps * self._seconds_of_a_step()
        if record.result is not None and (fine_tuning := record.result.seconds.get("fine_tune")):
            assert state.facts is not None
            state.images_per_second = state.facts.fine_tune_steps * self._batch / fine_tuning
        self._show()
        best = max((other for other in records if other.feasible), key=_rank, default=None)
        log.info(
            "trial %d (%d of %d): %s in %.1f s; best %s; %d s left",
            record.number,
            state.done,
            state.total,
            _describe(record) if record.result is not None else f"{record.state.lower()}: {record.reason}",
            record.seconds,
            "none" if best is None else f"{_describe(best)} (trial {best.number})",
            round(state.seconds_left),
        )

    def _seconds_of_a_step(self) -> float:
        """Of fine-tuning, by the trials so far; 0 where they have none."""
        facts = self._state.facts
        if facts is None or not facts.fine_tune_steps:
            return 0.0
        known = [record.result.seconds.get("fine_tune", 0.0) for record in self._state.records if record.result]
        return median(known) / facts.fine_tune_steps if known else 0.0

    def _show(self) -> None:
        if self._view is not None:
            self._view.show(self._state)


def _rank(record: TrialRecord) -> tuple[float, int]:
    assert record.result is not None
    return record.result.accuracy, -record.result.cost


def _describe(record: TrialRecord) -> str:
    assert record.result is not None
    return f"{record.result.accuracy:.2%} at {record.result.speedup:.2f}x"

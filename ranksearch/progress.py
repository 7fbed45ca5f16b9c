"""What the person sees while it runs: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ranksearch.records import TrialRecord

log = logging.getLogger(__name__)


class Progress:
    """A bar over steps or trials, which log lines do not tear."""

    def __init__(self, what: str, total: int, done: int, known: Sequence[TrialRecord]) -> None:
        self._what = what
        self._total = total
        self._done = done
        self._terminal = sys.stderr.isatty()
        self._bar: tqdm[NoReturn] = tqdm(
            total=total, initial=done, desc=what, disable=not self._terminal, dynamic_ncols=True, leave=False
        )
        self._best = max((record for record in known if record.feasible), key=_rank, default=None)
        self._new, self._seconds = 0, 0.0

    def step(self, step: int, loss: float) -> None:
        """One training step is over."""
        self._bar.update(1)
        if self._terminal:
            self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        elif step == self._total or step % max(1, self._total // 5) == 0:
            log.info("%s: step %d of %d, loss %.3f", self._what, step, self._total, loss)

    def trial(self, record: TrialRecord) -> None:
        """One trial is over."""
        self._done += record.finished
        self._new += 1
        self._seconds += record.seconds
        better = record.result is not None and record.feasible
        if better and (self._best is None or _rank(record) > _rank(self._best)):
            self._best = record
        best = "none" if self._best is None else f"{_describe(self._best)} (trial {self._best.number})"
        self._bar.update(int(record.finished))
        self._bar.set_postfix_str(f"best {best}", refresh=False)
        left = self._seconds / self._new * max(0, self._total - self._done)
        outcome = _describe(record) if record.result is not None else f"{record.state.lower()}: {record.reason}"
        log.info(
            "trial %d (%d of %d): %s in %.1f s; best %s; %d s left",
            record.number,
            self._done,
            self._total,
            outcome,
            record.seconds,
            best,
            round(left),
        )

    def close(self) -> None:
        """Clear the bar away."""
        self._bar.close()


def _rank(record: TrialRecord) -> tuple[float, int]:
    assert record.result is not None
    return record.result.accuracy, -record.result.cost


def _describe(record: TrialRecord) -> str:
    assert record.result is not None
    return f"{record.result.accuracy:.2%} at {record.result.speedup:.2f}x"


@contextmanager
def progress(what: str, total: int, done: int = 0, known: Sequence[TrialRecord] = ()) -> Iterator[Progress]:
    """Show progress inside the block.

    Args:
        what: is going on.
        total: steps or trials.
        done: of them, before the block.
        known: the trials among these.
    """
    with logging_redirect_tqdm():
        shown = Progress(what, total, done, known)
        try:
            yield shown
        finally:
            shown.close()

"""The live view of a run in a terminal: how far it is, what it has found, and its front as a small chart."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

import plotext
from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ranksearch import progress
from ranksearch.facts import StudyFacts
from ranksearch.front import best_at, front
from ranksearch.palette import SPEEDUP_TICKS
from ranksearch.progress import Progress, RunState
from ranksearch.review.plans import completed

CHART = 12  # lines of it
WIDEST = 100
SPEEDUPS = (2.0, 4.0)


class LiveView:
    """What is shown in place, over and over: the last state that it was given."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = RunState()

    def show(self, state: RunState) -> None:
        """See `progress.View`; costs nothing, for steps may be many a second."""
        self._state = state

    def __call__(self) -> RenderableType:
        """Lay it out, as often as the terminal is written to."""
        return render(self._state, self._console)


@contextmanager
def watched(live: bool = True) -> Iterator[Progress]:
    """Follow a run inside the block: in place in a terminal, by lines elsewhere.

    Args:
        live: whether a terminal may be written to in place.
    """
    if not live or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Progress()
        return
    console = Console(stderr=True)
    view = LiveView(console)
    with Live(console=console, get_renderable=view, refresh_per_second=4, transient=True), _beside(console):
        yield Progress(view)


@contextmanager
def _beside(console: Console) -> Iterator[None]:
    """Have log lines appear above what is shown in place; those that say the same go to the log file alone."""

    def is_news(record: logging.LogRecord) -> bool:
        return record.name != progress.log.name or logging.getLogger().isEnabledFor(logging.DEBUG)

    terminals = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream.isatty()
    ]
    before = [(handler, handler.setStream(cast(TextIO, FileProxy(console, handler.stream)))) for handler in terminals]
    for handler in terminals:
        handler.addFilter(is_news)
    try:
        yield
    finally:
        for handler, stream in before:
            handler.removeFilter(is_news)
            if stream is not None:
                handler.setStream(stream)


def render(state: RunState, console: Console) -> RenderableType:
    """Lay a state out for a terminal."""
    width = min(console.width, WIDEST)
    bar = Table.grid(padding=(0, 1))
    of = f" of {state.total}" if state.total else ""
    counted = f"{state.done}{of} {state.unit}" if state.total else ""
    left = "" if state.seconds_left is None else f"{_clock(state.seconds_left)} left"
    bar.add_row(
        Text(state.stage, "bold"),
        ProgressBar(state.total or None, state.done, width=max(10, width - 60), pulse=not state.total),
        counted,
        left,
        state.said,
    )
    parts: list[RenderableType] = [bar]
    facts, records = state.facts, state.records
    said = []
    if facts is not None:
        points = front(records)
        said.append(f"dense {facts.accuracy:.2%}")
        for speedup in SPEEDUPS:
            best = best_at(points, speedup)
            said.append(f"best at {speedup:g}x {'-' if best is None else f'{best.result.accuracy:.2%}'}")
        outcomes = Counter(record.outcome for record in records)
        said += [f"{outcomes[what]} {what}" for what in ("pruned", "failed")]
    if state.images_per_second:
        said.append(f"{state.images_per_second:,.0f} images/s")
    parts.append(Text(" · ".join(said)))
    if facts is not None and completed(records) and console.height > CHART + 8:
        parts.append(Text.from_ansi(_chart(state, facts, width)))
    return Group(*parts)


def _chart(state: RunState, facts: StudyFacts, width: int) -> str:
    """The trials and their front: validation accuracy over speedup."""
    done, points = completed(state.records), front(state.records)
    plotext.clear_figure()
    plotext.plotsize(width, CHART)
    plotext.theme("clear")
    plotext.xscale("log")
    trials = [(result.speedup, 100 * result.accuracy) for _, result in done]
    best = [(point.result.speedup, 100 * point.result.accuracy) for point in points]
    plotext.scatter(*map(list, zip(*trials, strict=True)), marker="dot")
    plotext.plot(*map(list, zip(*best, strict=True)), marker="braille", color="blue")
    plotext.scatter([1.0], [100 * facts.accuracy], marker="x", color="green")
    fastest = max(speedup for speedup, _ in trials)
    ticks = [tick for tick in SPEEDUP_TICKS if tick <= fastest]
    plotext.xticks(ticks, [f"{tick:g}x" for tick in ticks])
    plotext.title("validation accuracy, %, over speedup")
    return str(plotext.build())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

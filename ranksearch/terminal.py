"""The live view of a run in a terminal: how far it is, what it has found, and its front as a small chart."""

from __future__ import annotations

import logging
import os
import sys
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
from ranksearch.progress import Progress, Standing
from ranksearch.records import front
from ranksearch.review.plans import best_at, completed

CHART = 12  # lines of it
WIDEST = 100
SPEEDUPS = (2.0, 4.0)


class LiveView:
    """Shows a standing in place, over and over."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, standing: Standing) -> None:
        """See `progress.View`."""
        self._live.update(render(standing, self._live.console))


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
    with Live(console=console, refresh_per_second=4, transient=True) as view, _beside(console):
        yield Progress(LiveView(view))


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


def render(standing: Standing, console: Console) -> RenderableType:
    """Lay a standing out for a terminal."""
    width = min(console.width, WIDEST)
    bar = Table.grid(padding=(0, 1))
    of = f" of {standing.total}" if standing.total else ""
    counted = f"{standing.done}{of} {standing.unit}" if standing.total else ""
    left = "" if standing.seconds_left is None else f"{_clock(standing.seconds_left)} left"
    bar.add_row(
        Text(standing.stage, "bold"),
        ProgressBar(standing.total or None, standing.done, width=max(10, width - 60), pulse=not standing.total),
        counted,
        left,
        standing.said,
    )
    parts: list[RenderableType] = [bar]
    facts, records = standing.facts, standing.records
    said = []
    if facts is not None:
        points = front(records)
        said.append(f"dense {facts.accuracy:.2%}")
        for speedup in SPEEDUPS:
            best = best_at(points, speedup)
            said.append(f"best at {speedup:g}x {'-' if best is None else f'{best.result.accuracy:.2%}'}")
        given_up, failed = (sum(record.state == state for record in records) for state in ("PRUNED", "FAIL"))
        said += [f"{given_up} given up", f"{failed} failed"]
    if standing.images_per_second:
        said.append(f"{standing.images_per_second:,.0f} images/s")
    parts.append(Text(" · ".join(said)))
    if facts is not None and completed(records) and console.height > CHART + 8:
        parts.append(Text.from_ansi(_chart(standing, facts, width)))
    return Group(*parts)


def _chart(standing: Standing, facts: StudyFacts, width: int) -> str:
    """The trials and their front: validation accuracy over speedup."""
    done, points = completed(standing.records), front(standing.records)
    plotext.clear_figure()
    plotext.plotsize(width, CHART)
    plotext.theme("clear")
    plotext.xscale("log")
    trials = [(facts.cost / result.cost, 100 * result.accuracy) for _, result in done]
    best = [(facts.cost / point.result.cost, 100 * point.result.accuracy) for point in points]
    plotext.scatter(*map(list, zip(*trials, strict=True)), marker="dot")
    plotext.plot(*map(list, zip(*best, strict=True)), marker="braille", color="blue")
    plotext.scatter([1.0], [100 * facts.accuracy], marker="x", color="green")
    fastest = max(speedup for speedup, _ in trials)
    ticks = [tick for tick in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32) if tick <= fastest]
    plotext.xticks(ticks, [f"{tick:g}x" for tick in ticks])
    plotext.title("validation accuracy, %, over speedup")
    return str(plotext.build())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

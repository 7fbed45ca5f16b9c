"""Progress of a long call: a bar where stderr is a terminal, a log line per stage elsewhere."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import rich.progress
from rich.console import Console

from ranksearch.progress import Tick, unseen

log = logging.getLogger(__name__)


@contextmanager
def shown(call: str, progress: bool = True) -> Iterator[Tick]:
    """Show the progress of a call: stage, steps done of all, and the time left of the stage.

    Args:
        call: name of the call.
        progress: False shows and logs nothing.
    """
    if not progress:
        yield unseen
        return
    console, started = Console(stderr=True), time.perf_counter()
    bars = rich.progress.Progress(
        rich.progress.TextColumn(f"{call}: {{task.description}}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    current = bars.add_task("", total=None, visible=False)

    def tick(stage: str, done: int, total: int) -> None:
        nonlocal started
        if done == 0:
            started = time.perf_counter()
            bars.reset(current, description=stage, total=total, visible=True)
        bars.update(current, completed=done)
        if done == total:
            log.info("%s: %s, %d of %d in %.1f s", call, stage, done, total, time.perf_counter() - started)

    with bars:
        yield tick

"""What Ctrl-C does: 130 at once during imports, and one line of advice once a run works."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """End the process with 130 on Ctrl-C inside the block: importing torch may swallow a KeyboardInterrupt."""
    alone = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130)) if alone else None
    try:
        yield
    finally:
        if alone:
            signal.signal(signal.SIGINT, before)


@contextmanager
def explain_interrupt() -> Iterator[None]:
    """Log how to continue a run that Ctrl-C interrupts inside the block."""
    try:
        yield
    except KeyboardInterrupt:
        log.warning("interrupted: everything finished is kept; run the same command again to continue")
        raise

"""`python -m ranksearch`, and the console script of that name."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def _imported() -> Callable[[], None]:
    """The command line; Ctrl-C ends the process with 130 and no traceback while torch is still being imported."""
    alone = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130)) if alone else None
    try:
        from ranksearch.app import main as command
    finally:
        if alone:
            signal.signal(signal.SIGINT, before)
    return command


main = _imported()

if __name__ == "__main__":
    main()

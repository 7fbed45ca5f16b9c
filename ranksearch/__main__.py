"""Entry point of `python -m ranksearch` and of the console script of that name."""

import os
import signal
import threading
from collections.abc import Callable


def _imported() -> Callable[[], None]:
    """Import the command line; until torch is imported, Ctrl-C ends the process with 130 and no traceback."""
    alone = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130)) if alone else None
    try:
        from ranksearch.cli.main import main as command
    finally:
        if alone:
            signal.signal(signal.SIGINT, before)
    return command


main = _imported()

if __name__ == "__main__":
    main()

"""`python -m ranksearch`, and the console script of that name."""

from __future__ import annotations

import os
import signal
import threading


def main() -> None:
    """Run the command line; Ctrl-C ends it with 130 from the first moment, while torch is still being imported."""
    alone = threading.current_thread() is threading.main_thread()
    if alone:
        before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from ranksearch.app import main as run

    if alone:
        signal.signal(signal.SIGINT, before)
    run()


if __name__ == "__main__":
    main()

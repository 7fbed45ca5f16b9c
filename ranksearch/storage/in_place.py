"""A file of studies that is still where it was opened: what goes to one that was deleted is lost without a word."""

from __future__ import annotations

import os
from pathlib import Path

from ranksearch.errors import UserError


def require_in_place(file: Path, known: os.stat_result) -> None:
    """Raise if a path does not lead to the file any more that it led to.

    Args:
        file: the path.
        known: of the file, when it was opened.

    Raises:
        UserError: it was deleted, or another one stands there.
    """
    try:
        now = file.stat()
    except OSError:
        now = None
    if now is None or (now.st_dev, now.st_ino) != (known.st_dev, known.st_ino):
        what = "was deleted" if now is None else "was replaced"
        raise UserError(f"{file} {what} while its study ran, and what finished went with it: leave it in its place")

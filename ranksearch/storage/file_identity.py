"""Check that a study file is still the one that was opened: writes to a deleted file are lost silently."""

import os
from pathlib import Path

from ranksearch.errors import UserError


def require_in_place(file: Path, opened: os.stat_result) -> None:
    """Raise if a path no longer leads to the file that was opened.

    Args:
        file: path of the file.
        opened: status of the file when it was opened.

    Raises:
        UserError: the file was deleted or replaced.
    """
    try:
        now = file.stat()
    except OSError:
        now = None
    if now is None or (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino):
        change = "was deleted" if now is None else "was replaced"
        raise UserError(f"{file} {change} during its study, and finished trials were lost: leave it in place")

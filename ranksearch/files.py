"""Atomic file writes, and removal of files."""

import csv
import glob
import io
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ranksearch.errors import DamagedError, first_line, shorten


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, and move the file into place if the block succeeds; folders are created if needed.

    The file lies in a temporary folder of its own, since libraries may leave partial files beside it.
    """
    prefix = f".{path.name}.{platform.node()}."
    folder = path.with_name(f"{prefix}{os.getpid()}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder / path.name
        (folder / path.name).replace(path)
    finally:
        _clear(folder)
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        if not _is_alive(left.name.removeprefix(prefix)):
            _clear(left)  # left by a process that was killed


def _clear(folder: Path) -> None:
    """Remove a folder that `replacing` made, and its files."""
    with suppress(OSError):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def remove_files(folder: Path, patterns: Iterable[str]) -> None:
    """Remove files that match the patterns below a folder, and folders that this leaves empty; no others."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                file.parent.rmdir()
    with suppress(OSError):
        folder.rmdir()


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, OSError) as error:  # any other error leaves it open, and the process may be alive
        return not isinstance(error, ProcessLookupError)
    return True


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as neighbour:
        neighbour.write_text(content, encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table atomically; missing values are left empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Write plain JSON values atomically; NaN and infinities raise ValueError."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read plain JSON values.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedError: the file is not UTF-8 text or valid JSON, is nested too deeply, or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({shorten(first_line(error), 160)})") from None

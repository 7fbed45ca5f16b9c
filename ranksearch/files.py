"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step, through a neighbour that is renamed; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        neighbour.write_bytes(content)
        neighbour.replace(path)
    finally:
        neighbour.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write text in UTF-8, in one step."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write plain JSON values in one step; numbers that JSON lacks (NaN, infinities) are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")

"""What a killed process may leave behind in a folder."""

from __future__ import annotations

from pathlib import Path


def left_over(folder: Path) -> list[str]:
    """Files that were not moved to their places: hidden ones, and those in hidden folders other than Hydra's."""
    found = [(file, file.relative_to(folder).parts) for file in folder.rglob("*") if file.is_file()]
    return [str(file) for file, parts in found if any(part.startswith(".") and part != ".hydra" for part in parts)]

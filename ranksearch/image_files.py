"""Image files of any depth as 8-bit pictures, and files that are damaged, named before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ranksearch.errors import DataError, first_line, shorten

# Of so many files all are looked at before anything is trained, of more an even share; the rest when they are read.
LOOKED_AT = 50_000
# How files of a kind begin and end, where they are whole.
WHOLE = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82", b"GIF8": b";"}
TAIL = 16


def load_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB with 8 bits a channel.

    Grey images of 16 bits are scaled down; such of floats are taken as 0 to 1, or as 0 to 255 where they go beyond 1.

    Raises:
        DataError: it is no image, damaged, or of a depth that says nothing of its range; the file is named.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, and of sizes that are raised as errors
            with Image.open(path) as image:
                image.load()
                return _as_rgb(image, path)
    except DataError:
        raise
    except Exception as error:  # whatever a decoder makes of a damaged file
        reason = shorten(first_line(error).replace(f"'{path}'", "it"), 120)
        raise DataError(f"{path} cannot be read as an image ({reason}): mend it, or take it out") from None


def _as_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image.convert("RGB")
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    limits = [1.0, 255.0] if image.mode == "F" else [255.0, 65535.0] if image.mode == "I" else [65535.0]
    limit = next((limit for limit in limits if high <= limit), None)
    if limit is None or not low >= 0:
        raise DataError(
            f"{path} has values from {low:g} to {high:g}, and its {image.mode} pixels say nothing of their range: save "
            "it with 8 or 16 bits a channel"
        )
    return Image.fromarray(np.rint(values * (255.0 / limit)).astype(np.uint8)).convert("RGB")


def require_images(files: Sequence[str | Path]) -> None:
    """Raise if one of some files is no image, or cut off; only what looks so is decoded.

    Args:
        files: of more than `LOOKED_AT`, an even share is looked at.

    Raises:
        DataError: one is; it is named.
    """
    step = len(files) // LOOKED_AT + 1
    for file in files[::step]:
        if not _looks_whole(file):
            load_image(file)


def _looks_whole(file: str | Path) -> bool:
    """Whether a file begins and ends as one of its kind does."""
    try:
        with open(file, "rb") as content:
            head = content.read(TAIL)
            content.seek(0, 2)
            content.seek(max(content.tell() - TAIL, 0))
            tail = content.read()
    except OSError:
        return False
    return any(head.startswith(start) and tail.endswith(end) for start, end in WHOLE.items())

"""Effort: how much of a plan's accuracy is traded for the time that it takes to find and apply it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from ranksearch.errors import UserError
from ranksearch.plan import SCHEMES

Level = Literal["fast", "default", "thorough"]


@dataclass(frozen=True)
class Effort:
    """What finding and applying a plan computes; docs/models.md has its time, docs/method.md its accuracy.

    Attributes:
        images: maximum number of examples that are read.
        schemes: schemes to consider.
        sequential_images: maximum number of images for sequential factorization.
        compare: whether a few plans are compared on held-out images: not at all, by networks whose layers are solved
            independently, or by networks whose layers are solved in turn.
        whole: whether the errors of wide layers are computed at all ranks and on both halves of the examples.
    """

    images: int
    schemes: Collection[str]
    sequential_images: int
    compare: Literal["no", "roughly", "in turn"]
    whole: bool


EFFORTS: dict[str, Effort] = {
    "fast": Effort(64, ("full", "vertical"), 64, "no", whole=False),
    "default": Effort(1024, SCHEMES, 256, "roughly", whole=False),
    "thorough": Effort(4096, SCHEMES, 512, "in turn", whole=True),
}


def effort_of(level: str) -> Effort:
    """Return the effort of a level.

    Raises:
        UserError: there is no such level.
    """
    if level not in EFFORTS:
        raise UserError(f"effort '{level}' is unknown: choose {', '.join(EFFORTS)}")
    return EFFORTS[level]

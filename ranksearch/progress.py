"""What long functions report their progress to."""

from typing import Protocol


class Tick(Protocol):
    """Receives the progress of a long function."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that some of a stage's steps are done; 0 begins the stage, and all end it."""


def unseen(stage: str, done: int, total: int) -> None:
    """Report nothing."""

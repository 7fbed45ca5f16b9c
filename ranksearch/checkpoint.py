"""A training that was interrupted, kept on disk so that it goes on where it stopped."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranksearch.errors import SettingError
from ranksearch.files import DamagedError, read_state, write_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Where a training is kept.

    Attributes:
        path: of the file.
        made_from: what the training depends on; a file of another one is not used.
        every: steps from one writing to the next; the last step is always written.
    """

    path: Path
    made_from: str
    every: int = 100

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SettingError("checkpoint_every", self.every, "is out of range: use 1 or more")

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to write after a step."""
        return step % self.every == 0 or step == steps

    def write(self, state: dict[str, Any]) -> None:
        """Keep a training's state in place of an earlier one."""
        write_state(self.path, {"made_from": self.made_from, **state})

    def read(self) -> dict[str, Any] | None:
        """The state that was kept; None where there is none of this very training, or it is damaged."""
        try:
            state = read_state(self.path)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            log.warning("checkpoint: %s; the training starts anew", error)
            return None
        return state if state.get("made_from") == self.made_from else None

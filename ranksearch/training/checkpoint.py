"""Checkpoints of a training, from which it resumes after an interruption."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ranksearch.errors import DamagedError, SettingError, first_line
from ranksearch.tensor_files import read_state, write_state

log = logging.getLogger(__name__)


class Stateful(Protocol):
    """A model, optimizer or schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return the current state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore a state."""


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoint file of a training.

    Attributes:
        path: path of the file.
        made_from: key of all that the training depends on; a file with another key is ignored.
        every: number of steps between two writes; the last step is always written.
    """

    path: Path
    made_from: str
    every: int = 100

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SettingError("checkpoint_every", self.every, "is out of range: use 1 or more")

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether to write after a step."""
        return step % self.every == 0 or step == steps

    def write(self, state: dict[str, Any]) -> None:
        """Write the state of a training in place of an earlier one."""
        write_state(self.path, {"made_from": self.made_from, **state})

    def read(self) -> dict[str, Any] | None:
        """Read the stored state; None if it is missing, damaged or of another training."""
        try:
            state = read_state(self.path)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            log.warning("checkpoint: %s; restarting the training", error)
            return None
        return state if state.get("made_from") == self.made_from else None

    def keep(self, step: int, parts: Mapping[str, Stateful]) -> None:
        """Write the states of the parts and of the random number generators after a step."""
        states = {name: part.state_dict() for name, part in parts.items()}
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        self.write({"step": step, "random": {"cpu": torch.get_rng_state(), "cuda": cuda}, **states})

    def restore(self, parts: Mapping[str, Stateful]) -> int:
        """Restore the parts and the random number generators; return the number of completed steps."""
        state = self.read()
        if state is None:
            return 0
        before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        random = torch.get_rng_state()
        try:
            for name, part in parts.items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["random"]["cpu"])
            if state["random"]["cuda"]:
                torch.cuda.set_rng_state_all(state["random"]["cuda"])
            return int(state["step"])
        except Exception as error:  # a part may raise anything for a state that does not fit
            log.warning("checkpoint: %s is damaged (%s); restarting the training", self.path, first_line(error))
        for name, part in parts.items():
            part.load_state_dict(before[name])
        torch.set_rng_state(random)
        return 0

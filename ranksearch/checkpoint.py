"""A training that was interrupted, kept on disk so that it goes on where it stopped."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ranksearch.errors import DamagedError, SettingError, first_line
from ranksearch.files import read_state, write_state

log = logging.getLogger(__name__)


class Stateful(Protocol):
    """A model, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """What it is at the moment."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Be that again."""
        ...


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

    def keep(self, step: int, parts: Mapping[str, Stateful]) -> None:
        """Write what has a state after a step, and the state of all random numbers."""
        states = {name: part.state_dict() for name, part in parts.items()}
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        self.write({"step": step, "random": {"cpu": torch.get_rng_state(), "cuda": cuda}, **states})

    def restore(self, parts: Mapping[str, Stateful]) -> int:
        """Set what has a state as it was kept; tell the steps that were done then."""
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
        except Exception as error:  # whatever a part makes of a state that is not its own
            log.warning("checkpoint: %s is damaged (%s); the training starts anew", self.path, first_line(error))
        for name, part in parts.items():
            part.load_state_dict(before[name])
        torch.set_rng_state(random)
        return 0

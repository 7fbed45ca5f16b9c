"""How a run was started, and what it consists of once everything is built and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranksearch.cli.config import RunConfig
from ranksearch.cli.interrupts import explain_interrupt
from ranksearch.cli.progress import Progress, watched
from ranksearch.storage.factory import storage_errors

if TYPE_CHECKING:
    from ranksearch.models.pretrained import DenseModel
    from ranksearch.runtimes.base import Runtime
    from ranksearch.study.context import SearchInputs

Work = Callable[[], None]  # of a run, once every check has passed


@dataclass(frozen=True)
class Launch:
    """How a run was started, beside its settings.

    Attributes:
        resolved: the configuration as plain JSON values.
        settings: the same, with interpolations as they were written: what they resolve to may be secret.
        command: command that repeats this run.
        folder: folder of the run, which Hydra will make; None if it exists.
        live: whether the run has the terminal to itself.
        stack: closed at the end of the run.
    """

    resolved: Mapping[str, Any]
    settings: dict[str, Any]
    command: str
    folder: Path | None
    live: bool
    stack: ExitStack

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show the progress of the work inside the block, and log how it is interrupted."""
        with explain_interrupt(), storage_errors(), watched(self.live) as progress:
            yield progress


@dataclass(frozen=True)
class RunContext:
    """A run before anything is trained.

    Attributes:
        config: settings of the run.
        launch: how it was started.
        compared: the settings that make two trials comparable, resolved, as plain JSON values.
        dense: the dense network, how it is built again, and the weights that it came with.
        runtime: what networks are timed in.
        inputs: what a search starts from.
    """

    config: RunConfig
    launch: Launch
    compared: dict[str, Any]
    dense: DenseModel
    runtime: Runtime
    inputs: SearchInputs

    @property
    def outputs(self) -> Path:
        """Folder of all outputs."""
        return Path(self.config.outputs)

    @property
    def folder(self) -> Path:
        """Folder of the study's artifacts."""
        return self.outputs / str(self.config.study.name)

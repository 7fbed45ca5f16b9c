"""What a fine-tuning must be able to do, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ranksearch.checkpoint import Checkpoint


@runtime_checkable
class FineTuning(Protocol):
    """How a plan's network is fine-tuned; `training.Recipe` is one, and a configuration may name another."""

    @property
    def steps(self) -> int:
        """Optimizer steps; 0 trains nothing."""
        ...

    @property
    def batch_size(self) -> int:
        """Examples of a step."""
        ...

    def lengthened(self, steps: int, learning_rate: float | None) -> FineTuning:
        """The same for another number of steps, as the picked plan gets it.

        Args:
            steps: of it.
            learning_rate: of it; None for whatever a longer fine-tuning bears.
        """
        ...

    def fine_tune(
        self,
        model: nn.Module,
        batches: Iterator[tuple[Tensor, Tensor]],
        teacher: nn.Module | None = None,
        on_step: Callable[[int, float], None] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Fine-tune a model in place, and leave it in eval mode; see `training.train` for the arguments.

        It calls ``on_step`` after every step, or no trial is pruned on the way; what that raises ends the trial. A
        checkpoint may be left alone: an interrupted fine-tuning then starts anew.
        """
        ...

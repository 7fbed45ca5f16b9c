"""Training recipes, and the protocol of fine-tuners; plain settings, which load no torch until they are used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ranksearch.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ranksearch.training.checkpoint import Checkpoint


@runtime_checkable
class FineTuner(Protocol):
    """Fine-tuning of a plan's network; `training.Recipe` is one, and a configuration may name another."""

    @property
    def steps(self) -> int:
        """Number of optimizer steps; 0 trains nothing."""

    @property
    def batch_size(self) -> int:
        """Examples per step."""

    def lengthened(self, steps: int, learning_rate: float | None) -> FineTuner:
        """Return the fine-tuning for another number of steps, as applied to the picked plan.

        Args:
            steps: number of steps.
            learning_rate: learning rate; None lets the fine-tuner choose that of a longer fine-tuning.
        """

    def fine_tune(
        self,
        model: nn.Module,
        batches: Iterator[tuple[Tensor, Tensor]],
        *,
        teacher: nn.Module | None = None,
        on_step: Callable[[int, float], None] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Fine-tune a model in place, and leave it in eval mode; see `training.train` for the arguments.

        It calls ``on_step`` after every step, or trials cannot be pruned early; an exception from it ends the trial. A
        checkpoint may be ignored: an interrupted fine-tuning then restarts.
        """


OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "one_cycle", "constant")
AUTOCASTS = ("auto", "off", "bfloat16")
# Factor by which a longer fine-tuning raises the learning rate.
LONGER_RATE = 4.0


@dataclass
class Recipe:
    """Hyperparameters of a training.

    Attributes:
        steps: number of optimizer steps; 0 trains nothing.
        batch_size: examples per step.
        optimizer: ``"sgd"``, with Nesterov momentum, or ``"adamw"``.
        learning_rate: maximum learning rate, reached after the warm-up.
        schedule: learning rate schedule after a linear warm-up: ``"cosine"`` decays to zero; ``"constant"`` stays.
            ``"one_cycle"`` rises and falls as a cosine, with the momentum inversely (Smith and Topin, 2018).
        warmup: share of the steps over which the learning rate rises, 0 to 1.
        momentum: momentum of SGD, and the decay of AdamW's first moment.
        weight_decay: weight decay of weights with two or more axes; biases and norms have none.
        label_smoothing: label smoothing of the cross-entropy with the labels, 0 to 1.
        distillation: weight of the distillation from the dense network in the loss, 0 to 1; the labels have the rest.
        temperature: softmax temperature of both predictions in the distillation.
        max_gradient_norm: norm to which longer gradients are clipped.
        averaging: decay of an exponential moving average of the weights, which training ends with; 0 disables it.
        autocast: ``"bfloat16"``, ``"off"``, or ``"auto"``: bfloat16 on a GPU if that is faster, see `resolve_autocast`.
        compile: whether to speed up steps by `torch.compile`, which takes a minute before the first.
    """

    steps: int
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    schedule: str = "cosine"
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    distillation: float = 0.0
    temperature: float = 2.0
    max_gradient_norm: float = 5.0
    averaging: float = 0.0
    autocast: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for key, options in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("autocast", AUTOCASTS)):
            if getattr(self, key) not in options:
                raise SettingError(key, getattr(self, key), f"is unknown: use {', '.join(options)}")
        limits = {
            "steps": (self.steps >= 0, "0 or more"),
            "batch_size": (self.batch_size >= 2, "2 or more"),
            "learning_rate": (0 < self.learning_rate < math.inf, "a finite number above 0"),
            "warmup": (0 <= self.warmup <= 1, "0 to 1"),
            "momentum": (0 <= self.momentum < 1, "0 to below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "a finite number, 0 or more"),
            "label_smoothing": (0 <= self.label_smoothing <= 1, "0 to 1"),
            "distillation": (0 <= self.distillation <= 1, "0 to 1"),
            "temperature": (0 < self.temperature < math.inf, "a finite number above 0"),
            "max_gradient_norm": (self.max_gradient_norm > 0, "above 0"),
            "averaging": (0 <= self.averaging < 1, "0 to below 1"),
        }
        for name, (holds, limit) in limits.items():
            if not holds:
                raise SettingError(name, getattr(self, name), f"is out of range: use {limit}")

    def lengthened(self, steps: int, learning_rate: float | None) -> Recipe:
        """Return the recipe for another number of steps; see `FineTuner`."""
        if learning_rate is None:
            learning_rate = self.learning_rate * (LONGER_RATE if 0 < self.steps < steps else 1)
        return replace(self, steps=steps, learning_rate=learning_rate)

    def fine_tune(
        self,
        model: nn.Module,
        batches: Iterator[tuple[Tensor, Tensor]],
        *,
        teacher: nn.Module | None = None,
        on_step: Callable[[int, float], None] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Fine-tune a model in place; see `train`."""
        from ranksearch.training.loop import train

        train(model, batches, self, teacher=teacher, on_step=on_step, checkpoint=checkpoint)


@dataclass
class BaselineSettings(Recipe):
    """Recipe of the dense network, and whether to train it.

    Attributes:
        train: ``"always"``, ``"never"``, or ``"auto"``: unless the model comes with weights for the data set's classes.
    """

    train: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train not in ("auto", "always", "never"):
            raise SettingError("train", self.train, "is unknown: use auto, always or never")

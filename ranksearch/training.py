"""One loop that trains and fine-tunes, one that evaluates."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ranksearch.checkpoint import Checkpoint, Stateful
from ranksearch.errors import DivergedError, SettingError
from ranksearch.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule
from ranksearch.timing import Timing, time_calls

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# Types of devices that may be faster in it: on CPUs without units for it a step takes ten times as long.
AUTOCAST_DEVICES = ("cuda",)
AUTOCASTS = ("auto", "off", "bfloat16")
# How much faster a step must be in bfloat16 for ``auto`` to take it.
WORTHWHILE = 1.1
# How much higher a rate a longer fine-tuning bears.
LONGER_RATE = 4.0
TIMED_STEPS = 5


@dataclass(frozen=True)
class Recipe:
    """How a network is trained for a number of steps.

    Attributes:
        steps: optimizer steps; 0 trains nothing.
        batch_size: examples of a step.
        optimizer: ``"sgd"``, with Nesterov momentum, or ``"adamw"``.
        learning_rate: the highest, reached after the warm-up.
        schedule: of the rate after a linear warm-up: ``"cosine"`` falls to zero; ``"constant"`` stays.
            ``"one_cycle"`` rises and falls as a cosine, with the momentum against it (Smith and Topin, 2018).
        warmup: share of the steps over which the rate rises, 0 to 1.
        momentum: of SGD, and the decay of AdamW's first moment.
        weight_decay: on weights of two axes and more; biases and norms have none.
        label_smoothing: of the labels' share of the loss.
        distillation: the dense network's share of the loss, 0 to 1; the labels have the rest.
        temperature: that softens both predictions when the dense network is followed.
        max_gradient_norm: longer gradients are scaled down to it.
        averaging: decay of an exponential moving average of the weights, which is what training ends with; 0 for the
            last weights as they are.
        autocast: ``"bfloat16"`` for the forward pass where torch finds that safe; ``"off"``; or ``"auto"``: on a GPU
            whose steps are found faster in it, see `settle_autocast`.
        compile: let `torch.compile` make the network's steps faster, which takes a minute before the first.
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
        for what, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("autocast", AUTOCASTS)):
            if getattr(self, what) not in known:
                raise SettingError(what, getattr(self, what), f"is unknown: use {', '.join(known)}")
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
        """See `FineTuning`."""
        rate = self.learning_rate if learning_rate is None else learning_rate
        if learning_rate is None and 0 < self.steps < steps:
            rate *= LONGER_RATE
        return replace(self, steps=steps, learning_rate=rate)

    def fine_tune(
        self,
        model: nn.Module,
        batches: Iterator[tuple[Tensor, Tensor]],
        teacher: nn.Module | None = None,
        on_step: Callable[[int, float], None] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """See `train`."""
        train(model, batches, self, teacher, on_step, checkpoint)


@dataclass(frozen=True)
class Evaluation:
    """How a model does on a split.

    Attributes:
        accuracy: share of examples whose label is predicted, 0 to 1.
        loss: mean cross-entropy, in nats.
    """

    accuracy: float
    loss: float


def train(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    recipe: Recipe,
    teacher: nn.Module | None = None,
    on_step: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train a model in place, and leave it in eval mode.

    Args:
        model: maps `[B, C, H, W]` to logits `[B, num_classes]`.
        batches: as many as the recipe has steps, on the model's device.
        recipe: how.
        teacher: the dense network, in eval mode, whose predictions the recipe's ``distillation`` follows.
        on_step: is told the step, from 1, and its loss.
        checkpoint: where to go on from, and to keep what is done.

    Raises:
        DivergedError: the loss is not finite any more.
    """
    optimizer = make_optimizer(recipe.optimizer, model, recipe.learning_rate, recipe.momentum, recipe.weight_decay)
    schedule = make_schedule(recipe.schedule, optimizer, recipe.steps, recipe.warmup, recipe.momentum)
    parts: dict[str, Stateful] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    averaged = None
    if recipe.averaging:
        average = get_ema_multi_avg_fn(recipe.averaging)  # type: ignore[no-untyped-call]  # as torch declares it
        averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        parts["averaged"] = averaged
    done = 0 if checkpoint is None else checkpoint.restore(parts)
    for _ in range(done):
        next(batches)
    forward: Callable[[Tensor], Tensor] = torch.compile(model) if recipe.compile else model
    pieces = 1
    model.train()
    for step in range(done + 1, recipe.steps + 1):
        images, labels = next(batches)

        def accumulate(pieces: int, images: Tensor = images, labels: Tensor = labels) -> float:
            optimizer.zero_grad(set_to_none=True)
            return _accumulate(forward, images, labels, recipe, teacher, pieces)

        # BatchNorm needs two images at least.
        loss, pieces = _in_pieces(accumulate, len(images), pieces, fewest=2, done="now go through")
        if not math.isfinite(loss):
            raise DivergedError(f"the loss became {loss} at step {step} of {recipe.steps}: lower learning_rate")
        nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
        optimizer.step()
        schedule.step()
        if averaged is not None:
            averaged.update_parameters(model)
        if on_step is not None:
            on_step(step, loss)
        if checkpoint is not None and checkpoint.is_due(step, recipe.steps):
            checkpoint.keep(step, parts)
    if averaged is not None and recipe.steps:
        model.load_state_dict(averaged.module.state_dict())
    model.eval()


def _in_pieces(call: Callable[[int], Result], images: int, pieces: int, fewest: int, done: str) -> tuple[Result, int]:
    """Call with a batch in twice as many pieces, until the memory suffices.

    Args:
        call: what to do with the batch in so many pieces.
        images: of the batch.
        pieces: to begin with.
        fewest: images that a piece must have.
        done: what becomes of batches, for the log.

    Returns:
        What the call gave, and in how many pieces.

    Raises:
        torch.OutOfMemoryError: pieces would be too small.
    """
    while True:
        try:
            return call(pieces), pieces
        except torch.OutOfMemoryError:
            if images < 2 * fewest * pieces:
                raise
            pieces *= 2
        log.warning("out of memory: batches of %d %s in %d pieces", images, done, pieces)


def _accumulate(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    teacher: nn.Module | None,
    pieces: int,
) -> float:
    """Add up the gradients of a batch's mean loss, piece by piece, and give that loss."""
    total = 0.0
    for some, their in zip(images.tensor_split(pieces), labels.tensor_split(pieces), strict=True):
        loss = _loss(forward, some, their, recipe, teacher) * (len(some) / len(images))
        total += loss.item()
        if math.isfinite(total):
            loss.backward()  # type: ignore[no-untyped-call]  # as torch declares it
    return total


def _loss(
    forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, recipe: Recipe, teacher: nn.Module | None
) -> Tensor:
    targets = None
    with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.autocast == "bfloat16"):
        logits = forward(images)
        if teacher is not None and recipe.distillation > 0:
            with torch.no_grad():
                targets = F.log_softmax(teacher(images).float() / recipe.temperature, dim=1)
    logits = logits.float()
    from_labels = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if targets is None:
        return from_labels
    student = F.log_softmax(logits / recipe.temperature, dim=1)
    # Times the squared temperature, so that its gradients keep the scale of the labels' (Hinton et al., 2015).
    from_teacher = F.kl_div(student, targets, reduction="batchmean", log_target=True) * recipe.temperature**2
    return (1 - recipe.distillation) * from_labels + recipe.distillation * from_teacher


def settle_autocast(
    recipe: Recipe, model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], device: torch.device
) -> Recipe:
    """Replace ``autocast="auto"`` by what this device does faster; on a CPU that is float32, which also repeats.

    Args:
        recipe: that says ``auto``, or is given back as it is.
        model: to time steps of; is not changed.
        batches: to time them on, on the device; of a CPU none is drawn.
        device: where the model is.
    """
    if recipe.autocast != "auto":
        return recipe
    if device.type not in AUTOCAST_DEVICES:
        return replace(recipe, autocast="off")
    batch = next(batches)
    choices = [replace(recipe, autocast=autocast) for autocast in ("off", "bfloat16")]
    calls = [_step(copy.deepcopy(model).train(), batch, choice) for choice in choices]
    plain, cast = (Timing.of(samples).median for samples in time_calls(calls, device, TIMED_STEPS, grad=True))
    log.info("fine-tuning: a step is %.2fx as fast in bfloat16 as in float32", plain / cast)
    return choices[plain / cast > WORTHWHILE]


def _step(model: nn.Module, batch: tuple[Tensor, Tensor], recipe: Recipe) -> Callable[[], float]:
    return lambda: _accumulate(model, *batch, recipe, None, 1)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    """Measure a model, in eval mode, on the batches of a split; those that do not fit the memory go through in pieces.

    Raises:
        DivergedError: the loss is not finite.
    """
    model.eval()
    seen, correct, loss, pieces = 0, 0, 0.0, 1
    for images, labels in batches:

        def predict(pieces: int, images: Tensor = images) -> Tensor:
            return torch.cat([model(some) for some in images.tensor_split(pieces)])

        logits, pieces = _in_pieces(predict, len(images), pieces, fewest=1, done="are now evaluated")
        seen += len(labels)
        correct += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    if not math.isfinite(loss):
        raise DivergedError(f"the loss over {seen} examples is {loss}: lower learning_rate")
    return Evaluation(correct / max(seen, 1), loss / max(seen, 1))

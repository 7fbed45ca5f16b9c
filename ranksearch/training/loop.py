"""The loop that trains and fine-tunes, and the one that evaluates."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ranksearch.errors import DivergedError
from ranksearch.results.trials import Evaluation
from ranksearch.runtimes.benchmark import Timing, time_calls
from ranksearch.tasks import classification
from ranksearch.training.checkpoint import Checkpoint, Stateful
from ranksearch.training.optimizers import make_optimizer, make_schedule

if TYPE_CHECKING:
    from ranksearch.training.recipe import Recipe  # which calls this module

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Batch = tuple[Tensor, Tensor]

# Devices that may be faster in bfloat16; on CPUs without units for it a step takes ten times as long.
AUTOCAST_DEVICES = ("cuda",)
# How much faster a step must be in bfloat16 for ``auto`` to take it.
WORTHWHILE = 1.1
TIMED_STEPS = 5


def train(
    model: nn.Module,
    batches: Iterator[Batch],
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    on_step: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train a model in place, and leave it in eval mode.

    Args:
        model: maps `[B, C, H, W]` to logits `[B, num_classes]`.
        batches: at least as many batches as the recipe has steps, on the model's device.
        recipe: hyperparameters of the training.
        teacher: the dense network, in eval mode, whose predictions the recipe's ``distillation`` follows.
        on_step: called with the step, from 1, and its loss.
        checkpoint: where the training continues from, and where its state is saved.

    Raises:
        DivergedError: the loss is not finite.
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
        batch = next(batches)

        def accumulate(pieces: int, batch: Batch = batch) -> float:
            optimizer.zero_grad(set_to_none=True)
            return _accumulate(forward, batch, recipe, teacher, pieces)

        # BatchNorm needs at least two images.
        loss, pieces = _in_pieces(accumulate, len(batch[1]), pieces, minimum=2)
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


def _in_pieces(call: Callable[[int], Result], images: int, pieces: int, minimum: int) -> tuple[Result, int]:
    """Return the result of a call that takes a number of pieces, and this number, doubled until they fit in memory."""
    while True:
        try:
            return call(pieces), pieces
        except torch.OutOfMemoryError:
            if images < 2 * minimum * pieces:  # a piece would have fewer than the minimum
                raise
            pieces *= 2
        log.warning("out of memory: batches of %d are now processed in %d pieces", images, pieces)


def _accumulate(
    forward: Callable[[Tensor], Tensor], batch: Batch, recipe: Recipe, teacher: nn.Module | None, pieces: int
) -> float:
    """Accumulate the gradients of a batch's mean loss piece by piece, and return that loss."""
    total = 0.0
    for images, labels in zip(*(part.tensor_split(pieces) for part in batch), strict=True):
        loss = _loss(forward, images, labels, recipe, teacher) * (len(images) / len(batch[0]))
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
                targets = classification.soft_targets(teacher(images), recipe.temperature)
    logits = logits.float()
    from_labels = classification.loss(logits, labels, recipe.label_smoothing)
    if targets is None:
        return from_labels
    from_teacher = classification.distillation_loss(logits, targets, recipe.temperature)
    return (1 - recipe.distillation) * from_labels + recipe.distillation * from_teacher


def resolve_autocast(recipe: Recipe, model: nn.Module, batches: Iterator[Batch], device: torch.device) -> Recipe:
    """Replace ``autocast="auto"`` by what is faster on this device; on a CPU that is float32, which is reproducible.

    Args:
        recipe: returned as it is unless it says ``auto``.
        model: the network whose steps are timed; left unchanged.
        batches: batches to time them on, on the device; on a CPU none is drawn.
        device: device of the model.
    """
    if recipe.autocast != "auto":
        return recipe
    if device.type not in AUTOCAST_DEVICES:
        return replace(recipe, autocast="off")
    batch = next(batches)
    choices = [replace(recipe, autocast=autocast) for autocast in ("off", "bfloat16")]
    calls = [partial(_accumulate, copy.deepcopy(model).train(), batch, choice, None, 1) for choice in choices]
    plain, cast = (Timing.from_samples(samples).median for samples in time_calls(calls, device, TIMED_STEPS, grad=True))
    log.info("fine-tuning: a step is %.2fx as fast in bfloat16 as in float32", plain / cast)
    return choices[plain / cast > WORTHWHILE]


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
    """Evaluate a model, in eval mode, on the batches of a split; batches that exceed the memory are split.

    Raises:
        DivergedError: the loss is not finite.
    """
    model.eval()
    metric, pieces = classification.Metric(), 1
    for images, labels in batches:

        def predict(pieces: int, images: Tensor = images) -> Tensor:
            return torch.cat([model(piece) for piece in images.tensor_split(pieces)])

        logits, pieces = _in_pieces(predict, len(images), pieces, minimum=1)
        metric.update(logits, labels)
    scores = Evaluation(*metric.compute())
    if not math.isfinite(scores.loss):
        raise DivergedError(f"the loss over {metric.seen} examples is {scores.loss}: lower learning_rate")
    return scores

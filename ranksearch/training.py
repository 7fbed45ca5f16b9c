"""One loop that trains and fine-tunes, one that evaluates."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ranksearch.checkpoint import Checkpoint
from ranksearch.errors import DivergedError, SettingError

log = logging.getLogger(__name__)

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "one_cycle", "constant")


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
        distillation: the dense model's share of the loss, 0 to 1; the labels have the rest.
        temperature: that softens both predictions when the dense model is followed.
        max_gradient_norm: longer gradients are scaled down to it.
        averaging: decay of an exponential moving average of the weights, which is what training ends with; 0 for the
            last weights as they are.
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

    def __post_init__(self) -> None:
        for what, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, what) not in known:
                raise SettingError(what, getattr(self, what), f"is unknown: use {', '.join(known)}")
        limits = {
            "steps": (self.steps >= 0, "0 or more"),
            "batch_size": (self.batch_size >= 2, "2 or more"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "warmup": (0 <= self.warmup <= 1, "0 to 1"),
            "momentum": (0 <= self.momentum < 1, "0 to below 1"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "label_smoothing": (0 <= self.label_smoothing <= 1, "0 to 1"),
            "distillation": (0 <= self.distillation <= 1, "0 to 1"),
            "temperature": (self.temperature > 0, "above 0"),
            "max_gradient_norm": (self.max_gradient_norm > 0, "above 0"),
            "averaging": (0 <= self.averaging < 1, "0 to below 1"),
        }
        for name, (holds, limit) in limits.items():
            if not holds:
                raise SettingError(name, getattr(self, name), f"is out of range: use {limit}")


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
        teacher: the dense model, in eval mode, whose predictions the recipe's ``distillation`` follows.
        on_step: is told the step, from 1, and its loss.
        checkpoint: where to go on from, and to keep what is done.

    Raises:
        DivergedError: the loss is not finite any more.
    """
    optimizer = _optimizer(model, recipe)
    schedule = _schedule(optimizer, recipe)
    parts: dict[str, _Stateful] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    averaged = None
    if recipe.averaging:
        average = get_ema_multi_avg_fn(recipe.averaging)  # type: ignore[no-untyped-call]  # as torch declares it
        averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        parts["averaged"] = averaged
    done = 0 if checkpoint is None else _restore(checkpoint, parts, batches)
    pieces = 1
    model.train()
    for step in range(done + 1, recipe.steps + 1):
        images, labels = next(batches)
        while True:
            optimizer.zero_grad(set_to_none=True)
            try:
                loss = _accumulate(model, images, labels, recipe, teacher, pieces)
                break
            except torch.OutOfMemoryError:
                if len(images) < 4 * pieces:  # BatchNorm needs two images at least
                    raise
                pieces *= 2
            log.warning("out of memory: batches of %d now go through in %d pieces", len(images), pieces)
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
            states = {name: part.state_dict() for name, part in parts.items()}
            checkpoint.write({"step": step, "random": _random_state(), **states})
    if averaged is not None and recipe.steps:
        model.load_state_dict(averaged.module.state_dict())
    model.eval()


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def _restore(checkpoint: Checkpoint, parts: Mapping[str, _Stateful], batches: Iterator[tuple[Tensor, Tensor]]) -> int:
    """Go on from a checkpoint, as if training had never stopped; tell the steps that are done."""
    state = checkpoint.read()
    if state is None:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    for _ in range(state["step"]):
        next(batches)
    torch.set_rng_state(state["random"]["cpu"])
    if state["random"]["cuda"]:
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    return int(state["step"])


def _random_state() -> dict[str, Any]:
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.learning_rate, betas=(recipe.momentum, 0.999))
    return torch.optim.SGD(groups, recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "one_cycle" and recipe.steps > 3:  # in fewer, nothing can rise and fall
        total = recipe.steps + 1  # the rate is asked for once more after the last step
        rising = min(max(recipe.warmup * total, 2.0), total - 2.0) / total
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            recipe.learning_rate,
            total,
            pct_start=rising,
            cycle_momentum=recipe.momentum > 0,
            base_momentum=max(recipe.momentum - 0.1, 0.0),
            max_momentum=recipe.momentum,
        )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))


def _rate(step: int, recipe: Recipe) -> float:
    """The share of the highest learning rate at a step, from 0."""
    rising = max(1, round(recipe.warmup * recipe.steps))
    if step < rising:
        return (step + 1) / rising
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, recipe.steps - rising)))


def _accumulate(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, teacher: nn.Module | None, pieces: int
) -> float:
    """Add up the gradients of a batch's mean loss, piece by piece, and give that loss."""
    total = 0.0
    for some, their in zip(images.tensor_split(pieces), labels.tensor_split(pieces), strict=True):
        loss = _loss(model, some, their, recipe, teacher) * (len(some) / len(images))
        total += loss.item()
        if math.isfinite(total):
            loss.backward()  # type: ignore[no-untyped-call]  # as torch declares it
    return total


def _loss(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, teacher: nn.Module | None) -> Tensor:
    logits = model(images)
    from_labels = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if teacher is None or recipe.distillation == 0:
        return from_labels
    with torch.no_grad():
        targets = F.log_softmax(teacher(images) / recipe.temperature, dim=1)
    student = F.log_softmax(logits / recipe.temperature, dim=1)
    # Times the squared temperature, so that its gradients keep the scale of the labels' (Hinton et al., 2015).
    from_teacher = F.kl_div(student, targets, reduction="batchmean", log_target=True) * recipe.temperature**2
    return (1 - recipe.distillation) * from_labels + recipe.distillation * from_teacher


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    """Measure a model, in eval mode, on the batches of a split.

    Raises:
        DivergedError: the loss is not finite.
    """
    model.eval()
    seen, correct, loss = 0, 0, 0.0
    for images, labels in batches:
        logits = model(images)
        seen += len(labels)
        correct += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    if not math.isfinite(loss):
        raise DivergedError(f"the loss over {seen} examples is {loss}: lower learning_rate")
    return Evaluation(correct / max(seen, 1), loss / max(seen, 1))

"""Optimizers and learning-rate schedules, by name."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR


def make_optimizer(
    name: str, model: nn.Module, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Make an optimizer of all trainable parameters.

    Args:
        name: ``"sgd"``, with Nesterov momentum, or ``"adamw"``.
        model: the network; its biases and norms, of one axis, have no weight decay.
        learning_rate: the highest rate.
        momentum: momentum of SGD, or the decay of AdamW's first moment.
        weight_decay: decay of weights of two axes and more.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, learning_rate, betas=(momentum, 0.999))
    return torch.optim.SGD(groups, learning_rate, momentum=momentum, nesterov=momentum > 0)


def make_schedule(
    name: str, optimizer: torch.optim.Optimizer, steps: int, warmup: float, momentum: float
) -> LRScheduler:
    """Make the learning-rate schedule of a training run.

    Args:
        name: ``"cosine"`` or ``"constant"``, after a linear warm-up, or ``"one_cycle"``.
        optimizer: with the highest rate.
        steps: steps of the run.
        warmup: share of the steps over which the rate rises.
        momentum: the highest momentum, which one cycle moves against the rate.
    """
    if name == "one_cycle" and steps > 3:  # in fewer, nothing can rise and fall
        total = steps + 1  # the rate is computed once more after the last step
        rising = min(max(warmup * total, 2.0), total - 2.0) / total
        highest = optimizer.param_groups[0]["lr"]
        momenta: dict[str, Any] = {"base_momentum": max(momentum - 0.1, 0.0), "max_momentum": momentum}
        return OneCycleLR(optimizer, highest, total, pct_start=rising, cycle_momentum=momentum > 0, **momenta)
    rising_steps = max(1, round(warmup * steps))
    rise = LinearLR(optimizer, 1 / rising_steps, total_iters=rising_steps - 1)
    if name == "constant":
        return rise
    fall = CosineAnnealingLR(optimizer, max(1, steps - rising_steps))
    return SequentialLR(optimizer, [rise, fall], [rising_steps])

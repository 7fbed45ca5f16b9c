"""Optimizers and the course of their learning rates, by name."""

from __future__ import annotations

import math

import torch
from torch import nn

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "one_cycle", "constant")

Schedule = torch.optim.lr_scheduler.LRScheduler


def make_optimizer(
    name: str, model: nn.Module, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer of all parameters that are trained.

    Args:
        name: one of `OPTIMIZERS`; SGD has Nesterov momentum.
        model: whose biases and norms, of one axis, have no weight decay.
        learning_rate: the highest.
        momentum: of SGD, and the decay of AdamW's first moment.
        weight_decay: on weights of two axes and more.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, learning_rate, betas=(momentum, 0.999))
    return torch.optim.SGD(groups, learning_rate, momentum=momentum, nesterov=momentum > 0)


def make_schedule(name: str, optimizer: torch.optim.Optimizer, steps: int, warmup: float, momentum: float) -> Schedule:
    """What the learning rate does over the steps.

    Args:
        name: one of `SCHEDULES`.
        optimizer: with the highest rate.
        steps: of the training.
        warmup: share of them over which the rate rises.
        momentum: the highest, which one cycle moves against the rate.
    """
    if name == "one_cycle" and steps > 3:  # in fewer, nothing can rise and fall
        total = steps + 1  # the rate is asked for once more after the last step
        rising = min(max(warmup * total, 2.0), total - 2.0) / total
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            optimizer.param_groups[0]["lr"],
            total,
            pct_start=rising,
            cycle_momentum=momentum > 0,
            base_momentum=max(momentum - 0.1, 0.0),
            max_momentum=momentum,
        )
    rising_steps = max(1, round(warmup * steps))

    def share(step: int) -> float:
        if step < rising_steps:
            return (step + 1) / rising_steps
        if name == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - rising_steps) / max(1, steps - rising_steps)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)

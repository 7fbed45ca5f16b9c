"""What is learned from a few training batches: output statistics before factorizing, BatchNorm's after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ranksearch.factorize.solver import OutputStatistics


class _RunningMoments:
    """Mean and covariance of rows that arrive in batches, merged pairwise on the CPU (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.scatter = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Take in `[N, out]`."""
        rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        count = len(rows)
        if count == 0:
            return
        batch_mean = rows.mean(0)
        centred = rows - batch_mean
        batch_mean, scatter = batch_mean.cpu().double(), (centred.T @ centred).cpu().double()
        if self.count == 0:
            self.count, self.mean, self.scatter = count, batch_mean, scatter
            return
        shift = batch_mean - self.mean
        total = self.count + count
        self.scatter += scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

    def result(self) -> OutputStatistics:
        """The moments so far."""
        return OutputStatistics(self.count, self.mean, self.scatter / max(self.count, 1))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode, and every module back to its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def as_rows(output: Tensor, module: nn.Module) -> Tensor:
    """Lay a layer's output out as one row per position: `[B, out, H, W]` or `[..., out]` to `[N, out]`."""
    if isinstance(module, nn.Conv2d):
        output = output.movedim(-3, -1)
    return output.reshape(-1, output.shape[-1])


@torch.no_grad()
def collect_statistics(
    model: nn.Module, batches: Iterable[Tensor], layers: Iterable[str]
) -> dict[str, OutputStatistics]:
    """Stream the outputs of the named layers into their mean and covariance; the model is left as it was.

    Args:
        model: in any mode; it runs in eval mode.
        batches: inputs, `[B, ...]`, on the model's device.
        layers: dotted names of convolutions and linear layers.

    Returns:
        The statistics of every layer that ran. Memory: one float64 `[out, out]` matrix per layer.
    """
    moments: dict[str, _RunningMoments] = {}
    hooks = []
    for name in layers:
        running = moments[name] = _RunningMoments()

        def observe(module: nn.Module, _: object, output: Tensor, running: _RunningMoments = running) -> None:
            running.add(as_rows(output, module))

        hooks.append(model.get_submodule(name).register_forward_hook(observe))
    try:
        with _evaluating(model):
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: running.result() for name, running in moments.items() if running.count}


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate every BatchNorm's running statistics anew, in place.

    Each becomes the plain average over the batches; affine weights and all other modules stay as they are.

    Args:
        model: in any mode; only its BatchNorm layers see training mode.
        batches: inputs, `[B, ...]`, on the model's device; without any, nothing changes.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with _evaluating(model):
        try:
            for index, batch in enumerate(batches):
                if index == 0:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.momentum = None  # a cumulative average
                        norm.training = True
                model(batch)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

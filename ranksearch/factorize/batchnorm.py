"""BatchNorm's running statistics after factorization: re-estimated, or corrected for the change of the inputs.

A few hundred images estimate statistics less accurately than the whole training did, with its augmentation and long
averages, and may come from another distribution. The difference of a norm's inputs between factorized and dense network
on the same images captures the effect of factorization; it is applied to the dense network's statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ranksearch.batches import Call, read_batch, read_batches
from ranksearch.errors import DataError
from ranksearch.factorize.source_model import hooked, unwrap

# Shares of the corrected statistics; the rest is plain re-estimation.
CORRECTED, MIXED, PLAIN = 1.0, 0.5, 0.0
# Used instead of a share to keep the stored statistics.
STORED = None


@dataclass(frozen=True)
class NormStatistics:
    """Mean and variance of one norm, `[channels]` each."""

    mean: Tensor
    var: Tensor

    def equals(self, other: NormStatistics) -> bool:
        """Return whether all values are exactly equal."""
        return torch.equal(self.mean, other.mean) and torch.equal(self.var, other.var)


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return every BatchNorm that keeps running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


def statistics_of_norms(model: nn.Module) -> dict[str, NormStatistics]:
    """Return a copy of the running statistics of every BatchNorm, by name."""
    return {name: norm_statistics(norm) for name, norm in norms_of(model).items()}


def norm_statistics(norm: _BatchNorm) -> NormStatistics:
    """Return a copy of a norm's running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return NormStatistics(norm.running_mean.detach().clone(), norm.running_var.detach().clone())


def set_statistics(norm: _BatchNorm, statistics: NormStatistics) -> None:
    """Set a norm's running statistics, in place."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.copy_(statistics.mean)
        norm.running_var.copy_(statistics.var)


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Any], *, call: Call | None = None) -> None:
    """Re-estimate every BatchNorm's running statistics, in place, as plain averages over the batches.

    Affine weights and all other modules stay as they are.

    Args:
        model: the network, in any mode; only its BatchNorm layers run in training mode.
        batches: batches of examples, see `read_batch`; without any, nothing changes. Batches of a single example are
            skipped if there are larger ones.
        call: runs the model on a batch.

    Raises:
        DataError: there are only batches of one example, and a norm needs two.
    """
    model = unwrap(model)
    given = list(read_batches(model, batches, call))
    usable = [batch for batch in given if len(batch) > 1] or given
    if not usable:
        return
    with evaluating(model), estimating(norms_of(model).values()):
        for batch in usable:
            try:
                batch.run(model)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise DataError("1 example is too few for a variance: give batches of 2 or more") from None


def moved(stored: NormStatistics, before: NormStatistics, after: NormStatistics, eps: float) -> NormStatistics:
    """Return statistics corrected for the change of a norm's inputs: the mean is shifted, the variance scaled.

    Args:
        stored: statistics of the dense network.
        before: moments of the norm's inputs in the dense network.
        after: moments of its inputs in the factorized network, for the same examples.
        eps: lower bound of the variance to divide by.

    Returns:
        The corrected statistics; ``stored`` itself if both moments are equal.
    """
    if before.equals(after):
        return stored
    mean = stored.mean + (after.mean - before.mean)
    return NormStatistics(mean, stored.var * (after.var / before.var.clamp_min(eps)))


def mixed(one: NormStatistics, other: NormStatistics, share: float) -> NormStatistics:
    """Return a share of one and the rest of the other; exactly one of them if the share is 1 or 0."""
    if share in (0.0, 1.0):
        return one if share else other
    return NormStatistics(share * one.mean + (1 - share) * other.mean, share * one.var + (1 - share) * other.var)


@torch.no_grad()
def move_in_turn(
    network: nn.Module, stored: Mapping[str, NormStatistics], inputs: Mapping[str, NormStatistics], batch: Any
) -> set[str]:
    """Correct every norm's statistics in one pass, in place, each with the norms before it already corrected.

    Args:
        network: the factorized network, in eval mode.
        stored: statistics of the dense network, by name.
        inputs: moments of the dense network's norm inputs, see `record_activations`; other norms keep `stored`.
        batch: the examples that these moments were measured on; see `read_batch`.

    Returns:
        Names of the norms whose inputs have changed.
    """
    changed: set[str] = set()

    def move(name: str, norm: _BatchNorm, args: tuple[Tensor, ...]) -> None:
        after = norm_moments(args[0])
        if not inputs[name].equals(after):
            changed.add(name)
        set_statistics(norm, moved(stored[name], inputs[name], after, norm.eps))

    norms = {name: norm for name, norm in norms_of(network).items() if name in stored}
    handles = [norm.register_forward_pre_hook(partial(move, name)) for name, norm in norms.items() if name in inputs]
    for name, norm in norms.items():
        set_statistics(norm, stored[name])
    with hooked(handles):
        read_batch(network, batch).run(network)
    return changed


@torch.no_grad()
def adapt_batchnorm(
    network: nn.Module,
    stored: Mapping[str, NormStatistics],
    batches: Iterable[Any],
    divergence: Callable[[nn.Module], float] | None = None,
) -> float | None:
    """Choose a factorized network's BatchNorm statistics: corrected for the change of the inputs, or re-estimated.

    Args:
        network: the factorized network, its norms corrected by `move_in_turn` or `factorize_sequentially`; changed in
            place and left in eval mode.
        stored: running statistics of the dense network, by name; see `statistics_of_norms`.
        batches: batches of examples for plain re-estimation; see `read_batch`.
        divergence: divergence of a network from the dense one on held-out images. It selects among statistics that
            depart from the stored ones step by step: `STORED`, `CORRECTED`, `MIXED`, `PLAIN`. None selects `CORRECTED`.

    Returns:
        The selected share, or `STORED`.
    """
    network.eval()
    norms = {name: norm for name, norm in norms_of(network).items() if name in stored}
    changed = {name for name, norm in norms.items() if not stored[name].equals(norm_statistics(norm))}
    if divergence is None or not changed:
        return CORRECTED
    by_difference = statistics_of_norms(network)
    counters = [norm.num_batches_tracked for norm in norms.values() if norm.num_batches_tracked is not None]
    counts = [counter.clone() for counter in counters]
    recalibrate_batchnorm(network, batches)
    for counter, count in zip(counters, counts, strict=True):
        counter.copy_(count)
    plain = statistics_of_norms(network)

    def use(share: float | None) -> None:
        for name, norm in norms.items():
            kept = share is STORED or name not in changed
            set_statistics(norm, stored[name] if kept else mixed(by_difference[name], plain[name], share or 0.0))

    def score(share: float | None) -> float:
        use(share)
        return divergence(network)

    # From the middle, only the direction that improves is followed. Ties go to the earlier entry.
    scores: dict[float | None, float] = {share: score(share) for share in (CORRECTED, MIXED)}
    further = PLAIN if scores[MIXED] < scores[CORRECTED] else STORED
    scores[further] = score(further)
    chosen = min(scores, key=scores.__getitem__)
    use(chosen)
    return chosen


def norm_moments(values: Tensor) -> NormStatistics:
    """Return the mean and variance of each channel of `[B, channels, ...]`."""
    precise = values.float() if values.dtype.itemsize < 4 else values
    # Several times faster than torch.var_mean where channels are last.
    _, mean, inverse_deviation = torch.native_batch_norm(precise, None, None, None, None, True, 0.0, 0.0)
    return NormStatistics(mean, inverse_deviation.square().reciprocal())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode inside the block, and restore every module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def estimating(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Re-estimate the norms' running statistics as plain averages over the calls inside the block.

    The norms are left in training mode. Norms that are not called keep their statistics; if the block fails, all do.
    """
    tracked = [norm for norm in norms if norm.track_running_stats]
    buffers = [{name: value.clone() for name, value in norm._buffers.items() if value is not None} for norm in tracked]
    before = [(norm, norm.momentum, held) for norm, held in zip(tracked, buffers, strict=True)]
    whole = False
    try:
        for norm in tracked:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.training = True
        yield
        whole = True
    finally:
        for norm, momentum, held in before:
            norm.momentum = momentum
            if not whole or not norm.num_batches_tracked:  # it was not called
                for name, value in held.items():
                    norm._buffers[name].copy_(value)  # type: ignore[union-attr]  # it was not None when it was saved

"""BatchNorm's running statistics after factorizing: estimated anew, or moved by what factorizing changed.

A few hundred images estimate statistics worse than the whole training did, with its augmentation and long averages. But
the difference between two estimates on the same images, one of the dense and one of the factorized network, says well
what factorizing has changed; so that difference is added to the statistics that the dense network has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ranksearch.batches import inputs_of
from ranksearch.errors import DataError
from ranksearch.factorize.source_model import untouched, unwrap

# Of the adaptation by differences; the rest is plain re-estimation. The first of equals is taken.
SHARES = (1.0, 0.5, 0.0)


@dataclass(frozen=True)
class NormStatistics:
    """Of one norm: mean and variance, `[channels]` each."""

    mean: Tensor
    var: Tensor

    def equals(self, other: NormStatistics) -> bool:
        """Whether all numbers are the same, bit for bit."""
        return torch.equal(self.mean, other.mean) and torch.equal(self.var, other.var)


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every BatchNorm that keeps running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


def statistics_of_norms(model: nn.Module) -> dict[str, NormStatistics]:
    """A copy of the running statistics of every BatchNorm, by name."""
    return {name: _statistics(norm) for name, norm in norms_of(model).items()}


def _statistics(norm: _BatchNorm) -> NormStatistics:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return NormStatistics(norm.running_mean.detach().clone(), norm.running_var.detach().clone())


def set_statistics(norm: _BatchNorm, statistics: NormStatistics) -> None:
    """Give a norm running statistics, in place."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.copy_(statistics.mean)
        norm.running_var.copy_(statistics.var)


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate every BatchNorm's running statistics anew, in place.

    Each becomes the plain average over the batches; affine weights and all other modules stay as they are.

    Args:
        model: in any mode; only its BatchNorm layers run in training mode.
        batches: inputs, `[B, ...]`, or tuples that begin with them, on the model's device; without any, nothing
            changes. A batch of a single example is left out where there are larger ones.

    Raises:
        DataError: a batch of one example is all there is for a norm that needs two.
    """
    model = unwrap(model)
    given = list(inputs_of(batches))
    usable = [batch for batch in given if len(batch) > 1] or given
    if not usable:
        return
    with evaluating(model), estimating(norms_of(model).values()):
        for batch in usable:
            try:
                model(batch)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise DataError("1 example says nothing of a variance: give batches of 2 or more") from None


def estimate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, NormStatistics]:
    """What `recalibrate_batchnorm` would make of every norm's statistics, by name; the model is left as it was."""
    model = unwrap(model)
    with untouched(model):
        recalibrate_batchnorm(model, batches)
        return statistics_of_norms(model)


def adapted(
    stored: NormStatistics, dense: NormStatistics, factorized: NormStatistics, share: float, eps: float
) -> NormStatistics:
    """Statistics moved by the difference of two estimates, mixed with the plain one of the factorized network.

    Args:
        stored: of the dense network.
        dense: its estimate on some images.
        factorized: the factorized network's on the same images.
        share: of the move by differences, 0 to 1; the rest is ``factorized`` as it is.
        eps: the least variance that a quotient divides by.

    Returns:
        ``stored``, bit for bit, where the two estimates are equal.
    """
    if dense.equals(factorized):
        return stored
    mean = stored.mean + (factorized.mean - dense.mean)
    var = stored.var * (factorized.var / dense.var.clamp_min(eps))
    return NormStatistics(
        share * mean + (1 - share) * factorized.mean,
        share * var + (1 - share) * factorized.var,
    )


@torch.no_grad()
def adapt_batchnorm(
    network: nn.Module,
    stored: Mapping[str, NormStatistics],
    dense: Mapping[str, NormStatistics],
    batches: Iterable[Tensor],
    divergence: Callable[[nn.Module], float] | None = None,
) -> float:
    """Give every BatchNorm of a factorized network the dense one's statistics, moved by what factorizing changed.

    Args:
        network: the factorized network; is changed in place.
        stored: the dense network's running statistics, by name; see `statistics_of_norms`.
        dense: the same, estimated on ``batches``; see `estimate_batchnorm`.
        batches: inputs, `[B, ...]`, those of ``dense`` in the same order.
        divergence: of the network from the dense one on images that no estimate has seen; the share of `SHARES` that
            it is least for is taken. None takes 1.

    Returns:
        The share.
    """
    norms = {name: norm for name, norm in norms_of(network).items() if name in stored}
    counters = [norm.num_batches_tracked for norm in norms.values() if norm.num_batches_tracked is not None]
    counts = [counter.clone() for counter in counters]
    recalibrate_batchnorm(network, batches)
    for counter, count in zip(counters, counts, strict=True):
        counter.copy_(count)
    estimates = {name: _statistics(norm) for name, norm in norms.items()}
    moved = [name for name in norms if not dense[name].equals(estimates[name])]

    def use(share: float) -> None:
        for name, norm in norms.items():
            set_statistics(norm, adapted(stored[name], dense[name], estimates[name], share, norm.eps))

    chosen = SHARES[0]
    if moved and divergence is not None:
        scores = {}
        for share in SHARES:
            use(share)
            scores[share] = divergence(network)
        chosen = min(scores, key=scores.__getitem__)
    use(chosen)
    return chosen


def adapt_in_turn(dense: _BatchNorm, twin: _BatchNorm, inputs: Tensor, changed: Tensor) -> None:
    """Move a norm's running statistics by how its inputs differ from those that the dense one has, in place.

    Args:
        dense: the norm in the dense network.
        twin: the same in the factorized one.
        inputs: of the first, `[B, channels, ...]`.
        changed: of the second, for the same examples.
    """
    before, after = (_estimate(values) for values in (inputs, changed))
    set_statistics(twin, adapted(_statistics(dense), before, after, SHARES[0], dense.eps))


def _estimate(values: Tensor) -> NormStatistics:
    axes = [axis for axis in range(values.ndim) if axis != 1]
    var, mean = torch.var_mean(values.float() if values.dtype.itemsize < 4 else values, axes)
    return NormStatistics(mean, var)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode, and every module back to its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def estimating(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Let norms gather running statistics anew, as plain averages over the calls inside; in training mode after it."""
    momenta = {norm: norm.momentum for norm in norms if norm.track_running_stats}
    try:
        for norm in momenta:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.training = True
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum

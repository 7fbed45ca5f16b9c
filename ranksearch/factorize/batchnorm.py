"""BatchNorm's running statistics after factorizing: estimated anew, or moved by what factorizing changed.

A few hundred images estimate statistics worse than the whole training did, with its augmentation and long averages, and
may be of another kind. But how a norm's inputs differ between the factorized and the dense network on the same images
says well what factorizing has changed; so that difference is added to the statistics that the dense network has.
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
from ranksearch.factorize.source_model import hooked, untouched, unwrap

# Of the move by differences; the rest is plain re-estimation. The first of equals is taken.
SHARES = (1.0, 0.5, 0.0)
# In a share's place where the statistics stay as they are stored.
STORED = None


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


@torch.no_grad()
def inputs_of_norms(model: nn.Module, images: Tensor) -> dict[str, NormStatistics]:
    """Mean and variance of what reaches every norm in eval mode, by name; the model is left as it was.

    Args:
        model: in any mode.
        images: one batch of inputs, `[B, ...]`.

    Returns:
        The moments, without those of norms that are called other than once.
    """
    model, seen = unwrap(model), dict[str, list[NormStatistics]]()

    def watch(name: str) -> Callable[..., None]:
        return lambda _, args: seen.setdefault(name, []).append(_moments(args[0]))

    handles = [norm.register_forward_pre_hook(watch(name)) for name, norm in norms_of(model).items()]
    with hooked(handles), untouched(model):
        model(images)
    return {name: calls[0] for name, calls in seen.items() if len(calls) == 1}


def moved(stored: NormStatistics, before: NormStatistics, after: NormStatistics, eps: float) -> NormStatistics:
    """Statistics moved by how a norm's inputs have changed.

    Args:
        stored: of the dense network.
        before: moments of the norm's inputs in the dense network.
        after: the same in the factorized network, for the same examples.
        eps: the least variance that a quotient divides by.

    Returns:
        ``stored``, bit for bit, where both moments are equal.
    """
    if before.equals(after):
        return stored
    mean = stored.mean + (after.mean - before.mean)
    return NormStatistics(mean, stored.var * (after.var / before.var.clamp_min(eps)))


def mixed(one: NormStatistics, other: NormStatistics, share: float) -> NormStatistics:
    """A share of one and the rest of another; exactly one of them where the share is 1 or 0."""
    if share in (0.0, 1.0):
        return one if share else other
    return NormStatistics(
        share * one.mean + (1 - share) * other.mean,
        share * one.var + (1 - share) * other.var,
    )


@torch.no_grad()
def move_in_turn(
    network: nn.Module, stored: Mapping[str, NormStatistics], inputs: Mapping[str, NormStatistics], images: Tensor
) -> set[str]:
    """Move every norm's statistics as it is met in one pass, each for what the norms before it have become; in place.

    Args:
        network: the factorized network, in eval mode.
        stored: the dense network's statistics, by name.
        inputs: moments of what reaches its norms, see `inputs_of_norms`; the statistics of others stay as stored.
        images: the batch that these are of.

    Returns:
        The names of norms whose inputs have changed.
    """
    changed: set[str] = set()

    def move(name: str) -> Callable[[_BatchNorm, tuple[Tensor, ...]], None]:
        def hook(norm: _BatchNorm, args: tuple[Tensor, ...]) -> None:
            if name not in inputs:
                return
            after = _moments(args[0])
            if not inputs[name].equals(after):
                changed.add(name)
            set_statistics(norm, moved(stored[name], inputs[name], after, norm.eps))

        return hook

    norms = {name: norm for name, norm in norms_of(network).items() if name in stored}
    handles = [norm.register_forward_pre_hook(move(name)) for name, norm in norms.items()]
    for name, norm in norms.items():
        set_statistics(norm, stored[name])
    with hooked(handles):
        network(images)
    return changed


@torch.no_grad()
def adapt_batchnorm(
    network: nn.Module,
    stored: Mapping[str, NormStatistics],
    inputs: Mapping[str, NormStatistics],
    images: Tensor,
    batches: Iterable[Tensor],
    divergence: Callable[[nn.Module], float] | None = None,
) -> float | None:
    """Give every BatchNorm of a factorized network the dense one's statistics, moved by what factorizing changed.

    Args:
        network: the factorized network; is changed in place, and left in eval mode.
        stored: the dense network's running statistics, by name; see `statistics_of_norms`.
        inputs: moments of what reaches its norms; see `inputs_of_norms`.
        images: the batch that these are of.
        batches: inputs, `[B, ...]` each, for plain re-estimation.
        divergence: of a network from the dense one on images that no estimate has seen. The share of `SHARES`, or
            `STORED` for no change at all, that it is least for is taken. None takes a share of 1.

    Returns:
        What was taken.
    """
    network.eval()
    norms = {name: norm for name, norm in norms_of(network).items() if name in stored}
    changed = move_in_turn(network, stored, inputs, images)
    if divergence is None or not changed:
        return SHARES[0]
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

    scores: dict[float | None, float] = {}
    for share in (*SHARES, STORED):
        use(share)
        scores[share] = divergence(network)
    chosen = min(scores, key=scores.__getitem__)
    use(chosen)
    return chosen


def move_statistics(dense: _BatchNorm, twin: _BatchNorm, inputs: Tensor, changed: Tensor) -> None:
    """Move a norm's running statistics by how its inputs differ from those that the dense one has, in place.

    Args:
        dense: the norm in the dense network.
        twin: the same in the factorized one.
        inputs: of the first, `[B, channels, ...]`.
        changed: of the second, for the same examples.
    """
    set_statistics(twin, moved(_statistics(dense), _moments(inputs), _moments(changed), dense.eps))


def _moments(values: Tensor) -> NormStatistics:
    """Mean and variance of each channel of `[B, channels, ...]`."""
    axes = [axis for axis in range(values.ndim) if axis != 1]
    var, mean = torch.var_mean(values.float() if values.dtype.itemsize < 4 else values, axes, correction=0)
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
    """Let norms gather running statistics anew, as plain averages over the calls inside; in training mode after it.

    Norms that are not called keep what they have, and so do all where the block fails.
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
            if not whole or not norm.num_batches_tracked:  # nothing reached it
                for name, value in held.items():
                    norm._buffers[name].copy_(value)  # type: ignore[union-attr]  # it was there before

"""A plan's network whose layers are solved one after another, each for the inputs that will really reach it.

Factors that are best for the dense network's inputs meet others once the layers before them are factorized too, and
errors add up. Here every layer is solved for what the factorized network itself feeds it, while its target is still
what the dense network gives at that place, so that it makes good what the layers before it lost: the asymmetric
reconstruction of Zhang et al. ("Accelerating Very Deep Convolutional Networks for Classification and Detection",
2016), here for both factors of every scheme.

With W the dense layer, y its outputs in the dense network and x its inputs in the factorized one, means taken off, the
best linear map from x to y is W + E[(y - W x) x^T] E[x x^T]^-1: a layer like any other, which its scheme then splits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight
from torch.nn.modules.batchnorm import _BatchNorm

from ranksearch.batches import prediction_of
from ranksearch.factorize.alternating import solve_symmetric
from ranksearch.factorize.batchnorm import evaluating, move_statistics
from ranksearch.factorize.calibration import as_rows, observe_inputs
from ranksearch.factorize.decomposition import decompose
from ranksearch.factorize.factors import Decomposition, grouped_weight
from ranksearch.factorize.modules import FactorizedConv2d, FactorizedLinear
from ranksearch.factorize.patches import Taps, at_least_float32
from ranksearch.factorize.source_model import clone, hooked, untouched, unwrap
from ranksearch.factorize.statistics import Layer, LayerStatistics
from ranksearch.factorize.surgery import factorized_like, set_factors
from ranksearch.plan import LayerChoice, RankPlan

# White inputs that are mixed in, as a share of the mean variance, which keep a layer near the dense one.
RIDGE = 1e-3
# With fewer rows than this for each of an input's numbers, a layer keeps the factors for the dense network's inputs.
ROWS_FOR_EACH_NUMBER = 4
# Of the largest map, over all images, each of which goes through both networks.
NUMBERS_AT_ONCE = 8 * 10**7
# Where a copy of all maps of a layer would be made.
EXAMPLES_AT_ONCE = 16


class _Pair(nn.Module):
    """A module of the dense network and its twin of the factorized one, each for its half of the examples.

    Attributes:
        solve: is given the twin's inputs and the dense module's outputs, before the twin runs.
        rehearsing: the dense module runs for both, and it is only seen how the pair is called.
        calls: so far in the rehearsal.
        alike: whether the halves of the inputs were those of the examples, which are then the same ones.
        adapts: whether the twin is a norm whose running statistics are moved by how the halves differ.
    """

    def __init__(self, dense: nn.Module, twin: nn.Module) -> None:
        super().__init__()
        self.dense, self.twin = dense, twin
        self.solve: Callable[[Tensor, Tensor], None] | None = None
        self.rehearsing, self.calls, self.alike = True, 0, True
        self.adapts = False

    def forward(self, input: Tensor) -> Tensor:
        ours, theirs = input[: len(input) // 2], input[len(input) // 2 :]
        if self.rehearsing:
            self.calls += 1
            self.alike = self.alike and ours.shape == theirs.shape
            self.alike = self.alike and bool((ours - theirs).norm() <= 1e-3 * ours.norm())
            both: Tensor = self.dense(input)
            return both
        target: Tensor = self.dense(ours)
        outputs = torch.cat([target, target])  # the second half is room for the twin's: maps are large
        target, others = outputs.chunk(2)
        if self.solve is not None:
            self.solve(theirs, target)
        if self.adapts:
            assert isinstance(self.dense, _BatchNorm)
            assert isinstance(self.twin, _BatchNorm)
            move_statistics(self.dense, self.twin, ours, theirs)
        others[:] = self.twin(theirs)
        return outputs

    def __getattr__(self, name: str) -> Any:
        # Code around a module may look at its settings.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("dense"), name)


@torch.no_grad()
def factorize_sequentially(
    model: nn.Module,
    plan: RankPlan,
    decompositions: Mapping[str, Mapping[str, Decomposition]],
    images: Tensor,
    sensitivities: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Build a plan's network, every layer solved for the inputs that the layers before it leave it.

    One pass over the images does it: both networks run as one, on a batch that holds every image twice. No patches are
    held but those of a few maps.

    Args:
        model: is not touched.
        plan: the layers, their schemes and their latent sizes.
        decompositions: layer name -> scheme -> decomposition, of at least the plan's choices. Their factors serve
            where a layer is not called exactly once, has too few rows for its size, hooks, or numbers that are not
            finite, and everywhere in a model that does not keep examples along the first axis.
        images: one batch of inputs on the model's device, `[B, ...]`; twice as many maps of a layer are held at once.
        sensitivities: layer name -> see `decompose`.

    Returns:
        What `factorize_model` returns. BatchNorm's statistics are moved by what factorizing changed on the images,
        where the pass was made.

    Raises:
        PlanError: the plan does not fit the model, or a layer of it was not calibrated.
    """
    model, network = unwrap(model), factorized_like(model, plan)
    with untouched(model), evaluating(network):
        norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        pairs = {name: _Pair(model.get_submodule(name), network.get_submodule(name)) for name in (*norms, *plan.layers)}
        # The copy has the pair wherever the module stands, and shares the weights of all others.
        kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        both = clone(model, {**kept, **{id(pair.dense): pair for pair in pairs.values()}})
        few = images[:2]
        as_one = _rehearse(both, model, torch.cat([few, few])) and all(pair.alike for pair in pairs.values())
        for name, choice in plan:
            pair = pairs[name]
            one_shot = partial(set_factors, pair.dense, pair.twin, name, choice, decompositions)
            if as_one and pair.calls == 1:
                sensitivity = None if sensitivities is None else sensitivities.get(name)
                pair.solve = partial(_solve, pair, choice, sensitivity, one_shot)
            else:
                one_shot()
        if as_one:
            for pair in pairs.values():
                pair.rehearsing = False
                norm = isinstance(pair.twin, _BatchNorm) and pair.twin.running_mean is not None
                pair.adapts = norm and pair.calls == 1
            both(torch.cat([images, images]))
    return network


def _rehearse(both: nn.Module, model: nn.Module, images: Tensor) -> bool:
    """Whether the two networks run as one: code around a module may take a pair for something else."""
    try:
        return torch.equal(prediction_of(both(images)), prediction_of(model(images)))
    except Exception:  # whatever such code raises
        return False


def _solve(
    pair: _Pair,
    choice: LayerChoice,
    sensitivity: Tensor | None,
    one_shot: Callable[[], None],
    inputs: Tensor,
    target: Tensor,
) -> None:
    """Give a layer's twin the best factors for its inputs, or those of one shot where these cannot be had."""
    layer, twin = pair.dense, pair.twin
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert isinstance(twin, FactorizedConv2d | FactorizedLinear)
    few = len(as_rows(target, layer)) < ROWS_FOR_EACH_NUMBER * layer.weight[0].numel()
    hooked = layer._forward_hooks or layer._forward_pre_hooks  # and so its outputs are not its own
    # A sum is finite only where every number is, and needs no mask of them all.
    if few or hooked or not all(bool(at_least_float32(values).sum().isfinite()) for values in (inputs, target)):
        one_shot()
        return
    with torch.autocast(inputs.device.type, enabled=False):  # sums of products need all digits
        inputs = inputs.to(layer.weight.dtype)
        statistics = observe_inputs(layer, inputs)
        corrected = _corrected(layer, statistics, inputs, target)
        found = decompose(corrected, statistics, sensitivity, choice.scheme)
        twin._set_factors(found.factors(corrected, choice.latent_size))


def _corrected(layer: Layer, statistics: LayerStatistics, inputs: Tensor, target: Tensor) -> Layer:
    """The layer whose outputs for some inputs come closest to a target.

    Args:
        layer: is not touched.
        statistics: of the inputs.
        inputs: `[B, in, ...]`.
        target: `[B, out, ...]`.
    """
    missed = torch.empty_like(target, dtype=at_least_float32(target[:0]).dtype)
    for ours, wanted, images in _in_parts(missed, target, inputs):
        torch.sub(wanted, layer(images), out=ours)
    rows = as_rows(missed, layer)
    shift, count = rows.mean(0), len(rows)
    missed -= shift[:, None, None] if isinstance(layer, nn.Conv2d) else shift
    covariance = statistics.all.covariance.double()
    level = RIDGE * covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
    covariance.diagonal(dim1=1, dim2=2).add_(level[:, None])
    change = solve_symmetric(covariance, (_products(layer, inputs, missed) / count).mT).mT
    bias = shift.cpu().double() - torch.einsum("goi,gi->go", change, statistics.mean).flatten()
    if layer.bias is not None:
        bias += layer.bias.detach().cpu().double()
    weight = grouped_weight(layer, len(change)) + change
    found = copy.copy(layer)  # the same settings, with tensors of its own
    found._parameters = {
        "weight": nn.Parameter(weight.reshape(layer.weight.shape).to(layer.weight)),
        "bias": nn.Parameter(bias.to(layer.weight)),
    }
    return found


def _products(layer: Layer, inputs: Tensor, missed: Tensor) -> Tensor:
    """Sum of products of outputs of no mean with inputs, `[groups, out / groups, fan_in]`, float64."""
    # As the outputs have no mean, a constant off the inputs, borders and all, changes nothing but the rounding.
    centre = at_least_float32(as_rows(inputs, layer).mean(0))
    sums = torch.zeros((), device=inputs.device)
    if isinstance(layer, nn.Linear):
        for some, theirs in _in_parts(inputs, missed):
            sums = sums + as_rows(theirs, layer).mT @ (as_rows(some, layer) - centre)
        return sums.cpu().double()[None]
    taps = Taps.of(layer)
    for images, theirs in _in_parts(inputs, missed):
        padded = taps.with_all_padding(at_least_float32(images)) - centre[:, None, None]
        # Such a sum over positions is what the gradient of a convolution's weight is.
        sums = sums + conv2d_weight(  # type: ignore[no-untyped-call]  # as torch declares it
            padded, layer.weight.shape, theirs, taps.stride, 0, taps.dilation, taps.groups
        )
    return sums.reshape(taps.groups, -1, layer.weight[0].numel()).cpu().double()


def _in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few examples at a time of tensors that hold as many, so that no copy of all of them is made."""
    return zip(*(torch.split(tensor, EXAMPLES_AT_ONCE) for tensor in tensors), strict=True)


def affordable_images(model: nn.Module, image: Tensor) -> int:
    """How many images layers may be solved on one after another, so that the largest map of all takes 320 MB.

    Args:
        model: that is factorized.
        image: one of them, `[1, ...]`.
    """
    return NUMBERS_AT_ONCE // (2 * _largest_map(model, image))


@torch.no_grad()
def _largest_map(model: nn.Module, image: Tensor) -> int:
    """The most numbers that a module of the model gives for one image, `[1, C, H, W]`."""
    model, sizes = unwrap(model), [image.numel()]

    def see(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    with hooked([module.register_forward_hook(see) for module in model.modules()]), untouched(model):
        model(image)
    return max(sizes)

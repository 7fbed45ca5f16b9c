"""Sequential factorization: the layers of a plan are solved in order, each for its inputs in the factorized network.

With its outputs in the dense network as the target, a layer compensates for the errors of earlier ones: the asymmetric
reconstruction of Zhang et al. ("Accelerating Very Deep Convolutional Networks for Classification and Detection", 2016),
applied to both factors of every scheme.

With W the dense layer, y its centered outputs in the dense network and x its centered inputs in the factorized one, the
best linear map from x to y is W + E[(y - W x) x^T] E[x x^T]^-1: an ordinary layer, which its scheme then factorizes.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight
from torch.nn.modules.batchnorm import _BatchNorm

from ranksearch.batches import extract_predictions
from ranksearch.factorize.als import solve_symmetric
from ranksearch.factorize.base import grouped_weight
from ranksearch.factorize.batchnorm import evaluating, move_statistics
from ranksearch.factorize.calibration import as_rows, observe_inputs
from ranksearch.factorize.decomposition import decompose
from ranksearch.factorize.layers.conv import FactorizedConv2d
from ranksearch.factorize.layers.linear import FactorizedLinear
from ranksearch.factorize.patch_moments import Taps, at_least_float32
from ranksearch.factorize.source_model import clone, hooked, untouched, unwrap
from ranksearch.factorize.statistics import Layer, LayerStatistics
from ranksearch.factorize.surgery import Decompositions, factorized_like, set_factors
from ranksearch.plan import LayerChoice, RankPlan

# Ridge on the input covariance, as a share of its mean variance; it shrinks a layer towards the dense one.
RIDGE = 1e-3
# With fewer rows than this per input element, a layer keeps the factors for the dense network's inputs.
ROWS_FOR_EACH_NUMBER = 4
# Limit on the size of the largest map, over all images, each of which goes through both networks.
NUMBERS_AT_ONCE = 8 * 10**7
# Part size, which avoids a copy of all maps of a layer.
EXAMPLES_AT_ONCE = 16


class _Pair(nn.Module):
    """A dense module and its factorized twin, each of which processes one half of the batch."""

    def __init__(self, dense: nn.Module, twin: nn.Module) -> None:
        super().__init__()
        self.dense, self.twin = dense, twin
        # Receives the twin's inputs and the dense module's outputs, before the twin runs.
        self.solve: Callable[[Tensor, Tensor], None] | None = None
        self.rehearsing = True  # whether the dense module runs on both halves, and only the pair's calls are recorded
        self.calls, self.alike = 0, True  # in the rehearsal; alike: whether both halves agreed in every input
        self.adapts = False  # whether a BatchNorm's running statistics are moved by the difference of the halves

    def forward(self, input: Tensor) -> Tensor:
        dense_inputs, twin_inputs = input[: len(input) // 2], input[len(input) // 2 :]
        if self.rehearsing:
            self.calls += 1
            self.alike = self.alike and dense_inputs.shape == twin_inputs.shape
            self.alike = self.alike and bool((dense_inputs - twin_inputs).norm() <= 1e-3 * dense_inputs.norm())
            both: Tensor = self.dense(input)
            return both
        outputs = torch.cat([self.dense(dense_inputs)] * 2)  # the twin's half is overwritten: maps are large
        target, twin_outputs = outputs.chunk(2)
        if self.solve is not None:
            self.solve(twin_inputs, target)
        if self.adapts:
            assert isinstance(self.dense, _BatchNorm)
            assert isinstance(self.twin, _BatchNorm)
            move_statistics(self.dense, self.twin, dense_inputs, twin_inputs)
        twin_outputs[:] = self.twin(twin_inputs)
        return outputs

    def __getattr__(self, name: str) -> Any:
        # The calling code may read the module's settings.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("dense"), name)


@torch.no_grad()
def factorize_sequentially(
    model: nn.Module,
    plan: RankPlan,
    decompositions: Decompositions,
    images: Tensor,
    sensitivities: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Factorize a model by a plan, each layer solved for its inputs in the factorized network.

    Both networks run as one, in one pass over a batch that holds every image twice, with the patches of a few maps at a
    time in memory.

    Args:
        model: the dense network; left unchanged.
        plan: layers to factorize, with their schemes and latent sizes.
        decompositions: layer name -> scheme -> decomposition, of at least the plan's choices. Their factors are used
            for a layer that is not called exactly once, has too few rows for its size, hooks, or non-finite values,
            and for all layers of a model that does not keep examples along the first axis.
        images: one batch of inputs on the model's device, `[B, ...]`; 2 B maps of a layer are held at once.
        sensitivities: layer name -> sensitivity, see `decompose`.

    Returns:
        The factorized network, as from `factorize_model`. If the pass was made, BatchNorm statistics are moved by the
        change of their inputs on the images.

    Raises:
        PlanError: the plan does not fit the model, or a layer of it was not calibrated.
    """
    model, network = unwrap(model), factorized_like(model, plan)
    with untouched(model), evaluating(network):
        norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        pairs = {name: _Pair(model.get_submodule(name), network.get_submodule(name)) for name in (*norms, *plan.layers)}
        # The copy has the pair in place of each such module, and shares all other weights.
        kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        both = clone(model, {**kept, **{id(pair.dense): pair for pair in pairs.values()}})
        probe = images[:2]
        as_one = _rehearse(both, model, torch.cat([probe, probe])) and all(pair.alike for pair in pairs.values())
        for name, choice in plan:
            pair = pairs[name]
            one_shot = partial(set_factors, pair.dense, pair.twin, name, choice, decompositions)
            if as_one and pair.calls == 1:
                pair.solve = partial(_solve, pair, choice, (sensitivities or {}).get(name), one_shot)
            else:
                one_shot()
        if as_one:
            for pair in pairs.values():
                pair.rehearsing = False
                tracks = isinstance(pair.twin, _BatchNorm) and pair.twin.running_mean is not None
                pair.adapts = tracks and pair.calls == 1
            both(torch.cat([images, images]))
    return network


def _rehearse(both: nn.Module, model: nn.Module, images: Tensor) -> bool:
    """Return whether both networks can run as one; model code may not accept a pair in place of a module."""
    try:
        return torch.equal(extract_predictions(both(images)), extract_predictions(model(images)))
    except Exception:  # model code may raise anything
        return False


def _solve(
    pair: _Pair,
    choice: LayerChoice,
    sensitivity: Tensor | None,
    one_shot: Callable[[], None],
    inputs: Tensor,
    target: Tensor,
) -> None:
    """Set the best factors of a layer's twin for its inputs, or one-shot factors if these cannot be computed."""
    layer, twin = pair.dense, pair.twin
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert isinstance(twin, FactorizedConv2d | FactorizedLinear)
    too_few = len(as_rows(target, layer)) < ROWS_FOR_EACH_NUMBER * layer.weight[0].numel()
    has_hooks = layer._forward_hooks or layer._forward_pre_hooks  # which may change its outputs
    # A sum is finite only if every element is, and it needs no mask.
    if too_few or has_hooks or not all(bool(at_least_float32(values).sum().isfinite()) for values in (inputs, target)):
        one_shot()
        return
    with torch.autocast(inputs.device.type, enabled=False):  # sums of products need full precision
        inputs = inputs.to(layer.weight.dtype)
        statistics = observe_inputs(layer, inputs)
        corrected = _corrected(layer, statistics, inputs, target)
        decomposition = decompose(corrected, statistics, sensitivity, choice.scheme)
        twin._set_factors(decomposition.factors(corrected, choice.latent_size))


def _corrected(layer: Layer, statistics: LayerStatistics, inputs: Tensor, target: Tensor) -> Layer:
    """Return a copy of the layer, refit by ridge regression of a target `[B, out, ...]` on inputs `[B, in, ...]`."""
    missed = torch.empty_like(target, dtype=at_least_float32(target[:0]).dtype)
    for residual, wanted, images in _in_parts(missed, target, inputs):
        torch.sub(wanted, layer(images), out=residual)
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
    refitted = copy.copy(layer)  # the same settings, but separate tensors
    refitted._parameters = {
        "weight": nn.Parameter(weight.reshape(layer.weight.shape).to(layer.weight)),
        "bias": nn.Parameter(bias.to(layer.weight)),
    }
    return refitted


def _products(layer: Layer, inputs: Tensor, missed: Tensor) -> Tensor:
    """Return the sum of products of zero-mean residuals with inputs, `[groups, out / groups, fan_in]`, float64."""
    # As the residuals have zero mean, subtracting a constant from the inputs, padding included, only affects rounding.
    centre = at_least_float32(as_rows(inputs, layer).mean(0))
    sums = torch.zeros((), device=inputs.device)
    if isinstance(layer, nn.Linear):
        for batch, residual in _in_parts(inputs, missed):
            sums = sums + as_rows(residual, layer).mT @ (as_rows(batch, layer) - centre)
        return sums.cpu().double()[None]
    taps = Taps.from_layer(layer)
    for images, residual in _in_parts(inputs, missed):
        padded = taps.with_all_padding(at_least_float32(images)) - centre[:, None, None]
        # This sum over positions is the gradient of a convolution's weight.
        sums = sums + conv2d_weight(  # type: ignore[no-untyped-call]  # as torch declares it
            padded, layer.weight.shape, residual, taps.stride, 0, taps.dilation, taps.groups
        )
    return sums.reshape(taps.groups, -1, layer.weight[0].numel()).cpu().double()


def _in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Iterate over a few examples at a time of tensors of equal length, which avoids a copy of all of them."""
    return zip(*(torch.split(tensor, EXAMPLES_AT_ONCE) for tensor in tensors), strict=True)


@torch.no_grad()
def affordable_images(model: nn.Module, image: Tensor) -> int:
    """Return the number of images for sequential factorization at which the largest map takes 320 MB in float32.

    Args:
        model: the network to factorize.
        image: one image, `[1, ...]`.
    """
    model, sizes = unwrap(model), [image.numel()]

    def see(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    with hooked([module.register_forward_hook(see) for module in model.modules()]), untouched(model):
        model(image)
    return NUMBERS_AT_ONCE // (2 * max(sizes))

"""Sequential factorization: the layers of a plan are solved in order, each for its inputs in the factorized network.

With its outputs in the dense network as the target, a layer compensates for the errors of earlier ones: the asymmetric
reconstruction of Zhang et al. ("Accelerating Very Deep Convolutional Networks for Classification and Detection", 2016),
applied to both factors of every scheme.

With W the dense layer, y its centered outputs in the dense network and x its centered inputs in the factorized one, the
best linear map from x to y is W + E[(y - W x) x^T] E[x x^T]^-1: an ordinary layer, which its scheme then factorizes.
A layer with few rows is solved in another way, see `latent_regression`.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from ranksearch.batches import Inputs, read_batch
from ranksearch.factorize.als import solve_symmetric
from ranksearch.factorize.base import Factors, grouped_weight
from ranksearch.factorize.batchnorm import (
    NormStatistics,
    evaluating,
    moved,
    norm_moments,
    norm_statistics,
    norms_of,
    set_statistics,
)
from ranksearch.factorize.calibration import observe_inputs
from ranksearch.factorize.decomposition import decompose
from ranksearch.factorize.exposure import exposed
from ranksearch.factorize.latent_regression import regress_on_latent_values
from ranksearch.factorize.layers.conv import FactorizedConv2d
from ranksearch.factorize.layers.linear import FactorizedLinear
from ranksearch.factorize.patch_moments import Taps, at_least_float32, in_float64
from ranksearch.factorize.source_model import clone, hooked, untouched, unwrap
from ranksearch.factorize.statistics import Layer, LayerStatistics, groups_of
from ranksearch.factorize.surgery import Decompositions, Solved, factorized_like, set_factors
from ranksearch.factorize.thinning import Thinning, as_rows
from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.progress import Tick, unseen

# Ridge on the input covariance, as a share of its mean variance; it shrinks a layer towards the dense one.
RIDGE = 1e-3
# With fewer rows than this per input element, a layer is solved by regression on latent values.
ROWS_FOR_EACH_NUMBER = 4
# Limit on the size of the largest map, over all images, and on that of the dense outputs of all layers.
NUMBERS_AT_ONCE = 4 * 10**7
NUMBERS_STORED = 5 * 10**8


@dataclass
class _Recording:
    """What one layer of the dense network computes.

    Attributes:
        thinning: which rows of the outputs are kept.
        shape: shape of the inputs.
        rows: number of output rows, before thinning.
        outputs: kept outputs, for a few examples each.
        calls: number of calls; only the first is recorded.
    """

    thinning: Thinning = field(default_factory=lambda: Thinning(1, None))
    shape: torch.Size = field(default_factory=torch.Size)
    rows: int = 0
    outputs: list[Tensor] = field(default_factory=list)
    calls: int = 0

    def __call__(self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self.calls += 1
        if self.calls > 1:
            self.outputs = []
            return
        values = args[0] if args else kwargs["input"]
        taps = Taps.from_layer(layer) if isinstance(layer, nn.Conv2d) else None
        if output.ndim < (2 if taps is None else 4):
            return
        self.shape, self.rows = values.shape, output.numel() // len(layer.weight)
        self.thinning = Thinning.from_output(layer, taps, output, 1.0, layer.weight[0].numel())
        for first, part in self.thinning.parts(output.detach()):
            self.outputs.append(self.thinning.outputs(part if taps else as_rows(part, layer), first).clone())


@dataclass(frozen=True)
class DenseActivations:
    """What the dense network computes on the images that layers are solved on, recorded once for all plans.

    Attributes:
        batch: the examples.
        layers: layer name -> recording.
        norms: name of a BatchNorm that is called once -> moments of its inputs.
    """

    batch: Inputs
    layers: Mapping[str, _Recording]
    norms: Mapping[str, NormStatistics]


@torch.no_grad()
def record_activations(model: nn.Module, batch: Any, layers: Iterable[str]) -> DenseActivations:
    """Record what the dense network computes, in one pass over one batch; the model is left unchanged.

    Args:
        model: the dense network, in any mode; it runs in eval mode.
        batch: one batch of examples; see `read_batch`.
        layers: dotted names of the layers that plans may factorize.
    """
    layers = list(layers)
    model = exposed(model, layers)
    batch = read_batch(model, batch)
    with untouched(model), recording(model, layers) as recorded:
        batch.run(model)
    return recorded(batch)


@contextmanager
def recording(model: nn.Module, layers: Iterable[str]) -> Iterator[Callable[[Inputs], DenseActivations]]:
    """Record what the dense network computes in the block, where it runs on one batch, in eval mode.

    Args:
        model: the dense network.
        layers: dotted names of the layers that plans may factorize.

    Yields:
        Function of that batch, to be called after the block, that returns the activations.
    """
    moments = dict[str, list[NormStatistics]]()
    recordings = {name: _Recording() for name in layers}

    def watch(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        moments.setdefault(name, []).append(norm_moments(args[0]))

    def recorded(batch: Inputs) -> DenseActivations:
        once = {name: calls[0] for name, calls in moments.items() if len(calls) == 1}
        return DenseActivations(batch, recordings, once)

    handles = [
        model.get_submodule(name).register_forward_hook(recording, with_kwargs=True, prepend=True)
        for name, recording in recordings.items()
    ]
    handles += [norm.register_forward_pre_hook(partial(watch, name)) for name, norm in norms_of(model).items()]
    with hooked(handles):
        yield recorded


@torch.no_grad()
def factorize_sequentially(
    model: nn.Module,
    plan: RankPlan,
    decompositions: Decompositions,
    batch: Any,
    sensitivities: Mapping[str, Tensor] | None = None,
    solved: Solved | None = None,
    *,
    tick: Tick = unseen,
) -> nn.Module:
    """Factorize a model by a plan, each layer solved for its inputs in the factorized network.

    The factorized network makes one pass over the images, in which each layer is solved before it runs.

    Args:
        model: the dense network; left unchanged.
        plan: layers to factorize, with their schemes and latent sizes.
        decompositions: layer name -> scheme -> decomposition, of at least the plan's choices. Their factors are used
            for a layer that is not called exactly once, has fewer rows than outputs, hooks, or non-finite values.
        batch: one batch of examples, see `read_batch`, or the dense network's activations for it; all maps of a layer
            are held at once.
        sensitivities: layer name -> sensitivity, see `decompose`.
        solved: factors of layers from plans that agree with this one in all layers up to them; it is extended.
        tick: is called for every layer that is solved.

    Returns:
        The factorized network, as from `factorize_model`. BatchNorm statistics are moved by the change of their inputs
        on the examples.

    Raises:
        PlanError: the plan does not fit the model, or a layer of it was not calibrated.
    """
    model, network = exposed(model, plan.layers), factorized_like(model, plan)
    dense = batch if isinstance(batch, DenseActivations) else record_activations(model, batch, plan.layers)
    solved, so_far = {} if solved is None else solved, list[tuple[str, LayerChoice]]()
    norms = {name: norm for name, norm in norms_of(network).items() if name in dense.norms}
    # The pass may change state that the model keeps besides its weights: that of a copy around the same modules.
    shared: list[nn.Module | Tensor] = [*(network.get_submodule(name) for name in plan.layers), *norms.values()]
    runner = clone(network, {id(part): part for part in (*shared, *network.parameters())})

    count = iter(range(1, len(plan) + 1))

    def done() -> None:
        tick("solving layers", next(count), len(plan))

    def solve(name: str, twin: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        so_far.append((name, plan.layers[name]))
        layer, recording = model.get_submodule(name), dense.layers[name]
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert isinstance(twin, FactorizedConv2d | FactorizedLinear)
        inputs = args[0] if args else kwargs["input"]
        if not _fits(recording, inputs):
            set_factors(layer, twin, name, plan.layers[name], decompositions)
            done()
            return
        key = tuple(so_far)
        if key not in solved:
            with torch.autocast(inputs.device.type, enabled=False):  # sums of products need full precision
                solved[key] = _solve(layer, twin, recording, (sensitivities or {}).get(name), inputs)
        twin._set_factors(solved[key])
        done()

    handles: list[RemovableHandle] = []
    for name, choice in plan:
        if solvable(model.get_submodule(name), dense.layers[name]):
            twin = network.get_submodule(name)
            handles.append(twin.register_forward_pre_hook(partial(solve, name), prepend=True, with_kwargs=True))
        else:
            layer, twin = model.get_submodule(name), network.get_submodule(name)
            set_factors(layer, twin, name, choice, decompositions)
            done()
    for name, norm in norms.items():
        handles.append(norm.register_forward_pre_hook(partial(_move, dense.norms[name], _norm(model, name))))
    with hooked(handles), evaluating(runner):
        dense.batch.run(runner)
    return network


def solvable(layer: nn.Module, recording: _Recording) -> bool:
    """Return whether a layer can be solved in turn, by what was recorded of it in the dense network."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    # Hooks may change its outputs.
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    enough = enough_rows(layer, recording.rows) and len(recording.shape) > 1 and recording.shape[0] > 1
    return recording.calls == 1 and bool(recording.outputs) and enough and not hooks


def enough_rows(layer: nn.Module, rows: int) -> bool:
    """Return whether a layer has enough rows to be solved in turn: as many as outputs."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return rows >= len(layer.weight) // groups_of(layer)


def _fits(recording: _Recording, inputs: Tensor) -> bool:
    """Return whether a layer's inputs are finite, and those that its recorded outputs are for."""
    # A sum is finite only if every element is, and it needs no mask.
    finite = (at_least_float32(values).sum().isfinite() for values in (inputs, *recording.outputs))
    return inputs.shape == recording.shape and all(map(bool, finite))


def _solve(
    layer: Layer,
    twin: FactorizedConv2d | FactorizedLinear,
    recording: _Recording,
    sensitivity: Tensor | None,
    inputs: Tensor,
) -> Factors:
    """Return the best factors of a layer for its inputs in the factorized network.

    The target is its outputs in the dense network; with few rows, what it computes for these inputs.
    """
    if recording.rows < ROWS_FOR_EACH_NUMBER * layer.weight[0].numel():
        mean = torch.cat([as_rows(at_least_float32(part), layer) for part in recording.outputs]).mean(0)
        return regress_on_latent_values(layer, twin, inputs.to(layer.weight.dtype), mean, sensitivity)
    thinning = recording.thinning
    parts = [
        at_least_float32(thinning.inputs(layer, part if thinning.taps else as_rows(part, layer), first))
        for first, part in thinning.parts(inputs.to(layer.weight.dtype))
    ]
    statistics = observe_inputs(layer, parts, thinning)
    corrected = _refit(layer, recording, statistics, parts)
    return decompose(corrected, statistics, sensitivity, twin.scheme).factors(corrected, twin.latent_size)


def _refit(layer: Layer, recording: _Recording, statistics: LayerStatistics, parts: Sequence[Tensor]) -> Layer:
    """Return a copy of the layer, refit by ridge regression of its dense outputs on inputs.

    Args:
        layer: the dense layer; the regression shrinks towards it.
        recording: what it computes in the dense network.
        statistics: statistics of the inputs.
        parts: inputs of some examples each, as recorded outputs are.
    """
    weight = grouped_weight(layer, len(statistics.mean))
    products, mean = _output_products(layer, recording, parts)
    covariance = statistics.all.covariance.clone()
    missing = products.to(covariance) - weight.to(covariance) @ covariance
    level = RIDGE * covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    covariance.diagonal(dim1=1, dim2=2).add_(level[:, None])
    fitted = weight + solve_symmetric(covariance, missing.mT).mT.double()
    bias = in_float64(mean) - torch.einsum("goi,gi->go", fitted, statistics.mean).flatten()
    refitted, like = copy.copy(layer), at_least_float32(layer.weight)  # the same settings, but separate tensors
    refitted._parameters = {
        "weight": nn.Parameter(fitted.reshape(layer.weight.shape).to(like)),
        "bias": nn.Parameter(bias.to(like)),
    }
    return refitted


def _output_products(layer: Layer, recording: _Recording, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the covariance of the layer's dense outputs with inputs, and the outputs' mean.

    Returns:
        The covariance, `[groups, out / groups, fan_in]`, float64, and the mean, `[out]`.
    """
    taps, shape = recording.thinning.taps, layer.weight.shape
    outputs = [at_least_float32(wanted) for wanted in recording.outputs]
    rows = [as_rows(wanted, layer) for wanted in outputs]
    count = sum(map(len, rows))
    mean = torch.stack([part.sum(0) for part in rows]).sum(0) / count
    sums = torch.zeros((), device=mean.device)
    for part, wanted in zip(parts, outputs, strict=True):
        if taps is None:
            sums = sums + (wanted - mean).mT @ part
            continue
        # This sum over positions is the gradient of a convolution's weight.
        sums = sums + conv2d_weight(  # type: ignore[no-untyped-call]  # as torch declares it
            taps.with_all_padding(part), shape, wanted - mean[:, None, None], taps.stride, 0, taps.dilation, taps.groups
        )
    groups = 1 if taps is None else taps.groups
    return in_float64(sums / count).reshape(groups, -1, layer.weight[0].numel()), mean


def _norm(model: nn.Module, name: str) -> _BatchNorm:
    norm = model.get_submodule(name)
    assert isinstance(norm, _BatchNorm)
    return norm


def _move(before: NormStatistics, dense: _BatchNorm, twin: _BatchNorm, args: tuple[Tensor, ...]) -> None:
    """Correct a norm's running statistics for how its inputs differ from those in the dense network, before it runs."""
    set_statistics(twin, moved(norm_statistics(dense), before, norm_moments(args[0]), dense.eps))


@torch.no_grad()
def scarce_layers(model: nn.Module, example: Inputs, layers: Iterable[str], count: int) -> list[str]:
    """Return the names of the layers that have too few rows to be solved in turn.

    Args:
        model: the dense network.
        example: one example.
        layers: names of layers.
        count: number of examples to solve on.
    """
    rows = dict.fromkeys(layers, 0)
    model = exposed(model, rows)

    def see(name: str, layer: Layer, _: object, output: Tensor) -> None:
        rows[name] += output.numel() // len(layer.weight)

    handles = [model.get_submodule(name).register_forward_hook(partial(see, name)) for name in rows]
    with hooked(handles), untouched(model):
        example.run(model)
    return [name for name, each in rows.items() if not enough_rows(model.get_submodule(name), each * count)]


@torch.no_grad()
def affordable_images(model: nn.Module, example: Inputs) -> int:
    """Return the number of images for sequential factorization by the memory that they take.

    The largest map of all images takes at most 160 MB in float32, and the outputs of all layers 2 GB.

    Args:
        model: the network to factorize.
        example: one example.
    """
    model, sizes, outputs = unwrap(model), [1, *(tensor.numel() for tensor in example.tensors)], [1]

    def see(module: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())
            if isinstance(module, nn.Conv2d | nn.Linear):
                outputs.append(output.numel())

    with hooked([module.register_forward_hook(see) for module in model.modules()]), untouched(model):
        example.run(model)
    return min(NUMBERS_AT_ONCE // max(sizes), NUMBERS_STORED // sum(outputs))

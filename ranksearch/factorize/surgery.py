"""Layers found in a model, and a new model built from a plan."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ranksearch.errors import DataError, PlanError, UserError
from ranksearch.factorize.calibration import as_rows
from ranksearch.factorize.dry_run import dry_run, watch_layer
from ranksearch.factorize.factorized_layer import FactorizedLayer
from ranksearch.factorize.factors import Decomposition
from ranksearch.factorize.modules import FactorizedConv2d, FactorizedLinear
from ranksearch.factorize.shapes import describe
from ranksearch.factorize.source_model import clone, hooked, require_ready, unwrap
from ranksearch.factorize.statistics import Layer
from ranksearch.plan import FIRST_AXES, LayerChoice, LayerSpec, RankPlan


@dataclass(frozen=True)
class LayerProfile:
    """What can be factorized in a model, and what cannot.

    Attributes:
        layers: the shape of every layer that can be factorized, in the order of their first call.
        skipped: name -> reason, of every other convolution and linear layer.
        stem: the first convolution that is called, whether it can be factorized or not.
        classifier: the last linear layer that is called.
    """

    layers: tuple[LayerSpec, ...]
    skipped: Mapping[str, str] = field(hash=False)
    stem: str | None
    classifier: str | None


TOO_SMALL = "so small that no latent size saves MACs"


def _reason_to_skip(module: nn.Module, positions: int) -> str | None:
    if isinstance(module, LazyModuleMixin) or type(module) not in (nn.Conv2d, nn.Linear):
        return f"{type(module).__name__} is not a plain Conv2d or Linear"
    assert isinstance(module, nn.Conv2d | nn.Linear)
    if any(callable(value) and hasattr(type(module), name) for name, value in vars(module).items()):
        return "its way of computing was replaced on this very layer"
    if module.bias is not None and "bias" not in module._parameters:
        return "its bias is no parameter but computed by a hook, as pruning does"
    if "weight" in module._parameters and module.weight.is_complex():
        return "its weight is complex"
    if "weight" not in module._parameters:
        return "its weight is no parameter but computed by a hook, as pruning does"
    if module._modules or module._buffers or not set(module._parameters) <= {"weight", "bias"}:
        return "it holds more than a weight and a bias"
    if positions == 0:
        return "never called for every example, so its weight may be read directly"
    if not describe(module).schemes:
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.out_channels:
            return "a depthwise convolution, with nothing to share among its outputs"
        return TOO_SMALL
    return None


def _bound(model: nn.Module) -> dict[str, str]:
    """Name of a layer -> reason, for layers that are bound to others: by a weight, or as a factor."""
    owners: dict[nn.Parameter, str] = {}
    reasons: dict[str, str] = {}
    for owner, module in model.named_modules():
        if isinstance(module, FactorizedLayer):
            prefix = f"{owner}." if owner else ""
            reasons |= {
                f"{prefix}{factor}": "a factor of a layer that is factorized" for factor in ("module0", "module1")
            }
        for parameter in module.parameters(recurse=False):
            first = owners.setdefault(parameter, owner)
            if first != owner:
                reasons[owner] = f"shares its weights with '{first}'"
                reasons[first] = f"shares its weights with '{owner}'"
    return reasons


@dataclass
class _Run:
    """What one run of a model showed, layers in the order of their first calls.

    Attributes:
        rows: layer name -> rows that it gave.
        latent_rows: layer name -> scheme -> rows that the map between two factors would have.
        read: names of layers whose weights were read from outside.
    """

    rows: dict[str, int]
    latent_rows: dict[str, dict[str, int]]
    read: set[str]


def _layers(model: nn.Module) -> dict[str, Layer]:
    """Every convolution and linear layer, factors included, and not what is made of two of them."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, FactorizedLayer)
    }


def _watch_layers(ghost: nn.Module, run: Callable[[], None]) -> _Run:
    seen = _Run({}, {}, set())

    def watch(name: str, layer: nn.Module) -> None:
        def count(input: Tensor, output: Tensor) -> None:
            rows = len(as_rows(output, layer))
            seen.rows[name] = seen.rows.get(name, 0) + rows
            if isinstance(layer, nn.Conv2d):
                between = seen.latent_rows.setdefault(name, dict.fromkeys(FIRST_AXES, 0))
                maps = rows // (output.shape[-2] * output.shape[-1])
                for scheme, done in FIRST_AXES.items():
                    # An axis that the first factor takes has the output's size between the factors, else the input's.
                    height, width = ((output if mine else input).shape[axis - 2] for axis, mine in enumerate(done))
                    between[scheme] += maps * height * width

        watch_layer(layer, count, lambda: seen.read.add(name))

    for name, module in _layers(ghost).items():
        watch(name, module)
    run()
    return seen


def profile_layers(model: nn.Module, example: Tensor) -> LayerProfile:
    """Find the layers that can be factorized, with their shapes and positions.

    The model runs once, see `dry_run`.

    Args:
        model: is not touched.
        example: one batch of inputs, `[B, ...]`, on any device; only its shape and dtype matter.
    """
    model = unwrap(model)
    found = _layers(model)
    seen = dry_run(model, example, _watch_layers)
    bound = _bound(model)
    bound |= {name: "its weight is also read by other code than its own" for name in seen.read}
    if not len(example):
        raise DataError("an example of no inputs shows nothing: give a batch of one or more")
    count, layers, skipped = len(example), {}, {}
    for name, module in found.items():
        positions = seen.rows.get(name, 0) // count
        reason = _reason_to_skip(module, positions) or bound.get(name)
        if reason is None:
            between = {scheme: rows // count for scheme, rows in seen.latent_rows.get(name, {}).items()}
            layers[name] = describe(module, name, positions, between)
            # Strides and borders may make the map between the factors too large for any scheme.
            reason = None if layers[name].schemes else TOO_SMALL
        if reason is not None:
            skipped[name] = reason
    convolutions = [name for name in seen.rows if isinstance(found[name], nn.Conv2d)]
    linears = [name for name in seen.rows if isinstance(found[name], nn.Linear)]
    usable = tuple(layers[name] for name in seen.rows if name not in skipped)
    return LayerProfile(usable, skipped, next(iter(convolutions), None), next(reversed(linears), None))


# What a person may have hung on a layer, and expects to run for whatever stands in its place.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def _empty_twin(layer: Layer, choice: LayerChoice) -> FactorizedConv2d | FactorizedLinear:
    """A factorized layer of the same settings and hooks, its weights not yet set."""
    twin: FactorizedConv2d | FactorizedLinear
    if isinstance(layer, nn.Conv2d):
        twin = FactorizedConv2d._like(layer, choice.latent_size, choice.scheme)
    else:
        twin = FactorizedLinear._like(layer, choice.latent_size, choice.scheme)
    plain = vars(
        type(layer)(1, 1, 1, device="meta") if isinstance(layer, nn.Conv2d) else nn.Linear(1, 1, device="meta")
    )
    for name, value in vars(layer).items():  # of a person's own
        if name not in plain and name not in vars(twin):
            setattr(twin, name, copy.deepcopy(value))
    for name in HOOKS:
        getattr(twin, name).update(getattr(layer, name))
    twin._is_full_backward_hook = layer._is_full_backward_hook
    return twin


def _layer_to_replace(model: nn.Module, name: str, choice: LayerChoice) -> Layer:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise PlanError(
            f"the plan names '{name}', which the model lacks: take it out, or give the model that it was made for"
        ) from None
    reason = _reason_to_skip(module, positions=1) or _bound(model).get(name)
    if reason is not None:
        raise PlanError(f"'{name}' cannot be factorized ({reason}): leave it dense")
    assert isinstance(module, nn.Conv2d | nn.Linear)
    describe(module, name).require_saving(choice.latent_size, choice.scheme)
    return module


def factorized_like(model: nn.Module, plan: RankPlan) -> nn.Module:
    """Give a copy of the model the plan's shape; the weights of its factorized layers are still to be set.

    Args:
        model: is not touched.
        plan: the layers, their schemes and their latent sizes.

    Returns:
        A copy that shares no tensor with ``model``; device, dtype, modes and ``requires_grad`` carried over.

    Raises:
        PlanError: the plan does not fit the model.
    """
    model = unwrap(model)
    require_ready(model)
    # The copy has the twin wherever the original stands: at the root, in containers, in several places at once.
    memo: dict[int, object] = {}
    for name, choice in plan:
        module = _layer_to_replace(model, name, choice)
        memo[id(module)] = _empty_twin(module, choice)
    return clone(model, memo)


def require_called(network: nn.Module, plan: RankPlan, example: Tensor, source: nn.Module | None = None) -> None:
    """Raise if a factorized layer does not run when its network does, or the source runs with it, see `dry_run`.

    Args:
        network: that was factorized by the plan; is not touched.
        plan: the layers, all of which ran in the dense network.
        example: a batch of inputs; only its shape and dtype matter.
        source: the dense network, whose layers a copy may still call through a function that holds them.

    Raises:
        PlanError: code around a layer took its dense form for something else.
        UserError: a layer of the source runs.
    """
    shared: list[str] = []

    def watch(ghost: nn.Module, run: Callable[[], None]) -> set[str]:
        called: set[str] = set()

        def note(name: str) -> Callable[..., None]:
            return lambda *_: called.add(name)

        for name in plan.layers:
            ghost.get_submodule(name).register_forward_pre_hook(note(name))
        run()
        return called

    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: shared.append(name))
        for name, module in ([] if source is None else unwrap(source).named_modules())
    ]
    with hooked(handles):
        called = dry_run(network, example, watch)
    if shared:
        raise UserError(
            f"a copy of the model still runs '{shared[0]}' of the model itself, which some function holds: make that a "
            "method"
        )
    passed_over = [name for name in plan.layers if name not in called]
    if passed_over:
        raise PlanError(
            f"'{passed_over[0]}' does not run any more once it is factorized, for the code around it asks for the "
            "dense layer's very type: leave it dense"
        )


@torch.no_grad()
def factorize_model(
    model: nn.Module, plan: RankPlan, decompositions: Mapping[str, Mapping[str, Decomposition]]
) -> nn.Module:
    """Build a new model in which every layer of the plan is replaced by its best factorization.

    Args:
        model: is not touched.
        plan: the layers, their schemes and their latent sizes.
        decompositions: layer name -> scheme -> decomposition, of at least the plan's choices; see
            `decompose_schemes`.

    Returns:
        What `factorized_like` returns, with the weights set.

    Raises:
        PlanError: the plan does not fit the model, or a layer of it was not calibrated.
    """
    model, factorized = unwrap(model), factorized_like(model, plan)
    for name, choice in plan:
        set_factors(model.get_submodule(name), factorized.get_submodule(name), name, choice, decompositions)
    return factorized


def set_factors(
    layer: nn.Module,
    twin: nn.Module,
    name: str,
    choice: LayerChoice,
    decompositions: Mapping[str, Mapping[str, Decomposition]],
) -> None:
    """Give the twin of a layer its factors.

    Args:
        layer: the dense one.
        twin: the factorized one, of the choice's shape; is set in place.
        name: of both.
        choice: scheme and latent size.
        decompositions: layer name -> scheme -> decomposition.

    Raises:
        PlanError: the layer was not calibrated for its scheme.
    """
    if choice.scheme not in decompositions.get(name, {}):
        raise PlanError(
            f"no calibration data for scheme '{choice.scheme}' of '{name}': decompose it, or leave the layer dense"
        )
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert isinstance(twin, FactorizedConv2d | FactorizedLinear)
    twin._set_factors(decompositions[name][choice.scheme].factors(layer, choice.latent_size))

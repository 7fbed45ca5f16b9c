"""Model surgery: a plan's network, built from a copy of the dense model."""

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import nn

from ranksearch.errors import PlanError, UserError
from ranksearch.factorize.base import Decomposition, Factors
from ranksearch.factorize.exposure import exposed, forget_originals, originals_of
from ranksearch.factorize.layers.conv import FactorizedConv2d
from ranksearch.factorize.layers.linear import FactorizedLinear
from ranksearch.factorize.shapes import describe
from ranksearch.factorize.source_model import clone, hooked, require_ready, unwrap
from ranksearch.factorize.statistics import Layer
from ranksearch.factorize.trace import dry_run, reason_to_skip, shared_layers
from ranksearch.plan import LayerChoice, RankPlan

# Registries of user hooks, which are copied from a layer to its replacement.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)

# Attributes of exposed layers that are not copied: the factors have their own.
KEPT_APART = ("paddings", "_original")

# Layer name -> scheme -> decomposition.
Decompositions = Mapping[str, Mapping[str, Decomposition]]


def _empty_twin(layer: Layer, choice: LayerChoice) -> FactorizedConv2d | FactorizedLinear:
    """Return a factorized layer with the same settings and hooks, its weights uninitialized."""
    twin: FactorizedConv2d | FactorizedLinear
    if isinstance(layer, nn.Conv2d):
        twin = FactorizedConv2d._like(layer, choice.latent_size, choice.scheme)
        plain: Layer = nn.Conv2d(1, 1, 1, device="meta")
    else:
        twin = FactorizedLinear._like(layer, choice.latent_size, choice.scheme)
        plain = nn.Linear(1, 1, device="meta")
    for name, value in vars(layer).items():  # user-defined attributes
        if name not in vars(plain) and name not in vars(twin) and name not in KEPT_APART:
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
            f"the plan names '{name}', which the model lacks: remove it, or give the model that it was made for"
        ) from None
    reason = reason_to_skip(module, positions=1) or shared_layers(model).get(name)
    if reason is not None:
        raise PlanError(f"'{name}' cannot be factorized ({reason}): leave it dense")
    assert isinstance(module, nn.Conv2d | nn.Linear)
    describe(module, name).require_saving(choice.latent_size, choice.scheme)
    return module


def factorized_like(model: nn.Module, plan: RankPlan) -> nn.Module:
    """Return a copy of the model with the plan's layers factorized, their weights uninitialized.

    Args:
        model: the dense network; left unchanged.
        plan: layers to factorize, with their schemes and latent sizes.

    Returns:
        A copy that shares no tensor with ``model``; device, dtype, modes and ``requires_grad`` are preserved.

    Raises:
        PlanError: the plan does not fit the model.
    """
    require_ready(unwrap(model))
    model = exposed(model, plan.layers)
    # The copy has the twin wherever the model has the layer: at the root, in containers, in several places.
    memo = originals_of(model, plan.layers)
    for name, choice in plan:
        module = _layer_to_replace(model, name, choice)
        memo[id(module)] = _empty_twin(module, choice)
    network = clone(model, memo)
    forget_originals(network)
    return network


def require_called(network: nn.Module, plan: RankPlan, example: Any, source: nn.Module | None = None) -> None:
    """Raise unless a network runs all its factorized layers, and no layer of its source; see `dry_run`.

    Args:
        network: network that was factorized by the plan; left unchanged.
        plan: the plan, all of whose layers run in the dense network.
        example: a batch of examples; see `read_batch`.
        source: dense network, whose layers a copy may still call through a function that references them.

    Raises:
        PlanError: a factorized layer does not run, because the calling code expects the dense type.
        UserError: a layer of the source runs.
    """
    shared: list[str] = []

    def watch(ghost: nn.Module, run: Callable[[], None]) -> set[str]:
        called: set[str] = set()
        for name in plan.layers:
            ghost.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.add(name))
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
            f"a copy of the model still runs '{shared[0]}' of the original, which a function refers to: make that "
            "function a method"
        )
    passed_over = [name for name in plan.layers if name not in called]
    if passed_over:
        raise PlanError(
            f"'{passed_over[0]}' no longer runs once it is factorized, because the code around it checks for the "
            "exact type of the dense layer: leave it dense"
        )


@torch.no_grad()
def factorize_model(model: nn.Module, plan: RankPlan, decompositions: Decompositions) -> nn.Module:
    """Return a copy of the model in which every layer of the plan is replaced by its best factorization.

    Args:
        model: the dense network; left unchanged.
        plan: layers to factorize, with their schemes and latent sizes.
        decompositions: layer name -> scheme -> decomposition, of at least the plan's choices; see `decompose_schemes`.

    Returns:
        The factorized network, as from `factorized_like`, with its weights set.

    Raises:
        PlanError: the plan does not fit the model, or a layer of it was not calibrated.
    """
    model, factorized = exposed(model, plan.layers), factorized_like(model, plan)
    for name, choice in plan:
        set_factors(model.get_submodule(name), factorized.get_submodule(name), name, choice, decompositions)
    return factorized


# Factors by the choices that they depend on: those for a layer, or for all layers up to it.
Solved = MutableMapping[tuple[tuple[str, LayerChoice], ...], Factors]


@torch.no_grad()
def factorize_roughly(model: nn.Module, plan: RankPlan, decompositions: Decompositions, solved: Solved) -> nn.Module:
    """Return a copy of the model with rough factors, to compare plans; see `Decomposition.factors`.

    Args:
        model: the dense network; left unchanged.
        plan: layers to factorize, with their schemes and latent sizes.
        decompositions: layer name -> scheme -> decomposition, of at least the plan's choices; see `decompose_schemes`.
        solved: rough factors of layers, by their choice; it is extended.
    """
    model, factorized = exposed(model, plan.layers), factorized_like(model, plan)
    for name, choice in plan:
        layer, twin, key = model.get_submodule(name), factorized.get_submodule(name), ((name, choice),)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert isinstance(twin, FactorizedConv2d | FactorizedLinear)
        if key not in solved:
            solved[key] = decompositions[name][choice.scheme].factors(layer, choice.latent_size, rough=True)
        twin._set_factors(solved[key])
    return factorized


def set_factors(
    layer: nn.Module, twin: nn.Module, name: str, choice: LayerChoice, decompositions: Decompositions
) -> None:
    """Set the weights of a layer's factorized twin.

    Args:
        layer: dense layer.
        twin: factorized layer of the choice's shape; modified in place.
        name: name of both layers.
        choice: scheme and latent size of the twin.
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

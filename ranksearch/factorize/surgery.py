"""Layers found in a model, and a new model built from a plan."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ranksearch.errors import PlanError
from ranksearch.factorize.calibration import _evaluating, as_rows
from ranksearch.factorize.modules import FactorizedConv2d, FactorizedLinear
from ranksearch.factorize.solver import Decomposition
from ranksearch.plan import LayerSpec, RankPlan


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
    skipped: Mapping[str, str]
    stem: str | None
    classifier: str | None


def _describe(name: str, module: nn.Module, positions: int) -> LayerSpec:
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        return LayerSpec(name, "conv2d", module.in_channels, module.out_channels, positions, (height, width))
    assert isinstance(module, nn.Linear)
    return LayerSpec(name, "linear", module.in_features, module.out_features, positions)


def _reason_to_skip(module: nn.Module, calls: int) -> str | None:
    if type(module) not in (nn.Conv2d, nn.Linear):
        return f"{type(module).__name__} is not a plain Conv2d or Linear"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"grouped convolution ({module.groups} groups)"
    if calls == 0:
        return "never called by the model's forward: others may read its weight directly"
    if _describe("", module, 1).break_even_rank == 0:
        return "too small: no latent size saves multiply-adds"
    return None


@torch.no_grad()
def profile_layers(model: nn.Module, example: Tensor) -> LayerProfile:
    """Find the layers that can be factorized, with their shapes and positions.

    The model runs once, on shapes alone: a copy of it on the meta device.

    Args:
        model: is not touched.
        example: one batch of inputs, `[B, ...]`, on any device; only its shape and dtype matter.
    """
    ghost = copy.deepcopy(model).to("meta")
    found = {name: module for name, module in ghost.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    rows = dict.fromkeys(found, 0)
    order: dict[str, None] = {}
    for name, module in found.items():

        def count(module: nn.Module, _: object, output: Tensor, name: str = name) -> None:
            rows[name] += len(as_rows(output, module))
            order[name] = None

        module.register_forward_hook(count)
    # What forward makes by itself, such as positions to embed, must then be on the meta device as well.
    with _evaluating(ghost), torch.device("meta"):
        ghost(example.to("meta"))
    skipped = {}
    for name, module in found.items():
        reason = _reason_to_skip(module, rows[name])
        if reason is not None:
            skipped[name] = reason
    layers = tuple(_describe(name, found[name], rows[name] // len(example)) for name in order if name not in skipped)
    convolutions = [name for name in order if isinstance(found[name], nn.Conv2d)]
    linears = [name for name in order if isinstance(found[name], nn.Linear)]
    return LayerProfile(layers, skipped, next(iter(convolutions), None), next(reversed(linears), None))


def _empty_twin(module: nn.Module, latent_size: int) -> FactorizedConv2d | FactorizedLinear:
    """A factorized layer of the same settings, its weights not yet set."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    twin: FactorizedConv2d | FactorizedLinear
    # Made on the meta device: no random numbers are drawn for weights that are set from elsewhere.
    if isinstance(module, nn.Conv2d):
        twin = FactorizedConv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            latent_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            padding_mode=module.padding_mode,
            device="meta",
            dtype=weight.dtype,
        )
    else:
        assert isinstance(module, nn.Linear)
        twin = FactorizedLinear(
            module.in_features, module.out_features, latent_features=latent_size, device="meta", dtype=weight.dtype
        )
    twin.to_empty(device=weight.device).requires_grad_(weight.requires_grad).train(module.training)
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        twin.to(memory_format=torch.channels_last)
    return twin


def _layer_to_replace(model: nn.Module, name: str, latent_size: int) -> nn.Module:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise PlanError(f"the plan names '{name}', which the model lacks: was it made for another model?") from None
    reason = _reason_to_skip(module, calls=1)
    if reason is not None:
        raise PlanError(f"'{name}' cannot be factorized ({reason}): leave it dense")
    _describe(name, module, 1).require_saving(latent_size)
    return module


def factorized_like(model: nn.Module, plan: RankPlan) -> nn.Module:
    """Give a copy of the model the plan's shape; the weights of its factorized layers are still to be set.

    Args:
        model: is not touched.
        plan: the layers and their latent sizes.

    Returns:
        A copy that shares no tensor with ``model``; device, dtype, modes and ``requires_grad`` carried over.

    Raises:
        PlanError: the plan does not fit the model.
    """
    # deepcopy takes the twin wherever it meets the original: at the root, in containers, in several places at once.
    memo: dict[int, object] = {}
    for name, choice in plan:
        module = _layer_to_replace(model, name, choice.latent_size)
        memo[id(module)] = _empty_twin(module, choice.latent_size)
    return copy.deepcopy(model, memo)


@torch.no_grad()
def factorize_model(model: nn.Module, plan: RankPlan, decompositions: Mapping[str, Decomposition]) -> nn.Module:
    """Build a new model in which every layer of the plan is replaced by its best factorization.

    Args:
        model: is not touched.
        plan: the layers and their latent sizes.
        decompositions: of at least the plan's layers, see `decompose`.

    Returns:
        What `factorized_like` returns, with the weights set.

    Raises:
        PlanError: the plan does not fit the model, or a layer of it was not calibrated.
    """
    factorized = factorized_like(model, plan)
    for name, choice in plan:
        if name not in decompositions:
            raise PlanError(f"no calibration data for '{name}': collect its statistics, or leave it dense")
        module, twin = model.get_submodule(name), factorized.get_submodule(name)
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        assert isinstance(twin, FactorizedConv2d | FactorizedLinear)
        factors = decompositions[name].factors(weight, bias, choice.latent_size)
        twin.module0.weight.copy_(factors.down)
        twin.module1.weight.copy_(factors.up.reshape(twin.module1.weight.shape))
        assert twin.module1.bias is not None
        twin.module1.bias.copy_(factors.bias)
    return factorized

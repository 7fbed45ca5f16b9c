"""Layers hidden in other modules or in subclasses, made plain modules that can be watched and replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from ranksearch.factorize.effective import effective_layer
from ranksearch.factorize.layers.attention import PROJECTIONS, UnpackedAttention
from ranksearch.factorize.layers.padded import PaddedConv2d
from ranksearch.factorize.layers.reshaped import (
    ColumnsConvTranspose1d,
    ColumnsConvTranspose2d,
    FramesConv3d,
    PlanarConv1d,
)
from ranksearch.factorize.source_model import clone, has_replaced_method, unwrap

# Types whose forward is known.
PLAIN = (nn.Conv2d, nn.Linear, PaddedConv2d)
# Types that are computed by a plain convolution inside.
RESHAPED = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
# Modules inside a factorized layer.
FACTORS = {"module0", "module1"}


def exposed(model: nn.Module, names: Collection[str] | None = None) -> nn.Module:
    """Return a copy of a model that shares its tensors, with hidden layers as plain modules.

    Packed attention becomes four linear layers, see `UnpackedAttention`. Convolutions along one axis or three, and
    transposed ones, are computed by a plain one inside, ``conv``; see `layers.reshaped`. A subclass of a convolution or
    linear layer becomes the plain layer that it amounts to, see `effective_layer`. Transformer layers around what is
    exposed or named leave their fused path, which reads weights of layers that it does not call.

    Args:
        model: the model; left unchanged.
        names: layers that are to be modules, whose owners alone are replaced; None for all that can be.

    Returns:
        The copy; the model itself, unwrapped, if nothing in it changes.
    """
    model = unwrap(model)
    replaced: dict[int, object] = {}
    for owner, module in model.named_modules():
        inside = _inside(owner, module)
        if inside:
            if names is None or not inside.isdisjoint(names):
                replaced[id(module)] = _keeping(_opened(module), module)
        elif (names is None or owner in names) and _is_subclassed(module):
            assert isinstance(module, nn.Conv2d | nn.Linear)
            copied = clone(module)
            assert isinstance(copied, nn.Conv2d | nn.Linear)
            plain = effective_layer(copied)
            if plain is not None:
                replaced[id(module)] = _keeping(plain, module)
    fused = [owner for owner, module in model.named_modules() if _takes_fused_path(module)]
    if names is not None:
        fused = [owner for owner in fused if any(name.startswith(f"{owner}.") or not owner for name in names)]
    if not replaced and not fused:
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = clone(model, {**shared, **replaced})
    for owner in fused:
        _leave_fused_path(copied.get_submodule(owner))
    return copied


def hidden_names(model: nn.Module) -> set[str]:
    """Return the names of a model's layers that are modules only once they are exposed."""
    return {name for owner, module in unwrap(model).named_modules() for name in _inside(owner, module)}


def _inside(owner: str, module: nn.Module) -> set[str]:
    """Return the names of the layers that a module has once it is exposed; none for most modules."""
    names: tuple[str, ...] = ()
    if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
        names = PROJECTIONS
    elif _forward_of(module) in [kind.forward for kind in RESHAPED] and "weight" in module._parameters:
        assert isinstance(module, nn.Conv1d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d)
        hooks = module._forward_hooks or module._forward_pre_hooks
        # Time is padded by zeros alone.
        other = isinstance(module, nn.Conv3d) and (isinstance(module.padding, str) or module.padding_mode != "zeros")
        names = () if hooks or other or 1 < module.groups == module.out_channels else ("conv",)
    return {f"{owner}.{name}" if owner else name for name in names}


def _forward_of(module: nn.Module) -> object:
    """Return the forward of a module's class; None for a TorchScript module, which has none."""
    return getattr(type(module), "forward", None)


def _opened(module: nn.Module) -> nn.Module:
    """Return a module that computes the same with the layers of `_inside`."""
    if isinstance(module, nn.MultiheadAttention):
        return UnpackedAttention(module)
    if isinstance(module, nn.Conv1d):
        return PlanarConv1d(module)
    if isinstance(module, nn.Conv3d):
        return FramesConv3d(module)
    if isinstance(module, nn.ConvTranspose1d):
        return ColumnsConvTranspose1d(module)
    assert isinstance(module, nn.ConvTranspose2d)
    return ColumnsConvTranspose2d(module)


def _is_subclassed(module: nn.Module) -> bool:
    """Return whether a module is of a subclass of a convolution or linear layer that could be factorized."""
    if not isinstance(module, nn.Conv2d | nn.Linear) or type(module) in PLAIN:
        return False
    if isinstance(module, LazyModuleMixin) or module._modules.keys() >= FACTORS:
        return False
    hooks = module._forward_hooks or module._forward_pre_hooks
    depthwise = isinstance(module, nn.Conv2d) and 1 < module.groups == module.out_channels
    return not (has_replaced_method(module) or hooks or depthwise)


def _takes_fused_path(module: nn.Module) -> bool:
    if isinstance(module, nn.TransformerEncoder):
        return bool(getattr(module, "use_nested_tensor", False))
    return isinstance(module, nn.TransformerEncoderLayer) and bool(module.activation_relu_or_gelu)


def _leave_fused_path(module: nn.Module) -> None:
    if isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False
    else:
        module.activation_relu_or_gelu = 0  # type: ignore[assignment]  # a number, untyped in nn.Module


class _Original:
    """What an exposed module stands for: no part of the model, and not copied with it.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: object) -> _Original:
        return self


def _keeping(exposed: nn.Module, original: nn.Module) -> nn.Module:
    """Return an exposed module that keeps what it stands for."""
    exposed.__dict__["_original"] = _Original(original)
    return exposed


def originals_of(model: nn.Module, names: Collection[str]) -> dict[int, object]:
    """Return id -> copy of the original, of a model's exposed modules of which no layer is named.

    Args:
        model: a model from `exposed`, or any other.
        names: names of layers that must remain modules.
    """
    originals: dict[int, object] = {}
    for owner, module in model.named_modules():
        kept = module.__dict__.get("_original")
        if kept is not None and not any(name == owner or name.startswith(f"{owner}.") for name in names):
            originals[id(module)] = clone(kept.module)
    return originals


def forget_originals(model: nn.Module) -> None:
    """Let the exposed modules of a finished network stand for themselves."""
    for module in model.modules():
        module.__dict__.pop("_original", None)


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Compute attention by its single operations inside the block."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)

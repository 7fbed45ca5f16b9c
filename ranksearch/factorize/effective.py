"""The plain layer that a subclass of a convolution or linear layer amounts to, read off the call that it makes.

A subclass may standardize, mask or reparametrize its weight and pad its input; what is factorized is the convolution
that runs in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ranksearch.factorize.layers.padded import PaddedConv2d

# Largest difference of outputs that is attributed to rounding, as a share of the largest.
TOLERANCE = 1e-4
# Spare inputs along each axis of a probe, beyond the reach of the kernel.
SPARE = 4


class _Calls(TorchFunctionMode):
    """Records the convolutions and matrix products that run inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Callable[..., Any], dict[str, Any], Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        names = {F.conv2d: CONVOLUTION, F.linear: PRODUCT}.get(func)
        if names is not None:
            self.made.append((func, {**dict(zip(names, args, strict=False)), **(kwargs or {})}, result))
        return result


CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
PRODUCT = ("input", "weight", "bias")


@torch.no_grad()
def effective_layer(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear | None:
    """Return the plain layer that computes what a subclass of one does in eval mode, with weights of its own.

    Args:
        layer: a copy of the layer, which may keep traces of being run.

    Returns:
        A plain linear layer or convolution, or one with other padding; None if the layer computes anything else.
    """
    training, device = layer.training, next(layer.parameters()).device
    _give_data(layer.eval())
    try:
        plain = _effective_linear(layer) if isinstance(layer, nn.Linear) else _effective_convolution(layer)
    except Exception:  # a user-defined forward may raise anything on a probe
        return None
    if plain is None:
        return None
    trained = any(parameter.requires_grad for parameter in layer.parameters())
    return plain.to(device).requires_grad_(trained).train(training)


def _give_data(layer: nn.Module) -> None:
    """Give random weights to a layer on the meta device."""
    if not any(tensor.is_meta for tensor in layer.parameters()):
        return
    layer.to_empty(device="cpu")
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    for buffer in layer.buffers():
        buffer.fill_(1)


def _call(layer: nn.Module, probe: Tensor, kind: Callable[..., Any]) -> tuple[dict[str, Any], Tensor] | None:
    """Return arguments and result of the one call that a layer makes, if it returns that result."""
    with _Calls() as calls:
        output = layer(probe)
    if len(calls.made) != 1 or calls.made[0][0] is not kind or calls.made[0][2] is not output:
        return None
    return calls.made[0][1], output


def _probe(layer: nn.Module, *shape: int) -> Tensor:
    like = next(layer.parameters())
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def _effective_linear(layer: nn.Linear) -> nn.Linear | None:
    probe = _probe(layer, 2, layer.in_features)
    made = _call(layer, probe, F.linear)
    if made is None or not torch.equal(made[0]["input"], probe):
        return None
    weight, bias = made[0]["weight"], made[0].get("bias")
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return plain if _filled(plain, weight, bias) and _close(plain(probe), made[1]) else None


def _effective_convolution(layer: nn.Conv2d) -> nn.Conv2d | None:
    stride = _pair(layer.stride)
    probes, paddings = list[tuple[Tensor, Tensor]](), (dict[int, tuple[int, int]](), dict[int, tuple[int, int]]())
    call: dict[str, Any] = {}
    for rest in range(max(stride)):
        rests = [rest % each for each in stride]
        probe = _probe(layer, 1, layer.in_channels, *(_size(layer, axis, rests[axis]) for axis in (0, 1)))
        made = _call(layer, probe, F.conv2d)
        if made is None or isinstance(made[0].get("padding", 0), str) or _pair(made[0].get("stride", 1)) != stride:
            return None
        call, padding = made[0], _padding(made[0], probe)
        if padding is None:
            return None
        for axis in (0, 1):
            paddings[axis][rests[axis]] = padding[axis]
        probes.append((probe, made[1]))
    weight, bias, groups = call["weight"], call.get("bias"), int(call.get("groups", 1))
    sizes = weight.shape[1] * groups, weight.shape[0], _pair(weight.shape[2:])
    options: dict[str, Any] = {"stride": stride, "dilation": _pair(call.get("dilation", 1)), "groups": groups}
    options |= {"bias": bias is not None, "device": "meta"}
    by_rest = [[amounts for _, amounts in sorted(axis.items())] for axis in paddings]
    if all(len(set(axis)) == 1 and axis[0][0] == axis[0][1] for axis in by_rest):
        plain = nn.Conv2d(*sizes, padding=(by_rest[0][0][0], by_rest[1][0][0]), **options)
    else:
        plain = PaddedConv2d(*sizes, by_rest, **options)
    alike = _filled(plain, weight, bias) and all(_close(plain(probe), output) for probe, output in probes)
    return plain if alike else None


def _size(layer: nn.Conv2d, axis: int, rest: int) -> int:
    """Return a size beyond the kernel's reach, with a given remainder by the stride."""
    stride, reach = int(layer.stride[axis]), int(layer.dilation[axis]) * (int(layer.kernel_size[axis]) - 1) + 1
    whole = -(-(reach + SPARE) // (2 * stride)) * 2 * stride
    return whole + rest


def _padding(call: dict[str, Any], probe: Tensor) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the zeros before and after rows and columns that a call convolves a probe with; None for other inputs."""
    given, own = call["input"], _pair(call.get("padding", 0))
    (height, width), (rows, columns) = probe.shape[2:], given.shape[2:]
    for top in range(rows - height + 1):
        for left in range(columns - width + 1):
            ends = (top, rows - height - top), (left, columns - width - left)
            if torch.equal(given, F.pad(probe, [*ends[1], *ends[0]])):
                return (ends[0][0] + own[0], ends[0][1] + own[0]), (ends[1][0] + own[1], ends[1][1] + own[1])
    return None


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return int(first), int(second)


def _filled(plain: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> bool:
    """Set a layer's tensors; return whether they fit."""
    if plain.weight.shape != weight.shape:
        return False
    plain.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone())
    return True


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    return bool((ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max().clamp_min(1e-12))

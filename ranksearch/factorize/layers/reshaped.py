"""Convolutions along one axis or three, and transposed ones, computed by a plain two-dimensional one inside.

Each derives from the class that it stands for, without its parameters, so that the calling code may check its type and
read its settings and weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SETTINGS = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    *("transposed", "output_padding"),
)


class PlanarConv1d(nn.Conv1d):
    """A convolution `[B, in, L]` to `[B, out, L']`, as one over maps of height 1.

    Args:
        layer: the convolution; its parameters are shared.
    """

    def __init__(self, layer: nn.Conv1d) -> None:
        _adopt(self, layer)
        padding = layer.padding if isinstance(layer.padding, str) else (0, layer.padding[0])
        self.conv = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            (1, layer.kernel_size[0]),
            stride=(1, layer.stride[0]),
            padding=padding,
            dilation=(1, layer.dilation[0]),
            groups=layer.groups,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            device="meta",
        )
        _share(self.conv, layer.weight.detach()[:, :, None], layer.bias, layer)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # read-only here
        """The kernel, `[out, in / groups, size]`."""
        return self.conv.weight[:, :, 0]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]  # read-only here
        """The bias, `[out]`."""
        return self.conv.bias

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        return torch.squeeze(self.conv(input.unsqueeze(-2)), -2)


class FramesConv3d(nn.Conv3d):
    """A convolution `[B, in, T, H, W]` to `[B, out, T', H', W']`, as one over the frames that its kernel spans.

    The frames of each position in time are channels of one map, so that schemes split the kernel's rows and columns, or
    all that is in time from what is in space: ``pointwise`` gives a convolution in time and one in space.

    Args:
        layer: the convolution, padded by zeros; its parameters are shared.
    """

    def __init__(self, layer: nn.Conv3d) -> None:
        _adopt(self, layer)
        assert not isinstance(layer.padding, str)
        self.conv = nn.Conv2d(
            layer.in_channels * layer.kernel_size[0],
            layer.out_channels,
            _in_space(layer.kernel_size),
            stride=_in_space(layer.stride),
            padding=_in_space(layer.padding),
            dilation=_in_space(layer.dilation),
            groups=layer.groups,
            bias=layer.bias is not None,
            device="meta",
        )
        _share(self.conv, layer.weight.detach().flatten(1, 2), layer.bias, layer)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # read-only here
        """The kernel, `[out, in / groups, time, height, width]`."""
        flat = self.conv.weight
        return flat.reshape(len(flat), -1, self.kernel_size[0], *flat.shape[2:])

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]  # read-only here
        """The bias, `[out]`."""
        return self.conv.bias

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        clips = input if input.ndim == 5 else input[None]
        frames, stride, dilation, padding = (
            int(each[0]) for each in (self.kernel_size, self.stride, self.dilation, self.padding)
        )
        padded = F.pad(clips, (0, 0, 0, 0, padding, padding))
        count = (padded.shape[2] - dilation * (frames - 1) - 1) // stride + 1
        starts = range(0, dilation * frames, dilation)
        spans = [padded[:, :, start : start + (count - 1) * stride + 1 : stride] for start in starts]
        # Time-major, so that the even and odd halves that errors are cross-validated on hold different clips.
        maps = torch.stack(spans, 2).permute(3, 0, 1, 2, 4, 5).flatten(2, 3).flatten(0, 1)
        outputs: Tensor = self.conv(maps)
        clip = outputs.reshape(count, len(clips), *outputs.shape[1:]).permute(1, 2, 0, 3, 4)
        return clip if input.ndim == 5 else clip[0]


class _Columns(nn.Module):
    """A transposed convolution: a 1x1 convolution to all entries of every kernel, whose overlaps are summed."""

    conv: nn.Conv2d
    bias: nn.Parameter | None

    def _open(self, layer: nn.ConvTranspose1d | nn.ConvTranspose2d) -> None:
        """Take the settings of a layer, and its parameters, shared where their layout allows."""
        _adopt(self, layer)
        weight = layer.weight.detach().reshape(layer.groups, layer.in_channels // layer.groups, -1).transpose(1, 2)
        columns = weight.shape[0] * weight.shape[1]
        self.conv = nn.Conv2d(layer.in_channels, columns, 1, groups=layer.groups, bias=False, device="meta")
        _share(self.conv, weight.reshape(columns, -1, 1, 1), None, layer)
        bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), layer.bias.requires_grad)
        self.register_parameter("bias", bias)

    def _kernels(self, layer: nn.ConvTranspose1d | nn.ConvTranspose2d) -> Tensor:
        """Return the kernel in the layout of torch, `[in, out / groups, ...]`."""
        flat = self.conv.weight.flatten(1).unflatten(0, (layer.groups, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]  # as torch declares it
        kernels: Tensor = flat.reshape(layer.in_channels, layer.out_channels // layer.groups, *layer.kernel_size)
        return kernels

    def _convolve(
        self, layer: nn.ConvTranspose1d | nn.ConvTranspose2d, maps: Tensor, output_size: Sequence[int] | None
    ) -> Tensor:
        """Return the transposed convolution of maps `[B, in, H, W]`, of height 1 for one along one axis."""
        columns = self.conv(maps)
        kernel, stride, dilation = (_pair(each, 1) for each in (layer.kernel_size, layer.stride, layer.dilation))
        padding, more = _pair(layer.padding, 0), _pair(layer.output_padding, 0)  # type: ignore[arg-type]  # numbers
        height, width = (
            (columns.shape[2 + axis] - 1) * stride[axis]
            - 2 * padding[axis]
            + dilation[axis] * (kernel[axis] - 1)
            + 1
            + more[axis]
            for axis in (0, 1)
        )
        if output_size is not None:
            width = int(output_size[-1])
            height = height if len(layer.kernel_size) == 1 else int(output_size[-2])
        output = F.fold(columns.flatten(2), (height, width), kernel, dilation, padding, stride)
        return output if self.bias is None else output + self.bias[:, None, None]


class ColumnsConvTranspose1d(_Columns, nn.ConvTranspose1d):  # type: ignore[misc]  # properties for attributes
    """A transposed convolution `[B, in, L]` to `[B, out, L']`; see `_Columns`.

    Args:
        layer: the transposed convolution.
    """

    def __init__(self, layer: nn.ConvTranspose1d) -> None:
        self._open(layer)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # read-only here
        """The kernel, `[in, out / groups, size]`."""
        return self._kernels(self)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Convolve; see ``nn.ConvTranspose1d``."""
        maps = (input if input.ndim == 3 else input[None]).unsqueeze(-2)
        output = torch.squeeze(self._convolve(self, maps, output_size), -2)
        return output if input.ndim == 3 else output[0]


class ColumnsConvTranspose2d(_Columns, nn.ConvTranspose2d):  # type: ignore[misc]  # properties for attributes
    """A transposed convolution `[B, in, H, W]` to `[B, out, H', W']`; see `_Columns`.

    Args:
        layer: the transposed convolution.
    """

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        self._open(layer)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # read-only here
        """The kernel, `[in, out / groups, height, width]`."""
        return self._kernels(self)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Convolve; see ``nn.ConvTranspose2d``."""
        output = self._convolve(self, input if input.ndim == 4 else input[None], output_size)
        return output if input.ndim == 4 else output[0]


def _adopt(module: nn.Module, layer: nn.Module) -> None:
    """Begin a module with the settings of a layer, without its parameters."""
    nn.Module.__init__(module)
    for name in SETTINGS:
        setattr(module, name, getattr(layer, name))
    module.train(layer.training)


def _in_space(value: tuple[int, ...]) -> tuple[int, int]:
    """Return a setting's height and width."""
    return value[1], value[2]


def _pair(value: Sequence[int], neutral: int) -> tuple[int, int]:
    """Return a setting for rows and columns; rows are neutral where there is one axis."""
    return (neutral, int(value[0])) if len(value) == 1 else (int(value[0]), int(value[1]))


def _share(convolution: nn.Conv2d, weight: Tensor, bias: Tensor | None, layer: nn.Module) -> None:
    """Set a convolution's tensors, with a layer's mode and gradient flags."""
    flag = next(layer.parameters()).requires_grad
    convolution.weight = nn.Parameter(weight, flag)
    if bias is not None:
        convolution.bias = nn.Parameter(bias.detach(), bias.requires_grad)
    convolution.train(layer.training)

"""Convolutions of any settings, for laws that hold for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

Kernel = int | tuple[int, int]
# Odd and even kernels with rows and columns to split; strips; and single pixels.
PLANES: tuple[Kernel, ...] = (2, 3, 5, (2, 3), (4, 3), (5, 2))
STRIPS: tuple[Kernel, ...] = ((1, 4), (4, 1), (1, 7), (7, 1))
PIXELS: tuple[Kernel, ...] = (1,)
MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def convolutions(
    draw: st.DrawFn, height: int, width: int, kernels: Sequence[Kernel] = (*PLANES, *STRIPS, *PIXELS), most: int = 6
) -> nn.Conv2d:
    """A convolution that takes maps of a height and a width, or larger ones; grouped or not, in float64."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    groups = draw(st.sampled_from([1, 2]))
    stride = draw(st.sampled_from([1, 2, (2, 1), (1, 3)]))
    paddings = [0, 1, 2, (2, 1), (3, 1), "valid"] + (["same"] if stride == 1 else [])
    layer = nn.Conv2d(
        draw(st.integers(3, most)) * groups,
        draw(st.sampled_from([1, *range(3, most + 1)])) * groups,
        draw(st.sampled_from(kernels)),
        stride,
        draw(st.sampled_from(paddings)),
        dilation=draw(st.sampled_from([1, 1, 2, (1, 2)])),
        groups=groups,
        padding_mode=draw(st.sampled_from(MODES)),
        bias=draw(st.booleans()),
    ).double()
    for axis, size in enumerate((height, width)):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        padded = {"same": reach, "valid": 0}.get(layer.padding) if isinstance(layer.padding, str) else None
        around = 2 * layer.padding[axis] if padded is None else padded
        assume(size + around >= reach)
        assume(layer.padding_mode == "zeros" or around // 2 < size)
    return layer

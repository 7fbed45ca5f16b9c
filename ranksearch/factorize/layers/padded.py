"""A convolution with any padding by zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

# Zeros before and after the input along one axis, by the remainder of its size divided by the stride.
AxisPadding = Sequence[tuple[int, int]]
NO_PADDING: AxisPadding = ((0, 0),)


class PaddedConv2d(nn.Conv2d):
    """A convolution whose padding may differ at both ends and depend on its input's size, as TensorFlow's "same" does.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: height and width.
        paddings: padding of rows and of columns.
        **kwargs: other arguments of ``nn.Conv2d`` but ``padding`` and ``padding_mode``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        paddings: Sequence[AxisPadding],
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **kwargs)
        self.paddings = tuple(tuple(axis) for axis in paddings)

    def forward(self, input: Tensor) -> Tensor:
        """Pad and convolve."""
        return super().forward(F.pad(input, [*self._amounts(input, 1), *self._amounts(input, 0)]))

    def pads_like(self, size: Sequence[int]) -> bool:
        """Return whether an input of a height and width is padded like one that the strides divide."""
        axes = zip(self.paddings, size, strict=True)
        return all(padding[each % len(padding)] == padding[0] for padding, each in axes)

    def _amounts(self, input: Tensor, axis: int) -> tuple[int, int]:
        padding = self.paddings[axis]
        return padding[0] if len(set(padding)) == 1 else padding[input.shape[2 + axis] % len(padding)]

    def extra_repr(self) -> str:
        """Return the settings of the convolution and the paddings."""
        return f"{nn.Conv2d.extra_repr(self)}, paddings={self.paddings}"  # type: ignore[no-untyped-call]  # as torch declares it

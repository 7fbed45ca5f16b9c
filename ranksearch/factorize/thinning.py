"""Thinned rows: of large maps, every k-th row of positions determines the moments as well as all do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.factorize.patch_moments import Taps
from ranksearch.factorize.statistics import Layer

# Rows beyond both are left out. All examples are read: the accuracy of moments depends on them more than on rows.
ROWS_FOR_EACH_ENTRY = 16
FEWEST_ROWS = 2**14
# Size of the outputs that are treated at once, which avoids copies of all maps.
NUMBERS_AT_ONCE = 2**22
# Limits on the consecutive examples of which the same rows are kept, so that they are read together.
EXAMPLES_ALIKE = 4, 8
# Distance between the rows of successive pairs, as a share of all: multiples of the golden ratio fill it evenly.
GOLDEN = (5**0.5 - 1) / 2


def as_rows(values: Tensor, layer: nn.Module) -> Tensor:
    """Reshape a layer's values to one row per position: `[B, C, H, W]` or `[..., C]` to `[N, C]`."""
    if isinstance(layer, nn.Conv2d):
        values = values.movedim(-3, -1)
    return values.reshape(-1, values.shape[-1])


@dataclass(frozen=True)
class Thinning:
    """Which rows of a layer's positions are read.

    Attributes:
        step: distance of the rows; 1 for all.
        taps: geometry by which the thinned maps are read; None where rows are read that need no patches.
        at_once: number of examples to read at once where all rows are kept.
    """

    step: int
    taps: Taps | None
    at_once: int = 16

    @staticmethod
    def from_output(layer: Layer, taps: Taps | None, output: Tensor, examples: float, entries: int) -> Thinning:
        """Return the thinning of a layer.

        Args:
            layer: the layer.
            taps: geometry of its patches; None where rows are read.
            output: output for a batch of examples.
            examples: number of all examples, as a multiple of that batch.
            entries: number of entries of a row or patch.
        """
        rows = output.numel() / len(layer.weight)
        at_once = max(1, NUMBERS_AT_ONCE * len(output) // max(1, output.numel()))
        step = max(1, int(rows * examples / max(ROWS_FOR_EACH_ENTRY * entries, FEWEST_ROWS)))
        if taps is None:
            # Coprime, so that the kept rows of one example are not those of the next.
            while gcd(step, int(rows / max(len(output), 1))) > 1:
                step -= 1
            return Thinning(step, None, at_once)
        # A divisor, so that all rows of maps are kept equally often, in thinned maps of one size.
        while output.shape[-2] % step or (step > 1 and taps.mode != "zeros"):
            step -= 1
        if step == 1:
            return Thinning(1, taps, at_once)
        stride = (step * taps.stride[0], taps.stride[1])
        return Thinning(step, replace(taps, stride=stride, padding=(0, 0, *taps.padding[2:])), at_once)

    def parts(self, values: Tensor, before: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Iterate over a few examples at a time, each with the first row to keep of them.

        Args:
            values: values of some examples.
            before: number of examples before these, whatever the batches that they came in.
        """
        if self.step == 1:
            yield from ((0, part) for part in torch.split(values, self.at_once))
            return
        fewest, most = EXAMPLES_ALIKE
        alike, start = max(fewest, min(self.at_once // fewest, most)), 0
        while start < len(values):
            turn, begun = divmod(before + start, alike)
            part = values[start : start + alike - begun]
            yield self.first_row(turn), part
            start += len(part)

    def first_row(self, turn: int) -> int:
        """Return the first row to keep at a turn: every one in time, and a row and its mirror image in pairs."""
        row = int(self.step * ((0.25 + GOLDEN * (turn // 2)) % 1))
        return self.step - 1 - row if turn % 2 else row

    def inputs(self, layer: Layer, values: Tensor, first: int) -> Tensor:
        """Return the inputs that the kept rows read, with their zero padding above and below, for `taps`.

        Args:
            layer: the layer.
            values: its inputs, `[B, in, H, W]`; rows `[N, in]` where there are no taps.
            first: the first kept row of outputs.
        """
        if self.taps is None:
            return values[first :: self.step]
        if self.step == 1:
            return values
        dense = Taps.from_layer(layer)  # type: ignore[arg-type]  # a convolution
        reach, stride = dense.dilation[0] * (dense.kernel[0] - 1) + 1, dense.stride[0]
        outputs = (values.shape[2] + sum(dense.padding[:2]) - reach) // stride + 1
        begin = first * stride - dense.padding[0]
        end = begin + (outputs - self.step) * stride + reach
        inside = values[:, :, max(begin, 0) : max(end, 0)]
        above = max(-begin, 0)
        return F.pad(inside, (0, 0, above, end - begin - above - inside.shape[2]))

    def outputs(self, values: Tensor, first: int) -> Tensor:
        """Return the kept rows of outputs; see `inputs`."""
        return values[first :: self.step] if self.taps is None else values[:, :, first :: self.step]

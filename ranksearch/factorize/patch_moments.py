"""Exact second moments of a convolution's input patches, streamed without holding all patches in memory.

Two taps of a kernel read the same map at a distance from each other, their lag. Sums of their products over all
positions depend on the lag alone, except for rows and columns at the borders, so the products of few lags serve all
pairs of taps: a 3x3 kernel of stride 1 needs 13 of them instead of 45.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, combinations_with_replacement, pairwise, product
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Patches of at most this many entries are cheaper to unfold, a few maps at a time, than to multiply lag by lag.
LARGEST_TO_UNFOLD = 256
UNFOLDED_NUMBERS = 2**23
# Float32 sums of products have errors of about 1e-6 of the mean squares, which must stay far below the smallest ridge.
FAR_MEANS = 10


@dataclass(frozen=True)
class Run:
    """Inputs along one axis that two taps read together: the first tap's, and the second's at a fixed lag from them.

    Attributes:
        first: position of the first tap's first input.
        count: number of inputs, one stride apart.
        lag: distance from the first tap's inputs to the second's.
    """

    first: int
    count: int
    lag: int


@lru_cache(maxsize=256)
def _runs(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> tuple[tuple[Run, ...], ...]:
    """Return each tap pair's runs outside the padding, entry ``tap * kernel + other``, cut so that pairs share them."""
    outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    ranges: list[tuple[int, int, int]] = []
    for tap, other in product(range(kernel), repeat=2):
        start, lag = dilation * tap - before, dilation * (other - tap)
        low, high = max(0, -lag), min(size, size - lag)
        earliest, latest = max(0, -((start - low) // stride)), min(outputs, -((start - high) // stride))
        ranges.append((start + stride * earliest, start + stride * latest, lag))

    def family(bounds: tuple[int, int, int]) -> tuple[int, int]:
        return bounds[2], bounds[0] % stride

    cuts: dict[tuple[int, int], set[int]] = {}
    for bounds in ranges:
        if bounds[0] < bounds[1]:
            cuts.setdefault(family(bounds), set()).update(bounds[:2])
    return tuple(
        tuple(
            Run(begin, (end - begin) // stride, bounds[2])
            for begin, end in pairwise(sorted(cuts.get(family(bounds), ())))
            if bounds[0] <= begin and end <= bounds[1]
        )
        for bounds in ranges
    )


@dataclass(frozen=True)
class Taps:
    """Geometry of a convolution's input reads.

    Attributes:
        kernel: height and width of the kernel.
        stride: stride along rows and columns.
        padding: padding at the top, bottom, left and right.
        dilation: dilation along rows and columns.
        mode: padding mode.
        groups: number of channel groups.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    mode: str
    groups: int

    @staticmethod
    def from_layer(layer: nn.Conv2d) -> Taps:
        """Return the geometry of a convolution."""
        kernel, stride, dilation = ((pair[0], pair[1]) for pair in (layer.kernel_size, layer.stride, layer.dilation))
        paddings = getattr(layer, "paddings", None)  # of a PaddedConv2d, for sizes that the strides divide
        if paddings is not None:
            padding = (*paddings[0][0], *paddings[1][0])
        elif layer.padding == "same":
            rows, columns = (space * (size - 1) for space, size in zip(dilation, kernel, strict=True))
            padding = (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
        else:
            rows, columns = (0, 0) if isinstance(layer.padding, str) else layer.padding
            padding = (rows, rows, columns, columns)
        return Taps(kernel, stride, padding, dilation, layer.padding_mode, layer.groups)

    def runs(self, height: int, width: int) -> tuple[tuple[tuple[Run, ...], ...], tuple[tuple[Run, ...], ...]]:
        """Return the runs of every pair of taps along rows and along columns of a map, without its zero padding."""
        top, bottom, left, right = self.padding if self.mode == "zeros" else (0, 0, 0, 0)
        return (
            _runs(height, self.kernel[0], self.stride[0], top, bottom, self.dilation[0]),
            _runs(width, self.kernel[1], self.stride[1], left, right, self.dilation[1]),
        )

    def unfolded(self, values: Tensor) -> Iterator[Tensor]:
        """Yield all patches of a batch, some maps at a time, as new tensors `[n, groups, fan_in, positions]`."""
        maps = max(1, UNFOLDED_NUMBERS // (values[0].numel() * self.kernel[0] * self.kernel[1]))
        for start in range(0, len(values), maps):
            padded = self.with_all_padding(values[start : start + maps])
            patches = F.unfold(padded, self.kernel, self.dilation, 0, self.stride)
            yield patches.reshape(len(patches), self.groups, -1, patches.shape[2])

    def with_all_padding(self, values: Tensor) -> Tensor:
        """Return maps with their padding, including zeros."""
        top, bottom, left, right = self.padding
        return F.pad(values, (left, right, top, bottom), mode="constant" if self.mode == "zeros" else self.mode)

    def outputs(self, height: int, width: int) -> int:
        """Return the number of output positions of one map."""
        count = 1
        for axis, size in enumerate((height, width)):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            count *= (size + sum(self.padding[2 * axis : 2 * axis + 2]) - reach) // self.stride[axis] + 1
        return count

    def pairs(self, height: int, width: int) -> Iterator[tuple[int, int, tuple[tuple[Run, Run], ...]]]:
        """Yield every pair of taps, the second not before the first, and its blocks (pairs of row and column runs)."""
        (rows, columns), (tall, wide) = self.runs(height, width), self.kernel
        for first, second in combinations_with_replacement(range(tall * wide), 2):
            (i, j), (k, m) = divmod(first, wide), divmod(second, wide)
            yield first, second, tuple(product(rows[i * tall + k], columns[j * wide + m]))


Block = tuple[Run, Run]


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in a precision sufficient for sums of their products."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def in_float64(values: Tensor) -> Tensor:
    """Return values in float64 on their device, or on the CPU if the device has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _far_from_zero(values: Tensor) -> bool:
    """Return whether float32 rounding of squared means would drown the variances."""
    if values.dtype != torch.float32:
        return False
    variances, means = torch.var_mean(values[:2], (0, 2, 3), correction=0)
    return bool(means.square().sum() > FAR_MEANS * variances.sum())


Key = TypeVar("Key")


def _sum(*entries: Iterable[tuple[Key, Tensor]]) -> dict[Key, Tensor]:
    """Return the sum of the entries of each key."""
    total: dict[Key, Tensor] = {}
    for key, tensor in chain(*entries):
        total[key] = total[key] + tensor if key in total else tensor
    return total


@dataclass
class PatchMoments:
    """First and second moments of patches, group by group, stored as sums of products by lag.

    Attributes:
        taps: geometry of the convolution.
        count: number of patches.
        sums: sum of each tap's inputs, `[groups, in / groups, taps]`, float64.
        size: height and width of the latest maps.
        products: block -> sum of products over maps of that size, `[groups, in / groups, in / groups]`; 29 blocks for a
            3x3 kernel of stride 1, for any number and size of patches.
        folded: pair of taps -> sum of products over maps of other sizes, of the same shape; 45 for a 3x3 kernel.
    """

    taps: Taps
    count: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(()))
    size: tuple[int, int] = (0, 0)
    products: dict[Block, Tensor] = field(default_factory=dict)
    folded: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _pairs: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)
    _outputs: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def see(self, values: Tensor) -> None:
        """Add the patches of a batch of inputs, `[N, in, H, W]`."""
        self.forget()
        values = at_least_float32(values.detach())
        if values.device.type == "mps":
            values = values.cpu()  # the products are solved in float64
        if _far_from_zero(values):
            values = in_float64(values)
        self.count += len(values) * self.taps.outputs(*values.shape[2:])
        if self.taps.mode != "zeros" and any(self.taps.padding):
            values = self.taps.with_all_padding(values)
        (height, width), stride = values.shape[2:], self.taps.stride[1]
        grouped = values.reshape(len(values), self.taps.groups, -1, height, width)
        # With examples and channels last, any stretch of a row is one matrix, and no shifted copy is needed.
        columns = [grouped[..., phase::stride].permute(1, 3, 4, 0, 2).contiguous() for phase in range(stride)]
        if self.size != (height, width):
            self.size, self.folded, self.products = (height, width), self._by_pair(), {}
        # Blocks that begin alike follow each other, and share the copy of their first inputs.
        blocks = {block for *_, blocks in self.taps.pairs(height, width) for block in blocks}
        first, inputs = (-1, -1, -1, -1), values
        for block in sorted(blocks, key=lambda runs: [(run.first, run.count, run.lag) for run in runs]):
            rows, across = block
            if first != (rows.first, rows.count, across.first, across.count):
                first = rows.first, rows.count, across.first, across.count
                inputs = lagged = self._read(columns, *first)
            if rows.lag or across.lag:
                lagged = self._read(columns, rows.first + rows.lag, rows.count, across.first + across.lag, across.count)
            if block in self.products and self.products[block].dtype == inputs.dtype:
                self.products[block].baddbmm_(inputs.mT, lagged)
            else:
                self.products[block] = self.products.get(block, 0) + inputs.mT @ lagged
        self.sums = self.sums + self._sums(in_float64(grouped.sum(0)))

    def _read(self, columns: list[Tensor], top: int, rows: int, left: int, across: int) -> Tensor:
        """Return inputs of some rows and columns, one stride apart, `[groups, positions * N, in / groups]`."""
        (down, right) = self.taps.stride
        at = left // right
        # A copy, unless all columns are read: one long matrix per group is multiplied faster than one per row.
        return columns[left % right][:, top : top + down * (rows - 1) + 1 : down, at : at + across].flatten(1, 3)

    def _sums(self, summed: Tensor) -> Tensor:
        """Return the sum of every tap's inputs from their sum over examples, `[groups, in / groups, H, W]`."""
        rows, columns = self.taps.runs(*summed.shape[2:])
        (tall, wide), step = self.taps.kernel, self.taps.stride
        taps = []
        for i, j in product(range(tall), range(wide)):
            total = summed.new_zeros(summed.shape[:2])
            for down, across in product(rows[i * tall + i], columns[j * wide + j]):
                bottom, right = (run.first + s * run.count for run, s in zip((down, across), step, strict=True))
                total += summed[..., down.first : bottom : step[0], across.first : right : step[1]].sum((-2, -1))
            taps.append(total)
        return torch.stack(taps, -1)

    def __add__(self, other: PatchMoments) -> PatchMoments:
        """Return the moments of both sets of patches together."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count, sums = self.count + other.count, self.sums + other.sums
        if self.size != other.size:
            return PatchMoments(self.taps, count, sums, folded=_sum(self._by_pair().items(), other._by_pair().items()))
        products = _sum(self.products.items(), other.products.items())
        folded = _sum(self.folded.items(), other.folded.items())
        return PatchMoments(self.taps, count, sums, self.size, products, folded)

    def _by_pair(self) -> dict[tuple[int, int], Tensor]:
        """Return the sum of products over all maps by pair of taps, the second not before the first."""
        pairs = self.taps.pairs(*self.size) if self.products else ()
        by_block = (((first, other), self.products[block]) for first, other, blocks in pairs for block in blocks)
        return _sum(self.folded.items(), by_block)

    @property
    def finite(self) -> bool:
        """Whether all values are finite."""
        tensors = (self.sums, *self.products.values(), *self.folded.values())
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    @property
    def mean(self) -> Tensor:
        """Mean patch, `[groups, fan_in]`, in the order of the flattened kernel."""
        return self.sums.flatten(1) / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        """Covariance of patches, `[groups, fan_in, fan_in]`, in flattened-kernel order and the products' dtype."""
        entries = torch.arange(self.mean.shape[1])
        return self.between(entries, entries)

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return a block of the covariance, `[groups, rows, columns]`, in the products' dtype.

        Args:
            rows: indices into the flattened kernel, the same taps for every channel in order.
            columns: such indices.
        """
        groups, channels, taps = self.sums.shape
        firsts, others = ([int(entry) % taps for entry in side[: len(side) // channels]] for side in (rows, columns))
        shape = groups, channels, len(firsts), channels, len(others)
        block = self.sums.new_empty(shape, dtype=self._dtype)
        for (i, first), (j, other) in product(enumerate(firsts), enumerate(others)):
            block[:, :, i, :, j] = self._pair(first, other)
        mean = self.mean.to(block)
        scaled = block.reshape(groups, len(rows), len(columns)).div_(max(self.count, 1))
        return scaled.baddbmm_(mean[:, rows, None], mean[:, None, columns], alpha=-1)

    def with_outputs(self, weight: Tensor) -> Tensor:
        """Return the covariance with outputs, `[groups, fan_in, out]`, of a weight `[groups, out, fan_in]`.

        The latest is kept, as all schemes of a layer ask for the same.
        """
        if self._outputs is not None and torch.equal(self._outputs[0], weight):
            return self._outputs[1]
        groups, channels, taps = self.sums.shape
        by_tap = weight.to(self._dtype).reshape(groups, -1, channels, taps).permute(0, 3, 2, 1).flatten(1, 2)
        block = by_tap.new_empty(groups, channels, taps, by_tap.shape[2])
        for first in range(taps):
            block[:, :, first] = torch.cat([self._pair(first, other) for other in range(taps)], 2) @ by_tap
        mean = self.mean.to(block)
        scaled = block.flatten(1, 2).div_(max(self.count, 1))
        scaled.baddbmm_(mean[:, :, None], mean[:, None] @ weight.to(mean).mT, alpha=-1)
        self._outputs = weight, scaled
        return scaled

    def forget(self) -> None:
        """Free what was computed from the moments and kept."""
        self._pairs.clear()
        self._outputs = None

    @property
    def _dtype(self) -> torch.dtype:
        kept = {total.dtype for total in (*self.products.values(), *self.folded.values())}
        return max(kept, key=lambda dtype: dtype.itemsize, default=torch.float64)

    def _pair(self, first: int, other: int) -> Tensor:
        """Return the sum of products of two taps, `[groups, in / groups, in / groups]`."""
        if not self._pairs:
            self._pairs.update(self._by_pair())
        key = (min(first, other), max(first, other))
        if key not in self._pairs:  # the taps never meet on these maps
            channels = self.sums.shape[1]
            return self.sums.new_zeros((), dtype=self._dtype).expand(len(self.sums), channels, channels)
        return self._pairs[key] if first <= other else self._pairs[key].mT

"""Second moments of a convolution's input patches: exact, streamed, without all patches ever held.

Two taps of a kernel see one map at a distance from each other, their lag. What they sum up over all positions depends
on the lag alone, but for rows and columns at the borders, so the products of few lags serve all pairs of taps: for a
3x3 kernel of stride 1 there are 13 of them instead of 45.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, pairwise, product
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Patches of at most so many numbers are cheaper unfolded, a few maps at a time, than multiplied lag by lag.
LARGEST_TO_UNFOLD = 256
UNFOLDED_NUMBERS = 2**23
# Sums of products in float32 are exact to some 1e-6 of the mean squares, which must stay far below the least ridge.
FAR_MEANS = 10


@dataclass(frozen=True)
class Run:
    """Inputs along one axis that two taps meet: the first tap's, and the second's at a fixed lag from them.

    Attributes:
        first: of the inputs that the first tap meets.
        count: of inputs, one stride apart.
        lag: from the first tap's inputs to the second's.
    """

    first: int
    count: int
    lag: int


@lru_cache(maxsize=256)
def _runs(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> tuple[tuple[Run, ...], ...]:
    """The runs of every pair of taps, entry ``tap * kernel + other``, cut so that pairs share whole runs.

    Inputs in the padding are zero and left out.
    """
    outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    ranges: dict[tuple[int, int], tuple[int, int, int]] = {}
    for tap, other in product(range(kernel), repeat=2):
        start, lag = dilation * tap - before, dilation * (other - tap)
        low, high = max(0, -lag), min(size, size - lag)
        earliest, latest = max(0, -((start - low) // stride)), min(outputs, -((start - high) // stride))
        ranges[tap, other] = (start + stride * earliest, start + stride * latest, lag)

    def family(bounds: tuple[int, int, int]) -> tuple[int, int]:
        return bounds[2], bounds[0] % stride

    cuts: dict[tuple[int, int], set[int]] = {}
    for bounds in ranges.values():
        if bounds[0] < bounds[1]:
            cuts.setdefault(family(bounds), set()).update(bounds[:2])
    return tuple(
        tuple(
            Run(begin, (end - begin) // stride, bounds[2])
            for begin, end in pairwise(sorted(cuts.get(family(bounds), ())))
            if bounds[0] <= begin and end <= bounds[1]
        )
        for bounds in ranges.values()
    )


@dataclass(frozen=True)
class Taps:
    """How a convolution reads its input.

    Attributes:
        kernel: height and width.
        stride: of both axes.
        padding: before and after the rows, before and after the columns.
        dilation: of both axes.
        mode: of the padding.
        groups: of the channels.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    mode: str
    groups: int

    @staticmethod
    def of(layer: nn.Conv2d) -> Taps:
        """Read a convolution's settings."""
        kernel, stride, dilation = ((pair[0], pair[1]) for pair in (layer.kernel_size, layer.stride, layer.dilation))
        if layer.padding == "same":
            total = [space * (size - 1) for space, size in zip(dilation, kernel, strict=True)]
            padding = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
        elif isinstance(layer.padding, str):
            padding = (0, 0, 0, 0)
        else:
            rows, columns = layer.padding
            padding = (rows, rows, columns, columns)
        return Taps(kernel, stride, padding, dilation, layer.padding_mode, layer.groups)

    def runs(self, height: int, width: int) -> tuple[tuple[tuple[Run, ...], ...], tuple[tuple[Run, ...], ...]]:
        """The runs of every pair of taps along rows and along columns, for a map with its zero padding left out."""
        top, bottom, left, right = self.padding if self.mode == "zeros" else (0, 0, 0, 0)
        return (
            _runs(height, self.kernel[0], self.stride[0], top, bottom, self.dilation[0]),
            _runs(width, self.kernel[1], self.stride[1], left, right, self.dilation[1]),
        )

    def unfolded(self, values: Tensor) -> Iterator[Tensor]:
        """All patches of a batch of inputs, some maps at a time: `[n, groups, fan_in, positions]`, to keep."""
        numbers = values[0].numel() * self.kernel[0] * self.kernel[1]
        maps = max(1, UNFOLDED_NUMBERS // numbers)
        for start in range(0, len(values), maps):
            padded = self.with_all_padding(values[start : start + maps])
            patches = F.unfold(padded, self.kernel, self.dilation, 0, self.stride)
            yield patches.reshape(len(patches), self.groups, -1, patches.shape[2])

    def with_all_padding(self, values: Tensor) -> Tensor:
        """Maps with their padding, zeros too."""
        top, bottom, left, right = self.padding
        mode = "constant" if self.mode == "zeros" else self.mode
        return F.pad(values, (left, right, top, bottom), mode=mode)

    def padded(self, values: Tensor) -> Tensor:
        """Maps with their padding, if that is other than zeros."""
        if self.mode == "zeros" or not any(self.padding):
            return values
        return self.with_all_padding(values)

    def outputs(self, height: int, width: int) -> int:
        """Positions of one map."""
        count = 1
        for axis, size in enumerate((height, width)):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            count *= (size + sum(self.padding[2 * axis : 2 * axis + 2]) - reach) // self.stride[axis] + 1
        return count

    def pairs(self, height: int, width: int) -> Iterator[tuple[int, int, tuple[tuple[Run, Run], ...]]]:
        """Every pair of taps, the second not before the first, with its blocks: a run of rows, a run of columns."""
        rows, columns = self.runs(height, width)
        (tall, wide), taps = self.kernel, range(self.kernel[0] * self.kernel[1])
        for first, second in product(taps, taps):
            if first <= second:
                (i, j), (k, m) = divmod(first, wide), divmod(second, wide)
                yield first, second, tuple(product(rows[i * tall + k], columns[j * wide + m]))


Block = tuple[Run, Run]


def at_least_float32(values: Tensor) -> Tensor:
    """Values in a precision that sums of their products can be taken in."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _far_from_zero(values: Tensor) -> bool:
    """Whether squares of the means would drown variances in the rounding of float32."""
    if values.dtype != torch.float32:
        return False
    variances, means = torch.var_mean(values, (0, 2, 3), correction=0)
    return bool(means.square().sum() > FAR_MEANS * variances.sum())


Key = TypeVar("Key")


def _sum(entries: Iterable[tuple[Key, Tensor]]) -> dict[Key, Tensor]:
    """Add up the entries of each key."""
    total: dict[Key, Tensor] = {}
    for key, tensor in entries:
        total[key] = total[key] + tensor if key in total else tensor
    return total


@dataclass
class PatchMoments:
    """First and second moments of patches, group by group, held as sums of products by lag.

    Attributes:
        taps: of the convolution.
        count: patches seen.
        sums: `[groups, in / groups, taps]`, float64.
        size: of the maps that came last.
        products: block -> sum of products over maps of that size, `[groups, in / groups, in / groups]`. A 3x3 kernel
            of stride 1 has 29 of them, whatever the number of patches and their size.
        folded: pair of taps -> sum of products over maps of other sizes, of the same shape; 45 for a 3x3 kernel.
    """

    taps: Taps
    count: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(()))
    size: tuple[int, int] = (0, 0)
    products: dict[Block, Tensor] = field(default_factory=dict)
    folded: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def see(self, values: Tensor) -> None:
        """Add the patches of a batch of inputs, `[N, in, H, W]`."""
        values = at_least_float32(values.detach())
        if _far_from_zero(values):
            values = values.cpu().double()
        self.count += len(values) * self.taps.outputs(*values.shape[2:])
        values = self.taps.padded(values)
        height, width = values.shape[2:]
        groups = self.taps.groups
        grouped = values.reshape(len(values), groups, -1, height, width)
        # Examples and channels last: then any stretch of a row is one matrix, and no shifted copy is made.
        columns = [
            grouped[..., phase :: self.taps.stride[1]].permute(1, 3, 4, 0, 2).contiguous()
            for phase in range(self.taps.stride[1])
        ]
        if self.size != (height, width):
            self.size, self.folded, self.products = (height, width), self._by_pair(), {}
        found = {
            block: self._product(columns, block).cpu()
            for block in {block for *_, blocks in self.taps.pairs(height, width) for block in blocks}
        }
        self.products = _sum(chain(self.products.items(), found.items()))
        self.sums = self.sums + self._sums(grouped.sum(0).cpu().double())

    def _product(self, columns: list[Tensor], block: Block) -> Tensor:
        (rows, across), (down, right) = block, self.taps.stride
        parts = []
        for top, left in ((rows.first, across.first), (rows.first + rows.lag, across.first + across.lag)):
            bottom, at = top + down * (rows.count - 1) + 1, left // right
            parts.append(columns[left % right][:, top:bottom:down, at : at + across.count].flatten(2, 3))
        # A matrix for each row and group: a stretch of columns of all examples.
        return torch.stack([torch.bmm(ours.mT, theirs).sum(0) for ours, theirs in zip(*parts, strict=True)])

    def _sums(self, summed: Tensor) -> Tensor:
        """Sum every tap's inputs; ``summed`` is `[groups, in / groups, H, W]`."""
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
        """The moments of both sets of patches together."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count, sums = self.count + other.count, self.sums + other.sums
        if self.size != other.size:
            folded = _sum(chain(self._by_pair().items(), other._by_pair().items()))
            return PatchMoments(self.taps, count, sums, folded=folded)
        products = _sum(chain(self.products.items(), other.products.items()))
        folded = _sum(chain(self.folded.items(), other.folded.items()))
        return PatchMoments(self.taps, count, sums, self.size, products, folded)

    def _by_pair(self) -> dict[tuple[int, int], Tensor]:
        """Pair of taps, the second not before the first -> sum of products over all maps."""
        pairs = self.taps.pairs(*self.size) if self.products else ()
        by_block = (((first, other), self.products[block]) for first, other, blocks in pairs for block in blocks)
        return _sum(chain(self.folded.items(), by_block))

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        tensors = (self.sums, *self.products.values(), *self.folded.values())
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    @property
    def mean(self) -> Tensor:
        """`[groups, fan_in]`, in the order of a kernel's numbers."""
        return self.sums.flatten(1) / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        """`[groups, fan_in, fan_in]`, in the order of a kernel's numbers and in the dtype of the products."""
        groups, channels, taps = self.sums.shape
        kept = {total.dtype for total in (*self.products.values(), *self.folded.values())}
        dtype = max(kept, key=lambda dtype: dtype.itemsize, default=torch.float64)
        second = torch.zeros(groups, channels, taps, channels, taps, dtype=dtype)
        for (first, other), total in self._by_pair().items():
            second[:, :, first, :, other] = total
        for first, other in product(range(taps), repeat=2):
            if first < other:
                second[:, :, other, :, first] = second[:, :, first, :, other].mT
        mean = self.mean.to(dtype)
        return (second.reshape(groups, channels * taps, -1) / max(self.count, 1)).baddbmm_(
            mean[:, :, None], mean[:, None, :], alpha=-1
        )

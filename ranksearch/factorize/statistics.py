"""What calibration keeps of a layer: first and second moments of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ranksearch.factorize.patches import PatchMoments

Layer = nn.Conv2d | nn.Linear


def groups_of(layer: Layer) -> int:
    """A layer's groups; 1 for linear layers."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


@dataclass(frozen=True)
class Moments:
    """First and second moments of rows, group by group, in float64 on the CPU.

    Attributes:
        count: rows seen.
        mean: `[groups, size]`.
        scatter: sum of outer products about the mean, `[groups, size, size]`.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows together (Chan et al., 1979)."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        total = self.count + other.count
        shift = other.mean - self.mean
        between = shift[:, :, None] * shift[:, None, :] * (self.count * other.count / total)
        return Moments(total, self.mean + shift * (other.count / total), self.scatter + other.scatter + between)

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        return bool(torch.isfinite(self.mean).all() and torch.isfinite(self.scatter).all())

    @property
    def covariance(self) -> Tensor:
        """`[groups, size, size]`, divided by the count."""
        return self.scatter / max(self.count, 1)


@dataclass(frozen=True)
class LayerStatistics:
    """What calibration saw of one layer.

    Attributes:
        side: whether the rows are the layer's outputs, or the inputs of its positions: where those are fewer numbers,
            and where a kernel may be split.
        halves: the moments of two disjoint halves of the examples, by which shrinkage is chosen.
    """

    side: Literal["input", "output"]
    halves: tuple[Moments | PatchMoments, Moments | PatchMoments]

    @property
    def all(self) -> Moments | PatchMoments:
        """The moments of all rows."""
        first, second = self.halves
        if isinstance(first, PatchMoments):
            assert isinstance(second, PatchMoments)
            return first + second
        assert isinstance(second, Moments)
        return first + second

    @property
    def mean(self) -> Tensor:
        """Mean of all rows, `[groups, size]`."""
        first, second = self.halves
        if first.count == 0 or second.count == 0:
            return second.mean if first.count == 0 else first.mean
        share = first.count / (first.count + second.count)
        return share * first.mean + (1 - share) * second.mean

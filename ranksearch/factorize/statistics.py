"""Calibration statistics of a layer: first and second moments of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear


def groups_of(layer: Layer) -> int:
    """Return the number of groups of a layer; 1 for linear layers."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


class SecondMoments(Protocol):
    """Interface of first and second moments of rows; `PatchMoments` implements it for patches."""

    @property
    def count(self) -> int:
        """Number of rows."""

    @property
    def finite(self) -> bool:
        """Whether all moments are finite."""

    @property
    def mean(self) -> Tensor:
        """Mean of the rows, `[groups, size]`."""

    @property
    def covariance(self) -> Tensor:
        """Covariance of the rows, `[groups, size, size]`."""

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return a block of the covariance, `[groups, rows, columns]`, by indices of entries."""

    def with_outputs(self, weight: Tensor) -> Tensor:
        """Return the covariance with outputs, `[groups, size, out]`, of a weight `[groups, out, size]`."""

    def forget(self) -> None:
        """Free what was computed from the moments and kept."""

    def __add__(self, other: Any) -> SecondMoments:
        """Return the moments of both sets of rows combined."""


@dataclass(frozen=True)
class Moments:
    """First and second moments of rows per group, in float64.

    Attributes:
        count: number of rows.
        mean: mean of the rows, `[groups, size]`.
        scatter: sum of outer products about the mean, `[groups, size, size]`.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets of rows combined (Chan et al., 1979)."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        total = self.count + other.count
        shift = other.mean - self.mean
        between = shift[:, :, None] * shift[:, None, :] * (self.count * other.count / total)
        return Moments(total, self.mean + shift * (other.count / total), self.scatter + other.scatter + between)

    @property
    def finite(self) -> bool:
        """Whether all moments are finite."""
        return bool(torch.isfinite(self.mean).all() and torch.isfinite(self.scatter).all())

    @property
    def covariance(self) -> Tensor:
        """Covariance of the rows, normalized by the count, `[groups, size, size]`."""
        return self.scatter / max(self.count, 1)

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return a block of the covariance, `[groups, rows, columns]`, by indices of entries."""
        return self.scatter[:, rows[:, None], columns] / max(self.count, 1)

    def with_outputs(self, weight: Tensor) -> Tensor:
        """Return the covariance with outputs, `[groups, size, out]`, of a weight `[groups, out, size]`."""
        return self.covariance @ weight.mT.to(self.scatter)

    def forget(self) -> None:
        """Free nothing: nothing is kept."""


@dataclass(frozen=True)
class WhiteMoments:
    """Moments of uncorrelated entries of variance 1, which stand for unknown inputs.

    Attributes:
        groups: number of groups.
        size: number of entries of a row.
        device: device of the moments.
    """

    groups: int
    size: int
    device: torch.device
    count: int = 0
    finite: bool = True

    @property
    def mean(self) -> Tensor:
        """Zeros, `[groups, size]`."""
        return torch.zeros(self.groups, self.size, dtype=torch.float64, device=self.device)

    @property
    def covariance(self) -> Tensor:
        """Identity matrices, `[groups, size, size]`."""
        return torch.eye(self.size, dtype=torch.float64, device=self.device).expand(self.groups, -1, -1)

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return a block of the covariance, `[groups, rows, columns]`, by indices of entries."""
        return (rows[:, None] == columns).double().to(self.device).expand(self.groups, -1, -1)

    def with_outputs(self, weight: Tensor) -> Tensor:
        """Return the covariance with outputs, `[groups, size, out]`, of a weight `[groups, out, size]`."""
        return weight.mT.double()

    def forget(self) -> None:
        """Free nothing: nothing is kept."""

    def __add__(self, other: Any) -> SecondMoments:
        """Return the other moments: nothing was measured here."""
        moments: SecondMoments = other
        return moments


@dataclass(frozen=True)
class LayerStatistics:
    """Calibration statistics of one layer.

    Attributes:
        side: whether the rows are the layer's outputs or the inputs of its positions; inputs are used if they are
            smaller or the kernel may be split.
        halves: moments of two disjoint halves of the examples, from which shrinkage is selected.
    """

    side: Literal["input", "output"]
    halves: tuple[SecondMoments, SecondMoments]

    @property
    def all(self) -> SecondMoments:
        """Moments of all rows."""
        return self.halves[0] + self.halves[1]

    @property
    def mean(self) -> Tensor:
        """Mean of all rows, `[groups, size]`."""
        first, second = self.halves
        if first.count == 0 or second.count == 0:
            return second.mean if first.count == 0 else first.mean
        share = first.count / (first.count + second.count)
        return share * first.mean + (1 - share) * second.mean


def at_all_rows(seen: float, unseen: float, rows: int, entries: int) -> float:
    """Estimate the expected error of a solution fitted to all examples from the errors of one fitted to half of them.

    The held-out error exceeds the irreducible error, and the training error falls below it, by amounts inversely
    proportional to the number of rows: doubling the rows closes a quarter of the gap between the two errors; less where
    rows are so few that these amounts saturate.

    Args:
        seen: error on the half that the solution was fitted to.
        unseen: error on the held-out half.
        rows: number of all rows.
        entries: number of entries of a row.
    """
    closed = 0.25 * rows / (rows + entries)
    return (1 - closed) * unseen + closed * min(seen, unseen)

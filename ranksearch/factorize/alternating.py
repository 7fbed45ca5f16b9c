"""The two factors of a split kernel, found by least squares in turns: no gradient descent, no data but a covariance.

The first factor reads a piece of the patch (a strip, or one pixel) at each of several offsets, the second combines
what it reads. With A the first factor, B_j the second's matrix at offset j, x_j the pieces of a patch x, R the
covariance of patches and W x the layer's output, the error is quadratic in either factor alone:

    E || W x - sum_j B_j A x_j ||^2 = tr (W - B (I o A)) R (W - B (I o A))^T

It starts with the singular vectors that neglect how the pieces of one patch depend on each other. Refits of both
factors from R, which knows that, then take the error to within a few percent of what gradient descent finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# How often both factors are improved by turns, after the start.
TURNS = 2


@dataclass(frozen=True)
class SplitProblem:
    """What two factors should do, and what they meet; computed in the dtype of the covariance.

    Attributes:
        weight: the layer's, `[groups, out / groups, offsets, piece]`.
        covariance: of patches, `[groups, offsets * piece, offsets * piece]`.
        target: covariance of the layer's output with patches, of the weight's shape.
    """

    weight: Tensor
    covariance: Tensor
    target: Tensor

    @staticmethod
    def of(weight: Tensor, covariance: Tensor, order: Tensor) -> SplitProblem:
        """Cut a layer and its patches into pieces.

        Args:
            weight: `[groups, out / groups, fan_in]`.
            covariance: `[groups, fan_in, fan_in]`.
            order: index of each piece's numbers in a kernel's, `[offsets, piece]`.
        """
        index, size = order.flatten(), covariance.diagonal(dim1=1, dim2=2).mean()
        # Of mean variance 1, for shares of errors do not depend on it, and squares of a covariance may overflow.
        covariance = covariance / size if size > 0 else covariance
        pieces = weight[:, :, index].to(covariance).reshape(*weight.shape[:2], *order.shape)
        covariance = covariance[:, index[:, None], index]
        return SplitProblem(pieces, covariance, (pieces.flatten(2) @ covariance).view_as(pieces))

    def ridged(self, share: float) -> SplitProblem:
        """The same with white patches mixed in, of a share of the mean variance; as many at least as rounding hides."""
        level = self.covariance.diagonal(dim1=1, dim2=2).mean(1)
        rounding = torch.finfo(level.dtype).eps * self.covariance.flatten(1).norm(dim=1)
        level = torch.where(level > 0, torch.maximum(share * level, rounding), torch.ones_like(level))[:, None, None]
        mixed = self.covariance.clone()
        mixed.diagonal(dim1=1, dim2=2).add_(level[:, 0])
        return SplitProblem(self.weight, mixed, self.target + level[..., None] * self.weight)

    @cached_property
    def _mean_covariance(self) -> Tensor:
        """Covariance of a piece, the mean over all offsets, `[groups, piece, piece]`, float64."""
        groups, _, offsets, piece = self.weight.shape
        blocks = self.covariance.view(groups, offsets, piece, offsets, piece)
        mean: Tensor = blocks.diagonal(dim1=1, dim2=3).mean(-1).double()
        return mean

    @cached_property
    def _mean_root(self) -> Tensor:
        """Its Cholesky factor."""
        return _root(self._mean_covariance, torch.finfo(self.covariance.dtype).eps)

    def first_factors(self) -> tuple[Tensor, Tensor]:
        """The first factors of all ranks, if pieces did not depend on each other, and what they then would miss.

        The first r rows are that of rank r. With M the layer's weight, one row per output and offset, and C the mean
        covariance of a piece, they are the right singular vectors of M C^(1/2), taken back by C^(-1/2).

        Returns:
            The rows, `[groups, piece, piece]`, and the share of the variance that each rank misses, `[piece + 1]`, the
            first entry that of rank 0; float64.
        """
        seen = self.weight.flatten(1, 2).double() @ self._mean_root
        values, vectors = torch.linalg.eigh(seen.mT @ seen)
        rows: Tensor = torch.linalg.solve_triangular(self._mean_root, vectors.flip(-1).mT, upper=False, left=False)
        missed = torch.cat([values.new_zeros(1), values.clamp_min(0).sum(0).cumsum(0)]).flip(0)
        return rows, missed / missed[0].clamp_min(1e-300)

    def _meet(self, first: Tensor) -> Tensor:
        """Covariance of latent pieces with all numbers of a patch, `[groups, offsets, rank, offsets, piece]`."""
        groups, _, offsets, piece = self.weight.shape
        rows = self.covariance.view(groups, offsets, piece, -1)
        return (first[:, None] @ rows).reshape(groups, offsets, -1, offsets, piece)

    def _refit_second(self, first: Tensor, second: Tensor, meeting: Tensor) -> Tensor:
        """The best second factor for a first one, found as a change of another: a linear least-squares problem."""
        offsets, size = second.shape[2:]
        # Pieces of all offsets as rows of one matrix: a product for each would be many small ones.
        gram = (meeting.flatten(1, 3) @ first.mT).reshape(len(first), offsets * size, -1)
        rest = (self.target.flatten(1, 2) @ first.mT).reshape(second.shape).flatten(2) - second.flatten(2) @ gram
        change = solve_symmetric(gram, rest.mT).mT
        return second + change.reshape(second.shape)

    def _improve_first(self, first: Tensor, second: Tensor, meeting: Tensor) -> tuple[Tensor, Tensor]:
        """A better first factor for a second one, and what it meets.

        The normal equations are ``sum_ij B_i^T B_j A R_ji = sum_i B_i^T (W R)_i``. One step goes along their residual,
        measured by their part with i = j and the mean covariance of a piece, as far as the error falls.
        """
        offsets, flat = second.shape[2], second.flatten(2)
        weights = flat.mT @ flat
        by_offset = weights.reshape(len(first), offsets, first.shape[1], -1)

        def act(meeting: Tensor) -> Tensor:
            return (by_offset @ meeting.flatten(1, 2).transpose(1, 2)).sum(1)

        rest = torch.einsum("goka,gokf->gaf", second, self.target) - act(meeting)
        alike = weights.reshape(len(first), offsets, first.shape[1], offsets, -1).diagonal(dim1=1, dim2=3).sum(-1)
        steps = torch.cholesky_solve(solve_symmetric(alike, rest).mT.double(), self._mean_root)
        direction = steps.mT.to(first)
        met = self._meet(direction)
        slope, curvature = (rest * direction).sum(), (act(met) * direction).sum()
        length = slope / curvature if float(curvature) > 0 else torch.zeros_like(slope)
        return first + length * direction, meeting + length * met

    def solve(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Both factors of a rank: `[groups, rank, piece]` and `[groups, out / groups, offsets, rank]`.

        Args:
            start: a first factor of that rank, from `first_factors`.
        """
        # At full rank this is the layer itself already, and nothing is left to refit.
        read = self.weight.flatten(1, 2).double() @ (self._mean_covariance @ start.mT)
        second = read.reshape(*self.weight.shape[:3], -1).to(self.weight)
        first = start.to(self.weight)
        meeting = self._meet(first)
        second = self._refit_second(first, second, meeting)
        for _ in range(TURNS):
            first, meeting = self._improve_first(first, second, meeting)
            second = self._refit_second(first, second, meeting)
        return first, second

    def truncation_error(self, first: Tensor, second: Tensor) -> float:
        """Share of the output's variance that two factors miss; 0 where there is none."""
        rest = self.weight.flatten(2) - (second.flatten(1, 2) @ first).reshape(*self.weight.shape[:2], -1)
        missed, total = ((rest @ self.covariance) * rest).sum(), (self.target * self.weight).sum()
        return float(missed / total) if float(total) > 0 else 0.0


def _root(matrix: Tensor, rounding: float, level: float = 0.0) -> Tensor:
    """The Cholesky factor of a symmetric matrix in float64, lifted above the rounding that it carries.

    Args:
        matrix: `[groups, size, size]`.
        rounding: of its entries, as a share of the largest.
        level: what is added to the diagonal, as a share of its mean; more where that does not suffice, because
            nearly all variance is in few directions, whose rounding drowns the others.
    """
    symmetric = (matrix + matrix.mT).double() / 2
    scale = symmetric.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
    white = scale[:, None, None] * torch.eye(matrix.shape[-1], dtype=torch.float64)
    while True:
        root: Tensor
        root, failed = torch.linalg.cholesky_ex(symmetric + level * white)
        smallest = root.diagonal(dim1=1, dim2=2).square().amin(1)
        if level > 1 or not bool(failed.any() or (smallest < 10 * rounding * scale).any()):
            return root
        level = max(10 * level, 100 * rounding)


def solve_symmetric(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve with a symmetric matrix, `[groups, size, size]`, in float64."""
    rounding = torch.finfo(matrix.dtype).eps
    found: Tensor = torch.cholesky_solve(right.double(), _root(matrix, rounding, 100 * rounding))
    return found.to(right)

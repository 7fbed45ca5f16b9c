"""Factors of a split kernel by alternating least squares, without gradient descent or data beyond a covariance.

The first factor maps a piece of the patch (a strip, or one pixel) at each of several offsets to latent values, and the
second combines these. With A the first factor, B_j the second factor's matrix at offset j, x_j the pieces of a patch x,
R the covariance of patches and W x the layer's output, the error is quadratic in either factor alone:

    E || W x - sum_j B_j A x_j ||^2 = tr (W - B (I o A)) R (W - B (I o A))^T

The initial factors are singular vectors that ignore correlations between the pieces of a patch. Refits of both factors
from R, which includes these correlations, bring the error to within a few percent of gradient descent's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Number of alternating updates of both factors after the initial solution.
TURNS = 2


@dataclass(frozen=True)
class AlternatingLeastSquares:
    """Least-squares problem of two factors, solved in the dtype of the covariance.

    Attributes:
        weight: weight of the layer, `[groups, out / groups, offsets, piece]`.
        covariance: covariance of patches, `[groups, offsets * piece, offsets * piece]`.
        target: covariance of the layer's output with patches, in the weight's shape.
    """

    weight: Tensor
    covariance: Tensor
    target: Tensor

    @staticmethod
    def from_patches(weight: Tensor, covariance: Tensor, order: Tensor) -> AlternatingLeastSquares:
        """Create the problem of a layer, with its weight and patches cut into pieces.

        Args:
            weight: weight of the layer, `[groups, out / groups, fan_in]`.
            covariance: covariance of patches, `[groups, fan_in, fan_in]`.
            order: indices of each piece's entries in the flattened kernel, `[offsets, piece]`.
        """
        index, size = order.flatten(), covariance.diagonal(dim1=1, dim2=2).mean()
        # Scale to mean variance 1: error shares do not depend on it, and squares of a covariance may overflow.
        covariance = covariance / size if size > 0 else covariance
        pieces = weight[:, :, index].to(covariance).reshape(*weight.shape[:2], *order.shape)
        covariance = covariance[:, index[:, None], index]
        return AlternatingLeastSquares(pieces, covariance, (pieces.flatten(2) @ covariance).view_as(pieces))

    def ridged(self, share: float) -> AlternatingLeastSquares:
        """Return the problem with a ridge on the patches: a share of the mean variance, at least the rounding error."""
        level = self.covariance.diagonal(dim1=1, dim2=2).mean(1)
        rounding = torch.finfo(level.dtype).eps * self.covariance.flatten(1).norm(dim=1)
        level = torch.where(level > 0, torch.maximum(share * level, rounding), torch.ones_like(level))[:, None, None]
        mixed = self.covariance.clone()
        mixed.diagonal(dim1=1, dim2=2).add_(level[:, 0])
        return AlternatingLeastSquares(self.weight, mixed, self.target + level[..., None] * self.weight)

    @cached_property
    def _mean_covariance(self) -> Tensor:
        """Covariance of a piece, averaged over all offsets, `[groups, piece, piece]`, float64."""
        groups, _, offsets, piece = self.weight.shape
        blocks = self.covariance.view(groups, offsets, piece, offsets, piece)
        return blocks.diagonal(dim1=1, dim2=3).mean(-1).double()

    @cached_property
    def _mean_root(self) -> Tensor:
        """Cholesky factor of the mean covariance."""
        return _root(self._mean_covariance, torch.finfo(self.covariance.dtype).eps)

    def first_factors(self) -> tuple[Tensor, Tensor]:
        """Return the first factors of all ranks and their truncation errors, assuming uncorrelated pieces.

        The first r rows form the factor of rank r. With M the layer's weight, one row per output and offset, and C the
        mean covariance of a piece, they are the right singular vectors of M C^(1/2), multiplied by C^(-1/2).

        Returns:
            Rows, `[groups, piece, piece]`, and the variance share that each rank from 0 loses, `[piece + 1]`; float64.
        """
        seen = self.weight.flatten(1, 2).double() @ self._mean_root
        values, vectors = torch.linalg.eigh(seen.mT @ seen)
        rows: Tensor = torch.linalg.solve_triangular(self._mean_root, vectors.flip(-1).mT, upper=False, left=False)
        missed = torch.cat([values.new_zeros(1), values.clamp_min(0).sum(0).cumsum(0)]).flip(0)
        return rows, missed / missed[0].clamp_min(1e-300)

    def _meet(self, first: Tensor) -> Tensor:
        """Return the covariance of latent pieces with patches, `[groups, offsets, rank, offsets, piece]`."""
        groups, _, offsets, piece = self.weight.shape
        rows = self.covariance.view(groups, offsets, piece, -1)
        return (first[:, None] @ rows).reshape(groups, offsets, -1, offsets, piece)

    def _refit_second(self, first: Tensor, second: Tensor, meeting: Tensor) -> Tensor:
        """Return the least-squares second factor for a first one, solved for the change from a given second factor."""
        offsets, size = second.shape[2:]
        # Pieces of all offsets are rows of one matrix, which avoids many small products.
        gram = (meeting.flatten(1, 3) @ first.mT).reshape(len(first), offsets * size, -1)
        rest = (self.target.flatten(1, 2) @ first.mT).reshape(second.shape).flatten(2) - second.flatten(2) @ gram
        return second + solve_symmetric(gram, rest.mT).mT.reshape(second.shape)

    def _improve_first(self, first: Tensor, second: Tensor, meeting: Tensor) -> tuple[Tensor, Tensor]:
        """Return an improved first factor for a second one, and its covariance with patches.

        The normal equations are ``sum_ij B_i^T B_j A R_ji = sum_i B_i^T (W R)_i``. The update is one exact line search
        along their residual, preconditioned by their part with i = j and the mean covariance of a piece.
        """
        offsets, flat = second.shape[2], second.flatten(2)
        weights = flat.mT @ flat
        by_offset = weights.reshape(len(first), offsets, first.shape[1], -1)

        def act(meeting: Tensor) -> Tensor:
            return (by_offset @ meeting.flatten(1, 2).transpose(1, 2)).sum(1)

        rest = torch.einsum("goka,gokf->gaf", second, self.target) - act(meeting)
        alike = weights.reshape(len(first), offsets, first.shape[1], offsets, -1).diagonal(dim1=1, dim2=3).sum(-1)
        direction = torch.cholesky_solve(solve_symmetric(alike, rest).mT.double(), self._mean_root).mT.to(first)
        met = self._meet(direction)
        slope, curvature = (rest * direction).sum(), (act(met) * direction).sum()
        length = slope / curvature if float(curvature) > 0 else torch.zeros_like(slope)
        return first + length * direction, meeting + length * met

    def solve(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both factors of a rank: `[groups, rank, piece]` and `[groups, out / groups, offsets, rank]`.

        Args:
            start: first factor of that rank, from `first_factors`.
        """
        # At full rank this is the layer itself, and there is nothing to refit.
        read = self.weight.flatten(1, 2).double() @ (self._mean_covariance @ start.mT)
        first, second = start.to(self.weight), read.reshape(*self.weight.shape[:3], -1).to(self.weight)
        meeting = self._meet(first)
        second = self._refit_second(first, second, meeting)
        for _ in range(TURNS):
            first, meeting = self._improve_first(first, second, meeting)
            second = self._refit_second(first, second, meeting)
        return first, second

    def truncation_error(self, first: Tensor, second: Tensor) -> float:
        """Return the share of the output's variance that two factors lose; 0 if there is no variance."""
        rest = self.weight.flatten(2) - (second.flatten(1, 2) @ first).reshape(*self.weight.shape[:2], -1)
        missed, total = ((rest @ self.covariance) * rest).sum(), (self.target * self.weight).sum()
        return float(missed / total) if float(total) > 0 else 0.0


def _root(matrix: Tensor, rounding: float, level: float = 0.0) -> Tensor:
    """Return the Cholesky factor of symmetric matrices, `[groups, size, size]`, in float64, with a ridge if needed."""
    symmetric = (matrix + matrix.mT).double() / 2
    scale = symmetric.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
    white = scale[:, None, None] * torch.eye(matrix.shape[-1], dtype=torch.float64)
    # The ridge (`level`, a share of the mean diagonal) grows until pivots exceed the relative `rounding` of entries:
    # with nearly all variance in few directions, their rounding error drowns the others.
    while True:
        root: Tensor
        root, failed = torch.linalg.cholesky_ex(symmetric + level * white)
        smallest = root.diagonal(dim1=1, dim2=2).square().amin(1)
        if level > 1 or not bool(failed.any() or (smallest < 10 * rounding * scale).any()):
            return root
        level = max(10 * level, 100 * rounding)


def solve_symmetric(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve a linear system with symmetric matrices, `[groups, size, size]`, in float64."""
    rounding = torch.finfo(matrix.dtype).eps
    return torch.cholesky_solve(right.double(), _root(matrix, rounding, 100 * rounding)).to(right)

"""Factors of a split kernel by alternating least squares, without gradient descent or data beyond second moments.

The first factor maps a piece of the patch (a strip, or one pixel) at each of several offsets to latent values, and the
second combines these. With A the first factor, B_j the second factor's matrix at offset j, x_j the pieces of a patch x
and W x the layer's output, the error is quadratic in either factor alone:

    E || W x - sum_j B_j A x_j ||^2

The initial first factors are singular vectors that ignore correlations between the pieces of a patch; they are nested:
the first r rows are those of rank r. Everything else happens in the space of the first rows' latent values, as many as
a rank can have: their second moments, and those with the output, serve every rank, and no covariance of whole patches
is needed. One Cholesky factor of the moments gives the error of every rank before refinement. A rank's own factors are
refined from there: the first factor becomes a combination of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ranksearch.factorize.statistics import at_all_rows

# Number of alternating updates of both factors after the initial solution.
TURNS = 2
# Refined factors are combinations of this many times their rank, at least.
ROWS_TO_COMBINE = 2
FEWEST_ROWS_TO_COMBINE = 96
# Larger systems are solved in the dtype of their moments: they come from whitened values, and are well conditioned.
LARGEST_IN_FLOAT64 = 512
# Ridge that is always added to the patch covariance: well above the rounding of float32 sums, too small to matter.
LEAST_RIDGE = 1e-5
# Larger ridges, which are tried where rows are few.
RIDGES = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)


def rows_to_combine(rank: int) -> int:
    """Return how many first factors those of a rank are combined from, at least."""
    return max(ROWS_TO_COMBINE * rank, FEWEST_ROWS_TO_COMBINE)


@dataclass(frozen=True)
class LatentMoments:
    """Second moments of latent values and their covariance with the layer's outputs, group by group.

    Attributes:
        gram: moments of the latent values, rank-major: `[groups, ranks, offsets, ranks, offsets]`.
        cross: covariance with the outputs, `[groups, ranks, offsets, out / groups]`.
        variance: variance of all outputs, a scalar.
        mean: mean latent values, `[groups, ranks, offsets]`.
        output: mean outputs, `[groups, out / groups]`.
        count: number of patches.
    """

    gram: Tensor
    cross: Tensor
    variance: Tensor
    mean: Tensor
    output: Tensor
    count: int

    def __add__(self, other: LatentMoments) -> LatentMoments:
        """Return the moments of both sets of patches combined (Chan et al., 1979)."""
        count = self.count + other.count
        share, between = other.count / count, self.count * other.count / count**2
        mean, output = other.mean - self.mean, other.output - self.output
        return LatentMoments(
            torch.lerp(self.gram, other.gram, share) + between * mean[:, :, :, None, None] * mean[:, None, None],
            torch.lerp(self.cross, other.cross, share) + between * mean[..., None] * output[:, None, None],
            torch.lerp(self.variance, other.variance, share) + between * output.square().sum(),
            self.mean + share * mean,
            self.output + share * output,
            count,
        )

    @staticmethod
    def from_rows(latent: Tensor, outputs: Tensor) -> LatentMoments:
        """Return the moments of some rows.

        Args:
            latent: latent values, `[groups, rows, ranks, offsets]`.
            outputs: outputs, `[groups, rows, out / groups]`.
        """
        groups, count, ranks, offsets = latent.shape
        mean, output = latent.mean(1), outputs.mean(1)
        rows, outputs = (latent - mean[:, None]).flatten(2), outputs - output[:, None]
        gram = (rows.mT @ rows / count).reshape(groups, ranks, offsets, ranks, offsets)
        cross = (rows.mT @ outputs / count).reshape(groups, ranks, offsets, -1)
        return LatentMoments(gram, cross, outputs.square().sum() / count, mean, output, count)

    def leading(self, rank: int) -> LatentMoments:
        """Return the moments of the first latent values alone."""
        gram, cross, mean = self.gram[:, :rank, :, :rank], self.cross[:, :rank], self.mean[:, :rank]
        return replace(self, gram=gram, cross=cross, mean=mean)

    def error(self, first: Tensor, second: Tensor) -> float:
        """Return the share of the outputs' variance that two factors lose; 0 if there is no variance.

        Args:
            first: combination of the rows, `[groups, rank, ranks]`.
            second: second factor, `[groups, rank, offsets, out / groups]`.
        """
        met = self.meet(first)
        explained = 2 * (self.aim(first) * second).sum() - (self.latent_gram(first, met) * _products(second)).sum()
        return float(1 - explained / self.variance) if float(self.variance) > 0 else 0.0

    def meet(self, first: Tensor) -> Tensor:
        """Return the moments of combined latent values with all, `[groups, rank, offsets, ranks, offsets]`."""
        return (first @ self.gram.flatten(2)).reshape(*first.shape[:2], *self.gram.shape[2:])

    def aim(self, first: Tensor) -> Tensor:
        """Return the covariance of combined latent values with the outputs, `[groups, rank, offsets, out / groups]`."""
        return (first @ self.cross.flatten(2)).reshape(*first.shape[:2], *self.cross.shape[2:])

    @staticmethod
    def latent_gram(first: Tensor, met: Tensor) -> Tensor:
        """Return the moments of combined latent values, `[groups, rank, offsets, rank, offsets]`."""
        rows = met.movedim(3, 4)
        return (rows.flatten(1, 3) @ first.mT).reshape(*rows.shape[:4], -1).movedim(4, 3)


def _products(second: Tensor) -> Tensor:
    """Return the sums over outputs of products of the second factor's entries, `[groups, rank, offsets, rank, ...]`."""
    flat = second.flatten(1, 2)
    return (flat @ flat.mT).reshape(*second.shape[:3], *second.shape[1:3])


@dataclass(frozen=True)
class AlternatingLeastSquares:
    """Least-squares problem of two factors in the space of nested latent values.

    Attributes:
        moments: moments to minimize the error on.
        white_gram: moments of the latent values for white patches of mean variance 1, `[groups, ranks, ranks]`.
        white_cross: covariance with the outputs for such patches, `[groups, ranks, offsets, out / groups]`.
        white_variance: variance of the outputs for such patches, `[groups]`.
        level: mean variance of the patches, `[groups]`.
    """

    moments: LatentMoments
    white_gram: Tensor
    white_cross: Tensor
    white_variance: Tensor
    level: Tensor

    def leading(self, rank: int) -> AlternatingLeastSquares:
        """Return the problem in the space of the first latent values alone."""
        white_gram, white_cross = self.white_gram[:, :rank, :rank], self.white_cross[:, :rank]
        return replace(self, moments=self.moments.leading(rank), white_gram=white_gram, white_cross=white_cross)

    def ridged(self, share: float) -> AlternatingLeastSquares:
        """Return the problem with white patches mixed in: a share of the mean variance (ridge regression)."""
        level = torch.where(self.level > 0, share * self.level, torch.ones_like(self.level))
        gram = self.moments.gram.clone()
        gram.diagonal(dim1=2, dim2=4).add_((level[:, None, None] * self.white_gram)[..., None])
        cross = self.moments.cross + level[:, None, None, None] * self.white_cross
        variance = self.moments.variance + (level * self.white_variance).sum()
        return replace(self, moments=replace(self.moments, gram=gram, cross=cross, variance=variance))

    def nested_errors(self, held_out: LatentMoments) -> Tensor:
        """Return the error of every rank from 0 before refinement, on other examples, `[ranks + 1]`, float64.

        With L L^T the moments, the second factor of the first n latent values is read off Y = L^-1 cross, and its error
        is the variance minus 2 <Y, L^-1 cross'> plus <Y Y^T, L^-1 gram' L^-T>, summed over the first n rows.
        """
        groups, ranks, offsets = self.moments.cross.shape[:3]
        root = _root_of(self.moments.gram.reshape(groups, ranks * offsets, -1))
        solved = torch.linalg.solve_triangular(root, self.moments.cross.flatten(1, 2).to(root), upper=False)
        aim = torch.linalg.solve_triangular(root, held_out.cross.flatten(1, 2).to(root), upper=False)
        gram = held_out.gram.reshape(groups, ranks * offsets, -1).to(root)
        half = torch.linalg.solve_triangular(root, gram, upper=False)
        seen = torch.linalg.solve_triangular(root, half.mT, upper=False)
        weighted = (solved @ solved.mT).mul_(seen).sum(0)
        # Sums over the leading n x n blocks: each adds a row and a column.
        added = 2 * weighted.tril(-1).sum(1, dtype=torch.float64) + weighted.diagonal().double()
        linear = (solved * aim).sum((0, 2), dtype=torch.float64)
        explained = (2 * linear - added).reshape(ranks, offsets).sum(1).cumsum(0)
        variance = held_out.variance.double()
        lost = 1 - explained / variance if float(variance) > 0 else torch.zeros_like(explained)
        return torch.cat([torch.ones(1, dtype=torch.float64, device=lost.device), lost]).cpu()

    def solve(self, rank: int, turns: int = TURNS) -> tuple[Tensor, Tensor]:
        """Compute both factors of a rank.

        Args:
            rank: rank of one group.
            turns: number of updates of both factors.

        Returns:
            The first factor as a combination of the rows, `[groups, rank, ranks]`, and the second factor,
            `[groups, rank, offsets, out / groups]`.
        """
        moments = self.moments
        groups, ranks = moments.gram.shape[:2]
        first = torch.eye(ranks, dtype=moments.gram.dtype, device=moments.gram.device)[:rank].expand(groups, -1, -1)
        met = moments.meet(first)
        second = self._refit_second(first, met)
        for _ in range(turns if rank < ranks else 0):
            first, met = self._improve_first(first, second, met)
            second = self._refit_second(first, met)
        return first, second

    def _refit_second(self, first: Tensor, met: Tensor) -> Tensor:
        """Return the least-squares second factor for a first one."""
        aim = self.moments.aim(first)
        gram = LatentMoments.latent_gram(first, met)
        size = aim.shape[1] * aim.shape[2]
        return solve_symmetric(gram.reshape(-1, size, size), aim.flatten(1, 2)).reshape(aim.shape)

    def _improve_first(self, first: Tensor, second: Tensor, met: Tensor) -> tuple[Tensor, Tensor]:
        """Return an improved first factor for a second one, and its moments with all latent values.

        The update is one exact line search along the residual of the normal equations, preconditioned by their part
        within one offset: there, latent values are white on average.
        """
        products = _products(second)
        rest = torch.einsum("gajo,gpjo->gap", second, self.moments.cross) - _act(products, met)
        alike = products.diagonal(dim1=2, dim2=4).sum(-1)
        direction = solve_symmetric(alike, rest)
        change = self.moments.meet(direction)
        slope, curvature = (rest * direction).sum(), (_act(products, change) * direction).sum()
        length = torch.where(curvature > 0, slope / curvature, torch.zeros_like(slope))
        return first + length * direction, met + length * change


def _act(products: Tensor, met: Tensor) -> Tensor:
    """Return the left side of the first factor's normal equations, `[groups, rank, ranks]`."""
    return torch.einsum("gajbk,gbkpj->gap", products, met)


@dataclass(frozen=True)
class Fold:
    """A cross-validation fold.

    Attributes:
        problem: problem to solve, without a ridge.
        held_out: moments to measure on; those of ``problem`` itself if nothing is held out.
    """

    problem: AlternatingLeastSquares
    held_out: LatentMoments

    def errors(self, ridged: AlternatingLeastSquares, rank: int) -> tuple[float, float]:
        """Return the errors of refined factors on the examples that they are solved on, and on those held out.

        Args:
            ridged: the problem with a ridge.
            rank: rank of one group.
        """
        rows = rows_to_combine(rank)
        factors, moments = ridged.leading(rows).solve(rank), self.problem.moments
        seen = moments.leading(rows).error(*factors)
        return seen, seen if self.held_out is moments else self.held_out.leading(rows).error(*factors)


def cross_validated_error(
    folds: Sequence[Fold], ridged: Sequence[AlternatingLeastSquares], rank: int, entries: int
) -> float:
    """Return the expected error at a rank per group: solved on one half of the examples, measured on the other.

    Args:
        folds: the folds.
        ridged: their problems with a ridge.
        rank: rank of one group.
        entries: number of entries of a patch.
    """
    count = folds[0].problem.moments.count + folds[0].held_out.count
    errors = [fold.errors(problem, rank) for fold, problem in zip(folds, ridged, strict=True)]
    return sum(at_all_rows(seen, unseen, count, entries) for seen, unseen in errors) / len(folds)


def chosen_ridge(folds: Sequence[Fold], rank: int, entries: int) -> float:
    """Return the ridge on the patch covariance, as a share of its mean variance, with the least held-out error.

    Args:
        folds: the folds, each with one half of the examples held out.
        rank: rank of one group to compare the errors at.
        entries: number of entries of a patch.
    """
    leading = [Fold(fold.problem.leading(rank), fold.held_out.leading(rank)) for fold in folds]

    def error(ridge: float) -> float:
        # All examples are twice a half, and the ridge is inversely proportional to their number.
        ridged = [fold.problem.ridged(2 * ridge) for fold in leading]
        return cross_validated_error(leading, ridged, rank, entries)

    # The error has one minimum: from the middle, only the direction that improves is followed.
    ridges = (LEAST_RIDGE, *RIDGES)
    at = len(ridges) // 2
    best, following = error(ridges[at]), error(ridges[at + 1])
    step, candidate = (1, following) if following < best else (-1, error(ridges[at - 1]))
    while candidate < best:
        at, best = at + step, candidate
        if not 0 <= at + step < len(ridges):
            break
        candidate = error(ridges[at + step])
    return ridges[at]


def first_factors(weight: Tensor, mean_covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the first factors of all ranks up to one, and their errors, both for uncorrelated pieces.

    The first r rows form the factor of rank r. With M the layer's weight, one row per output and offset, and C the mean
    covariance of a piece, they are the right singular vectors of M C^(1/2), multiplied by C^(-1/2).

    Args:
        weight: weight of the layer, `[groups, out / groups, offsets, piece]`.
        mean_covariance: covariance of a piece, averaged over the offsets, `[groups, piece, piece]`.
        rank: number of rows.

    Returns:
        The rows, `[groups, rank, piece]`, and the variance share that each rank from 0 loses, `[piece + 1]`.
    """
    root = _root_of(mean_covariance)
    seen = weight.flatten(1, 2).to(root) @ root
    values, vectors = torch.linalg.eigh(seen.mT @ seen)
    rows: Tensor = torch.linalg.solve_triangular(root, vectors[..., -rank:].flip(-1).mT, upper=False, left=False)
    missed = values.clamp_min(0).double().sum(0).cumsum(0)
    missed = torch.cat([missed.new_zeros(1), missed]).flip(0)
    return rows, missed / missed[0].clamp_min(1e-300)


def _root_of(matrix: Tensor) -> Tensor:
    """Return the Cholesky factor of symmetric matrices, `[groups, size, size]`, in float64 unless they are large."""
    rounding = torch.finfo(matrix.dtype).eps
    return _root(matrix.double() if matrix.shape[-1] <= LARGEST_IN_FLOAT64 else matrix, rounding, 100 * rounding)


def _root(matrix: Tensor, rounding: float, level: float = 0.0) -> Tensor:
    """Return the Cholesky factor of symmetric matrices, `[groups, size, size]`, with a ridge if needed."""
    symmetric = (matrix + matrix.mT) / 2
    scale = symmetric.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    # The ridge (`level`, a share of the mean diagonal) grows until pivots exceed the relative `rounding` of entries:
    # with nearly all variance in few directions, their rounding error drowns the others.
    while True:
        mixed = symmetric.clone()
        mixed.diagonal(dim1=1, dim2=2).add_(level * scale[:, None])
        root: Tensor
        root, failed = torch.linalg.cholesky_ex(mixed)
        smallest = root.diagonal(dim1=1, dim2=2).square().amin(1)
        if level > 1 or not bool(failed.any() or (smallest < 10 * rounding * scale).any()):
            return root
        level = max(10 * level, 100 * rounding)


def solve_symmetric(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve a linear system with symmetric matrices, `[groups, size, size]`, in float64 unless they are large."""
    root = _root_of(matrix)
    return torch.cholesky_solve(right.to(root), root).to(right)

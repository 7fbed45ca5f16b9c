"""Vertical, horizontal and pointwise decompositions, which split a kernel along its axes, from patch moments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ranksearch.errors import DataError
from ranksearch.factorize.als import (
    FEWEST_ROWS_TO_COMBINE,
    LEAST_RIDGE,
    AlternatingLeastSquares,
    Fold,
    LatentMoments,
    chosen_ridge,
    cross_validated_error,
    first_factors,
    rows_to_combine,
)
from ranksearch.factorize.base import Factors, grouped_weight, square_roots
from ranksearch.factorize.patch_moments import in_float64
from ranksearch.factorize.statistics import Layer, LayerStatistics, SecondMoments, WhiteMoments
from ranksearch.plan import FIRST_AXES, LayerSpec, split_kernel

# Larger ridges are tried if there are fewer patches than this per patch element.
PATCHES_FOR_EACH_NUMBER = 4
# Share of the largest rank that the ridge is chosen at.
SHARE_TO_CHOOSE_RIDGE = 0.2
# Above this many ranks, only those at some shares of the break-even rank are refined, the others interpolated.
FEW_RANKS = 24
SHARES_TO_REFINE = (0.04, 0.1, 0.2, 0.4, 0.75)
SHARES_OF_LARGE = (0.06, 0.15, 0.33)
# Floor on errors before their logarithm is taken; smaller ones are rounding.
LEAST_ERROR = 1e-12
# Larger patches are cross-validated with a single fold.
LARGEST_TO_SOLVE_TWICE = 512
# The errors of larger patches are computed up to a share of the break-even rank, and extrapolated beyond: the highest
# ranks take most of the time, and a plan that saves much has none of them.
LARGEST_TO_SOLVE_WHOLE = 1152
SHARE_TO_SOLVE = 0.5
# What extrapolation misses: from there to the largest rank, held-out errors grow over those that the eigenvalues of the
# seen half imply by exp(this * entries / patches); measured for 1 to 8 patches per entry.
EXCESS = 0.6
LARGEST_EXCESS = 1.0


def pieces(layer: nn.Conv2d, scheme: str) -> Tensor:
    """Return the pieces of a patch: entry `[offset, element of the piece]` is an index into the flattened kernel."""
    channels, (height, width) = layer.in_channels // layer.groups, layer.kernel_size
    order = torch.arange(channels * height * width).reshape(channels, height, width)
    # A piece spans the channels and the first factor's axes; the offsets run over the second factor's axes.
    first_axes = [axis + 1 for axis, first in enumerate(FIRST_AXES[scheme]) if first]
    offsets = [axis for axis in (1, 2) if axis not in first_axes]
    return order.permute(*offsets, 0, *first_axes).flatten(0, len(offsets) - 1).flatten(1)


@dataclass(frozen=True)
class PatchFold(Fold):
    """A cross-validation fold in the space of first factors.

    Attributes:
        rows: first factors of all ranks, `[groups, ranks, piece]`.
        missed: errors of all ranks for uncorrelated pieces, see `first_factors`.
    """

    rows: Tensor
    missed: Tensor


@dataclass(frozen=True)
class PatchProblem:
    """A convolution with the moments of its patches, shared by all its schemes.

    Attributes:
        weight: the layer's weight, its outputs scaled by the sensitivity's root, `[groups, out / groups, fan_in]`.
        inverse: inverse of that root, `[groups, out / groups, out / groups]`; None if outputs are not scaled.
        mean: mean patch, `[groups, fan_in]`.
        halves: moments of the patches of each half of the examples that has any.
        limits: scheme -> the largest rank of a group to estimate errors for, of all schemes that split the kernel.
        orders: scheme -> indices of the pieces, see `pieces`.
        given_ridge: ridge on the patch covariance, as a share of its mean variance; None selects it by hold-out error.
        all_ranks: compute the errors of large patches at all ranks and on both halves, too.
    """

    weight: Tensor
    inverse: Tensor | None
    mean: Tensor
    halves: tuple[SecondMoments, ...]
    limits: dict[str, int]
    orders: dict[str, Tensor]
    given_ridge: float | None = None
    all_ranks: bool = False

    @cached_property
    def whole(self) -> SecondMoments:
        """Moments of all patches."""
        return self.halves[0] if len(self.halves) == 1 else self.halves[0] + self.halves[1]

    @cached_property
    def _cross(self) -> dict[int, Tensor]:
        """Covariances of patches with outputs that were computed, `[groups, fan_in, out / groups]`, by moments."""
        return {}

    @cached_property
    def _folds(self) -> dict[str, list[PatchFold]]:
        """The folds that were computed last, by scheme."""
        return {}

    @cached_property
    def _solvers(self) -> dict[str, tuple[Tensor, AlternatingLeastSquares]]:
        """The first factors that were computed, and the problem of all patches in their space, by scheme."""
        return {}

    def forget(self) -> None:
        """Free what only the error curves need; it is computed again if asked for."""
        self._folds.clear()
        self._cross.clear()
        for half in self.halves:
            half.forget()

    @cached_property
    def ridge(self) -> float:
        """Ridge on the patch covariance, as a share of its mean variance; cross-validated if patches are scarce."""
        if self.given_ridge is not None:
            return self.given_ridge
        if not 0 < sum(half.count for half in self.halves) < PATCHES_FOR_EACH_NUMBER * self.weight.shape[2]:
            return LEAST_RIDGE
        # The same ridge for all schemes, chosen by the one whose first factors take the least time.
        scheme = min(self.limits, key=lambda name: self.orders[name].shape[1])
        rank = max(1, round(SHARE_TO_CHOOSE_RIDGE * self.limits[scheme]))
        folds = self._folds.get(scheme) or self._split(scheme, rank)
        return chosen_ridge(folds, rank, self.weight.shape[2])

    def cross(self, moments: SecondMoments) -> Tensor:
        """Return the covariance of patches with outputs, `[groups, fan_in, out / groups]`, for a half or the whole."""
        known = self._cross
        if id(moments) not in known and len(known) == 2 and all(id(half) in known for half in self.halves):
            one, other = self.halves
            count, shift = one.count + other.count, other.mean - one.mean
            missing = torch.lerp(known[id(one)], known[id(other)], other.count / count)
            output = shift[:, None].to(missing) @ self.weight.mT.to(missing)
            missing.baddbmm_(shift[..., None].to(missing), output, alpha=one.count * other.count / count**2)
            known[id(moments)] = missing
        if id(moments) not in known:
            known[id(moments)] = moments.with_outputs(self.weight)
        return known[id(moments)]

    def solved_rank(self, scheme: str) -> int:
        """Return the highest rank per group whose error is computed, not extrapolated."""
        whole = self.all_ranks or self.weight.shape[2] <= LARGEST_TO_SOLVE_WHOLE
        return self.limits[scheme] if whole else max(1, round(SHARE_TO_SOLVE * self.limits[scheme]))

    def most_rows(self, scheme: str, limit: int) -> int:
        """Return how many first factors are used at most: those of all ranks up to a limit, more of small layers."""
        return min(self.orders[scheme].shape[1], max(limit, FEWEST_ROWS_TO_COMBINE))

    def folds(self, scheme: str) -> list[PatchFold]:
        """Return the folds, each with one half of the examples held out; a single fold for large patches."""
        if scheme not in self._folds:
            folds = self._split(scheme, self.most_rows(scheme, self.solved_rank(scheme)))
            self._folds.clear()  # those of a single scheme are large enough
            self._folds[scheme] = folds
            first = folds[0]
            if first.held_out is not first.problem.moments:
                whole = replace(first.problem, moments=first.problem.moments + first.held_out)
                self._solvers[scheme] = first.rows, whole
        return self._folds[scheme]

    def _split(self, scheme: str, ranks: int) -> list[PatchFold]:
        """Return the folds in the space of a number of first factors."""
        pairs = list(zip(self.halves, self.halves[::-1], strict=True))
        if self.weight.shape[2] > LARGEST_TO_SOLVE_TWICE and not self.all_ranks:
            pairs = pairs[:1]
        folds = []
        for half, other in pairs:
            rows, missed, problem = self.latent(half, scheme, ranks)
            held_out = problem.moments if other is half else self.project(other, scheme, rows)
            folds.append(PatchFold(problem, held_out, rows, missed))
        return folds

    def solver(self, scheme: str, rank: int, rough: bool) -> tuple[Tensor, AlternatingLeastSquares]:
        """Return enough first factors to combine those of a rank from, and the problem of all patches in their space.

        Args:
            scheme: how patches are cut into pieces.
            rank: rank of a group.
            rough: accept the first factors that the folds left, which are those of half of the examples.
        """
        if rough and scheme in self._solvers and self._solvers[scheme][0].shape[1] >= rank:
            return self._solvers[scheme]
        ranks = max(rank, min(self.most_rows(scheme, self.limits[scheme]), rows_to_combine(rank)))
        rows, _, problem = self.latent(self.whole, scheme, min(self.orders[scheme].shape[1], ranks))
        return rows, problem

    def latent(self, moments: SecondMoments, scheme: str, ranks: int) -> tuple[Tensor, Tensor, AlternatingLeastSquares]:
        """Return the first factors of all ranks up to one, their errors, and the problem in their space.

        Args:
            moments: moments of patches.
            scheme: how patches are cut into pieces.
            ranks: number of first factors.

        Returns:
            Both results of `first_factors`, and the least-squares problem.
        """
        order = self.orders[scheme]
        weight = self.weight[:, :, order]
        covariance = sum((moments.between(piece, piece) for piece in order[1:]), moments.between(order[0], order[0]))
        covariance = covariance / len(order)
        level = covariance.diagonal(dim1=1, dim2=2).mean(1)
        ridge = torch.where(level > 0, LEAST_RIDGE * level, torch.ones_like(level))
        ridged = covariance.clone()
        ridged.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        rows, missed = first_factors(weight, ridged, ranks)
        rows = rows.to(covariance)
        white_cross = torch.einsum("grp,gokp->grko", rows, weight.to(rows))
        white_variance = weight.square().sum((1, 2, 3)).to(rows)
        projected = self.project(moments, scheme, rows)
        problem = AlternatingLeastSquares(projected, rows @ rows.mT, white_cross, white_variance, level)
        return rows, missed, problem

    def project(self, moments: SecondMoments, scheme: str, rows: Tensor) -> LatentMoments:
        """Return the moments of latent values, without a covariance of whole patches.

        Args:
            moments: moments of patches.
            scheme: how patches are cut into pieces.
            rows: first factor, `[groups, ranks, piece]`.
        """
        order, (groups, ranks) = self.orders[scheme], rows.shape[:2]
        offsets = len(order)
        gram = rows.new_empty(groups, ranks, offsets, ranks, offsets)
        for one in range(offsets):
            for other in range(one, offsets):
                block = rows @ moments.between(order[one], order[other]).to(rows) @ rows.mT
                gram[:, :, one, :, other] = block
                gram[:, :, other, :, one] = block.mT
        cross = self.cross(moments).to(rows)
        aim = torch.stack([rows @ cross[:, piece] for piece in order], 2)
        weight, mean = self.weight.to(rows), moments.mean.to(rows)
        variance, output = (cross * weight.mT).sum(), (weight @ mean[..., None])[..., 0]
        return LatentMoments(gram, aim, variance, rows @ mean[:, order].mT, output, moments.count)


@dataclass(frozen=True)
class SeparableDecomposition:
    """A convolution with the statistics of its patches, to be decomposed by one scheme at any rank.

    Attributes:
        scheme: vertical, horizontal or pointwise.
        problem: the layer and its patches, shared with its other schemes.
    """

    scheme: str
    problem: PatchProblem

    @property
    def limit(self) -> int:
        """The largest rank to estimate errors for, of all groups."""
        return len(self.problem.weight) * self.problem.limits[self.scheme]

    @property
    def ridge(self) -> float:
        """Ridge on the patch covariance; see `PatchProblem.ridge`."""
        return self.problem.ridge

    def expected_errors(self) -> list[float]:
        """Return the expected error of each rank up to `limit`; see `Decomposition`.

        One Cholesky factor gives the error of every rank before refinement. If there are many ranks, the ratio of the
        error after refinement is measured at a few, and interpolated: its logarithm is smooth in that of the rank.
        """
        problem, groups = self.problem, len(self.problem.weight)
        max_rank, solved_rank = problem.limits[self.scheme], problem.solved_rank(self.scheme)
        folds = problem.folds(self.scheme)  # before the ridge, which is chosen on them
        ridge = 2 * problem.ridge
        problems = [fold.problem.ridged(ridge) for fold in folds]
        nested = torch.zeros(max_rank + 1, dtype=torch.float64)
        for fold, ridged in zip(folds, problems, strict=True):
            errors = ridged.leading(solved_rank).nested_errors(fold.held_out.leading(solved_rank))
            missed = fold.missed[solved_rank : max_rank + 1].cpu() / fold.missed[solved_rank].cpu().clamp_min(1e-300)
            nested += torch.cat([errors, errors[-1] * missed[1:]]) / len(folds)
        log_nested, ranks = nested.clamp_min(LEAST_ERROR).log(), torch.arange(max_rank + 1)
        nodes = ranks[1:].tolist()
        if max_rank > FEW_RANKS:
            shares = SHARES_TO_REFINE if solved_rank == max_rank else SHARES_OF_LARGE
            nodes = sorted({max(1, round(max_rank * share)) for share in shares})
        more_rows = problem.most_rows(self.scheme, max_rank) > max_rank
        if more_rows and solved_rank == max_rank and nodes[-1] < max_rank:
            nodes.append(max_rank)
        refined = [cross_validated_error(folds, problems, rank, problem.weight.shape[2]) for rank in nodes]
        ratios = torch.tensor(refined, dtype=torch.float64).clamp_min(LEAST_ERROR).log() - log_nested[nodes]
        at = torch.tensor(nodes).double()
        if max_rank > FEW_RANKS and solved_rank == max_rank and not more_rows:
            # Refinement still gains just below the largest rank, but there it has no other rows to combine.
            near = torch.full((1,), 0.9 * max_rank, dtype=torch.float64)
            ratios = torch.cat([ratios, _interpolated(near.log(), at.log(), ratios), torch.zeros(1)])
            at = torch.cat([at, near, ranks[-1:].double()])
        log_errors = log_nested + _interpolated(ranks.double().clamp_min(0.5).log(), at.log(), ratios)
        if solved_rank < max_rank:
            patches = sum(half.count for half in problem.halves)
            excess = min(LARGEST_EXCESS, EXCESS * problem.weight.shape[2] / max(patches, 1))
            log_errors[solved_rank:] += torch.linspace(0, excess, max_rank - solved_rank + 1, dtype=torch.float64)
        log_errors[0] = 0.0
        by_rank = log_errors.exp().clamp(0, 1).cummin(0).values
        return [float(by_rank[rank // groups]) for rank in range(groups * max_rank + 1)]

    def forget(self) -> None:
        """See `Decomposition`."""
        self.problem.forget()

    def factors(self, layer: Layer, rank: int, *, rough: bool = False) -> Factors:
        """Return the factors of a rank; see `Decomposition`."""
        problem = self.problem
        groups, kept = len(problem.weight), rank // len(problem.weight)
        order = problem.orders[self.scheme]
        ridge = problem.ridge  # first, as the halves that it is chosen on make up the whole
        rows, latent = problem.solver(self.scheme, kept, rough)
        combination, fitted = latent.ridged(ridge).solve(kept)
        first, second = combination.double() @ rows.double(), fitted.double().permute(0, 3, 2, 1)
        if problem.inverse is not None:
            second = (problem.inverse @ second.flatten(2)).reshape(second.shape)
        mean = problem.mean
        seen = torch.einsum("gokr,grf,gkf->go", second, first, mean[:, order])
        lost = (torch.einsum("goi,gi->go", grouped_weight(layer, groups), mean) - seen).flatten()
        bias = lost if layer.bias is None else lost + in_float64(layer.bias.detach())
        like = layer.weight.detach()
        first_kernel, second_kernel = split_kernel((int(like.shape[2]), int(like.shape[3])), self.scheme)
        down = first.reshape(groups * kept, -1, *first_kernel)
        up = second.transpose(2, 3).reshape(len(like), kept, *second_kernel)
        return Factors(down.to(like), up.to(like), bias.to(like))


def _interpolated(points: Tensor, nodes: Tensor, values: Tensor) -> Tensor:
    """Interpolate values linearly between ascending nodes, and beyond the last; constant before the first."""
    if len(nodes) == 1:
        return values.expand(len(points))
    right = torch.searchsorted(nodes, points).clamp(1, len(nodes) - 1)
    share = (points - nodes[right - 1]) / (nodes[right] - nodes[right - 1])
    return torch.lerp(values[right - 1], values[right], share.clamp_min(0))


def decompose_separable(
    layer: Layer,
    spec: LayerSpec,
    scheme: str,
    statistics: LayerStatistics | None,
    sensitivity: Tensor | None,
    *,
    all_ranks: bool = False,
) -> SeparableDecomposition:
    """Set up the decomposition of a layer by a scheme; errors and factors are computed on request.

    Raises:
        PlanError: the layer cannot have the scheme.
        DataError: the statistics are not of patches, are empty or not finite, or weights or sensitivity are invalid.
    """
    spec.require_scheme(scheme)
    assert isinstance(layer, nn.Conv2d)
    weight, inverse = grouped_weight(layer, layer.groups), None
    if sensitivity is not None:
        root, inverse = square_roots(sensitivity, weight)
        weight = root @ weight
    if not bool(torch.isfinite(weight).all()):
        raise DataError("layer weights are not finite: check them")
    groups, _, fan_in = weight.shape
    halves: tuple[SecondMoments, ...] = (WhiteMoments(groups, fan_in, weight.device),)
    if statistics is not None:
        if sum(half.count for half in statistics.halves) == 0:
            raise DataError("calibration saw no rows of the layer: give batches that are not empty")
        if statistics.side != "input":
            raise DataError(
                f"statistics of the layer's {statistics.side}s do not serve scheme '{scheme}': "
                f"collect them with schemes=['{scheme}']"
            )
        halves = tuple(half for half in statistics.halves if half.count)
        if not all(half.finite for half in halves):
            raise DataError("layer inputs are not finite: check the calibration images")
    splits = [other for other in spec.schemes if other != "full"]
    if scheme not in splits:
        splits.append(scheme)  # a rank beyond break-even is asked for
    limits = {name: max(spec.break_even_rank(name) // groups, 1) for name in splits}
    orders = {name: pieces(layer, name) for name in splits}
    limits = {name: min(limit, orders[name].shape[1]) for name, limit in limits.items()}
    mean = sum(half.count * half.mean for half in halves) / max(sum(half.count for half in halves), 1)
    assert isinstance(mean, Tensor)
    problem = PatchProblem(weight, inverse, mean, halves, limits, orders, all_ranks=all_ranks)
    return SeparableDecomposition(scheme, problem)

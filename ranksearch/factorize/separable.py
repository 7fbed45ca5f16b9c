"""Vertical, horizontal and pointwise decompositions, which split a kernel along its axes, from patch moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ranksearch.errors import DataError
from ranksearch.factorize.als import AlternatingLeastSquares
from ranksearch.factorize.base import Factors, at_all_rows, grouped_weight, square_roots
from ranksearch.factorize.statistics import Layer, LayerStatistics, SecondMoments
from ranksearch.plan import FIRST_AXES, LayerSpec, split_kernel

# Ridge that is always added to the patch covariance: well above the rounding of float32 sums, too small to matter.
LEAST_RIDGE = 1e-5
# Larger ridges are tried if there are fewer patches than this per patch element.
PATCHES_FOR_EACH_NUMBER = 4
RIDGES = (1e-3, 0.01, 0.1)
# Above this many ranks, only those at SHARES_TO_SOLVE of the break-even rank are solved, the others interpolated.
FEW_RANKS = 16
# Floor on errors before their logarithm is taken; smaller ones are rounding.
LEAST_ERROR = 1e-12
SHARES_TO_SOLVE = (0.03, 0.1, 0.25, 0.55, 1.0)
# Larger patches are cross-validated with a single fold.
LARGEST_TO_SOLVE_TWICE = 1024


def pieces(layer: nn.Conv2d, scheme: str) -> Tensor:
    """Return the pieces of a patch: entry `[offset, element of the piece]` is an index into the flattened kernel."""
    channels, (height, width) = layer.in_channels // layer.groups, layer.kernel_size
    order = torch.arange(channels * height * width).reshape(channels, height, width)
    # A piece spans the channels and the first factor's axes; the offsets run over the second factor's axes.
    first_axes = [axis + 1 for axis, first in enumerate(FIRST_AXES[scheme]) if first]
    offsets = [axis for axis in (1, 2) if axis not in first_axes]
    return order.permute(*offsets, 0, *first_axes).flatten(0, len(offsets) - 1).flatten(1)


@dataclass(frozen=True)
class SeparableDecomposition:
    """A convolution with the statistics of its patches, to be decomposed by one scheme at any rank.

    Attributes:
        scheme: vertical, horizontal or pointwise.
        weight: the layer's weight, its outputs scaled by the sensitivity's root, `[groups, out / groups, fan_in]`.
        inverse: inverse of that root, `[groups, out / groups, out / groups]`; None if outputs are not scaled.
        statistics: statistics of the layer's patches; None assumes white patches.
        order: indices of the pieces, see `pieces`.
        limit: the largest rank to estimate errors for.
        given_ridge: ridge on the patch covariance, as a share of its mean variance; None selects it by hold-out error.
        sibling: decomposition by the layer's first split scheme, with the same patches and ridge; None for that one.
    """

    scheme: str
    weight: Tensor
    inverse: Tensor | None
    statistics: LayerStatistics | None
    order: Tensor
    limit: int
    given_ridge: float | None = None
    sibling: SeparableDecomposition | None = None

    @cached_property
    def ridge(self) -> float:
        """Ridge on the patch covariance, as a share of its mean variance; cross-validated if patches are scarce."""
        if self.given_ridge is not None:
            return self.given_ridge
        if self.sibling is not None:
            return self.sibling.ridge
        count = sum(half.count for half in self.statistics.halves) if self.statistics else 0
        if not 0 < count < PATCHES_FOR_EACH_NUMBER * self.weight.shape[2]:
            return LEAST_RIDGE
        folds, middle = self._folds(), [max(1, self.limit // len(self.weight) // 3)]
        errors = {ridge: _cross_validated(folds, middle, 2 * ridge)[0] for ridge in (LEAST_RIDGE, *RIDGES)}
        return min(errors, key=errors.__getitem__)

    def expected_errors(self) -> list[float]:
        """Return the expected error of each rank up to `limit`; see `Decomposition`.

        If there are many ranks, only some are solved. The initial factors predict an error for every rank; the
        logarithm of the ratio of solved to predicted error is interpolated between the solved ranks.
        """
        groups = len(self.weight)
        max_rank = max(self.limit // groups, 1)
        ranks = torch.arange(max_rank + 1)
        tried = ranks[1:].tolist()
        if max_rank > FEW_RANKS:
            tried = sorted({max(1, round(max_rank * share)) for share in SHARES_TO_SOLVE})
        folds = self._folds()
        solved = torch.tensor([1.0, *_cross_validated(folds, tried, 2 * self.ridge)], dtype=torch.float64)
        expected = torch.stack([fold.missed[: max_rank + 1] for fold in folds]).mean(0).clamp_min(LEAST_ERROR).log()
        at = torch.tensor([0, *tried])
        ratios = _interpolated(ranks, at, solved.clamp_min(LEAST_ERROR).log() - expected[at])
        errors = (ratios + expected).exp().cummin(0).values
        return [float(errors[rank // groups]) for rank in range(groups * max_rank + 1)]

    def factors(self, layer: Layer, rank: int) -> Factors:
        """Return the factors of a rank; see `Decomposition`."""
        groups, kept = len(self.weight), rank // len(self.weight)
        first, second = (part.double() for part in self._whole().solve(self._starts[:, :kept]))
        if self.inverse is not None:
            second = (self.inverse @ second.flatten(2)).reshape(second.shape)
        lost = torch.zeros(len(layer.weight), dtype=torch.float64)
        if self.statistics is not None:
            mean = self.statistics.mean
            seen = torch.einsum("gokr,grf,gkf->go", second, first, mean[:, self.order])
            lost = (torch.einsum("goi,gi->go", grouped_weight(layer, groups), mean) - seen).flatten()
        bias = lost if layer.bias is None else lost + layer.bias.detach().cpu().double()
        like = layer.weight.detach()
        first_kernel, second_kernel = split_kernel((int(like.shape[2]), int(like.shape[3])), self.scheme)
        down = first.reshape(groups * kept, -1, *first_kernel)
        up = second.transpose(2, 3).reshape(len(like), kept, *second_kernel)
        return Factors(down.to(like), up.to(like), bias.to(like))

    def _whole(self) -> AlternatingLeastSquares:
        """Return the ridge-regularized problem over all patches."""
        return self.problem(None if self.statistics is None else self.statistics.all).ridged(self.ridge)

    @cached_property
    def _starts(self) -> Tensor:
        """Initial first factors of all ranks; cached because their eigendecomposition is the slowest step."""
        return self._whole().first_factors()[0]

    def _folds(self) -> list[_Fold]:
        """Return the folds, each with one half of the examples held out; a single fold for large patches."""
        halves = [] if self.statistics is None else [half for half in self.statistics.halves if half.count]
        problems = [self.problem(half) for half in halves] or [self.problem(None)]
        folds = list(zip(problems, problems[::-1], strict=True))
        once = problems[0].covariance.shape[1] > LARGEST_TO_SOLVE_TWICE
        return [_Fold(*fold, *fold[0].ridged(LEAST_RIDGE).first_factors()) for fold in folds[: 1 if once else None]]

    def problem(self, moments: SecondMoments | None) -> AlternatingLeastSquares:
        """Return the least-squares problem for patches of the given moments; None assumes white patches."""
        if moments is None:
            white = torch.eye(self.weight.shape[2], dtype=torch.float64).expand(len(self.weight), -1, -1)
            return AlternatingLeastSquares.from_patches(self.weight, white, self.order)
        return AlternatingLeastSquares.from_patches(self.weight, moments.covariance, self.order)


@dataclass(frozen=True)
class _Fold:
    """A cross-validation fold.

    Attributes:
        problem: problem to solve.
        other: held-out problem to measure on; ``problem`` itself if there is only one.
        starts: first factors from `AlternatingLeastSquares.first_factors` at the smallest ridge, which hardly matters.
        missed: predicted error of each rank, from the same.
    """

    problem: AlternatingLeastSquares
    other: AlternatingLeastSquares
    starts: Tensor
    missed: Tensor


def _cross_validated(folds: Sequence[_Fold], ranks: Sequence[int], ridge: float) -> list[float]:
    """Return the expected error at each rank per group: solved on one half of the examples, measured on the other."""
    errors = [0.0] * len(ranks)
    for fold in folds:
        ridged = fold.problem.ridged(ridge)
        for index, rank in enumerate(ranks):
            factors = ridged.solve(fold.starts[:, :rank])
            seen = fold.problem.truncation_error(*factors)
            unseen = seen if fold.other is fold.problem else fold.other.truncation_error(*factors)
            errors[index] += at_all_rows(seen, unseen) / len(folds)
    return errors


def _interpolated(points: Tensor, nodes: Tensor, values: Tensor) -> Tensor:
    """Interpolate values linearly between two or more ascending nodes, at points within their range."""
    right = torch.searchsorted(nodes, points).clamp(1, len(nodes) - 1)
    share = (points - nodes[right - 1]) / (nodes[right] - nodes[right - 1])
    return torch.lerp(values[right - 1], values[right], share.to(values))


def decompose_separable(
    layer: Layer, spec: LayerSpec, scheme: str, statistics: LayerStatistics | None, sensitivity: Tensor | None
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
    if statistics is not None:
        if sum(half.count for half in statistics.halves) == 0:
            raise DataError("calibration saw no rows of the layer: give batches that are not empty")
        if statistics.side != "input":
            raise DataError(
                f"statistics of the layer's {statistics.side}s do not serve scheme '{scheme}': "
                f"collect them with schemes=['{scheme}']"
            )
        if not all(half.finite for half in statistics.halves):
            raise DataError("layer inputs are not finite: check the calibration images")
    first = next((other for other in spec.schemes if other != "full"), scheme)
    sibling, decomposition = (
        SeparableDecomposition(name, weight, inverse, statistics, pieces(layer, name), spec.break_even_rank(name))
        for name in (first, scheme)
    )
    return sibling if scheme == first else replace(decomposition, sibling=sibling)

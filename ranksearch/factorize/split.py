"""The schemes that split a kernel along its axes: vertical, horizontal and pointwise, from the moments of patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ranksearch.errors import DataError
from ranksearch.factorize.alternating import SplitProblem
from ranksearch.factorize.factors import Factors, at_all_rows, grouped_weight, square_roots
from ranksearch.factorize.patches import PatchMoments
from ranksearch.factorize.shapes import describe
from ranksearch.factorize.statistics import Layer, LayerStatistics, Moments
from ranksearch.plan import FIRST_AXES, split_kernel

# White patches that are always mixed in: well above the rounding of sums in float32, well below what matters.
LEAST_RIDGE = 1e-5
# More is tried where there are fewer patches than this for each of their numbers.
PATCHES_FOR_EACH_NUMBER = 4
RIDGES = (1e-3, 0.01, 0.1)
# Ranks that are solved to learn the errors of all, where those are not few: shares of the break-even rank.
FEW_RANKS = 16
# Less than this is rounding; logarithms of errors are taken.
LEAST_ERROR = 1e-12
SHARES_TO_SOLVE = (0.03, 0.1, 0.25, 0.55, 1.0)
# Patches of more numbers are solved on one half of the examples only.
LARGEST_TO_SOLVE_TWICE = 1024


def pieces(layer: nn.Conv2d, scheme: str) -> Tensor:
    """Where a patch's numbers go: entry `[offset, number of the piece]` is an index into a kernel's numbers."""
    channels, (height, width) = layer.in_channels // layer.groups, layer.kernel_size
    order = torch.arange(channels * height * width).reshape(channels, height, width)
    # The first factor's axes go with the channels into a piece, the second's number the offsets.
    mine = [axis + 1 for axis, first in enumerate(FIRST_AXES[scheme]) if first]
    offsets = [axis for axis in (1, 2) if axis not in mine]
    return order.permute(*offsets, 0, *mine).flatten(0, len(offsets) - 1).flatten(1)


@dataclass(frozen=True)
class SplitDecomposition:
    """A convolution and the patches it meets, ready to be split by one scheme at any rank.

    Attributes:
        scheme: vertical, horizontal or pointwise.
        weight: the layer's, as errors weigh its outputs, `[groups, out / groups, fan_in]`.
        inverse: takes that weighing back, `[groups, out / groups, out / groups]`; None where there is none.
        statistics: of its patches; None takes them as white.
        order: see `pieces`.
        limit: the largest rank that errors are expected for.
        given_ridge: of white patches that are mixed in, as a share of the mean variance; None chooses it.
        sibling: the same layer by the first of its split schemes, whose ridge serves here too, for it meets the same
            patches; None for that scheme itself.
    """

    scheme: str
    weight: Tensor
    inverse: Tensor | None
    statistics: LayerStatistics | None
    order: Tensor
    limit: int
    given_ridge: float | None = None
    sibling: SplitDecomposition | None = None

    @cached_property
    def ridge(self) -> float:
        """The white patches that are mixed in, as a share of the mean variance.

        Where patches are scarce, as many as make the error smallest that half of the examples give on the other half.
        """
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
        """See `Decomposition`; up to the break-even rank.

        Of many ranks only some are solved. What the starts are expected to miss is known of every rank, and between
        the solved ones the logarithm of the ratio of both errors is interpolated.
        """
        groups = len(self.weight)
        most = max(self.limit // groups, 1)
        ranks = torch.arange(most + 1)
        tried = ranks[1:].tolist()
        if most > FEW_RANKS:
            tried = sorted({max(1, round(most * share)) for share in SHARES_TO_SOLVE})
        folds = self._folds()
        solved = torch.tensor([1.0, *_cross_validated(folds, tried, 2 * self.ridge)], dtype=torch.float64)
        expected = torch.stack([fold.missed[: most + 1] for fold in folds]).mean(0).clamp_min(LEAST_ERROR).log()
        at = torch.tensor([0, *tried])
        ratios = _interpolated(ranks, at, solved.clamp_min(LEAST_ERROR).log() - expected[at])
        errors = (ratios + expected).exp().cummin(0).values
        return [float(errors[rank // groups]) for rank in range(groups * most + 1)]

    def factors(self, layer: Layer, rank: int) -> Factors:
        """See `Decomposition`."""
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
        ours, theirs = split_kernel((int(like.shape[2]), int(like.shape[3])), self.scheme)
        down = first.reshape(groups * kept, -1, *ours)
        up = second.transpose(2, 3).reshape(len(like), kept, *theirs)
        return Factors(down.to(like), up.to(like), bias.to(like))

    def _whole(self) -> SplitProblem:
        """The layer on all patches, white ones mixed in."""
        return self.problem(None if self.statistics is None else self.statistics.all).ridged(self.ridge)

    @cached_property
    def _starts(self) -> Tensor:
        """The first factors that all solves start from; kept, for their eigendecomposition takes the longest."""
        return self._whole().first_factors()[0]

    def _folds(self) -> list[_Fold]:
        """Each half of the examples to solve on, with the other to measure on; only one of large patches."""
        problems = self.problems()
        folds = list(zip(problems, problems[::-1], strict=True))
        once = problems[0].covariance.shape[1] > LARGEST_TO_SOLVE_TWICE
        return [_Fold(*fold, *fold[0].ridged(LEAST_RIDGE).first_factors()) for fold in folds[: 1 if once else None]]

    def problems(self) -> list[SplitProblem]:
        """The layer on either half of the examples, or on white patches."""
        halves = [] if self.statistics is None else [half for half in self.statistics.halves if half.count]
        return [self.problem(half) for half in halves] or [self.problem(None)]

    def problem(self, moments: Moments | PatchMoments | None) -> SplitProblem:
        """The layer on some patches."""
        if moments is None:
            white = torch.eye(self.weight.shape[2], dtype=torch.float64).expand(len(self.weight), -1, -1)
            return SplitProblem.of(self.weight, white, self.order)
        return SplitProblem.of(self.weight, moments.covariance, self.order)


@dataclass(frozen=True)
class _Fold:
    """Patches to solve on and patches to measure on.

    Attributes:
        problem: to solve.
        other: to measure on; the same one where there is no other.
        starts: see `SplitProblem.first_factors`; of the least ridge, for they hardly depend on it.
        missed: the same.
    """

    problem: SplitProblem
    other: SplitProblem
    starts: Tensor
    missed: Tensor


def _cross_validated(folds: Sequence[_Fold], ranks: Sequence[int], ridge: float) -> list[float]:
    """The expected error at some ranks of each group: solved on one half of the examples, measured on the other.

    Args:
        folds: one or both.
        ranks: of each group.
        ridge: see `SplitProblem.ridged`.
    """
    errors = [0.0] * len(ranks)
    for fold in folds:
        ridged = fold.problem.ridged(ridge)
        for index, rank in enumerate(ranks):
            factors = ridged.solve(fold.starts[:, :rank])
            seen = fold.problem.truncation_error(*factors)
            unseen = seen if fold.other is fold.problem else fold.other.truncation_error(*factors)
            errors[index] += at_all_rows(seen, unseen) / len(folds)
    return errors


def _interpolated(at: Tensor, known_at: Tensor, known: Tensor) -> Tensor:
    """Linear interpolation between two or more values, at rising places within the first and the last of theirs."""
    right = torch.searchsorted(known_at, at).clamp(1, len(known_at) - 1)
    share = (at - known_at[right - 1]) / (known_at[right] - known_at[right - 1])
    return torch.lerp(known[right - 1], known[right], share.to(known))


def decompose_by_split(
    layer: Layer, scheme: str, statistics: LayerStatistics | None, sensitivity: Tensor | None
) -> SplitDecomposition:
    """Make a layer ready to be split by a scheme; the work is done once errors or factors are asked for.

    Raises:
        PlanError: the layer cannot have the scheme.
        DataError: the statistics are not those of patches, hold none, or are not finite.
    """
    spec = describe(layer)
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
    sibling, found = (
        SplitDecomposition(name, weight, inverse, statistics, pieces(layer, name), spec.break_even_rank(name))
        for name in (first, scheme)
    )
    return sibling if scheme == first else replace(found, sibling=sibling)

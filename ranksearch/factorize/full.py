"""The full scheme: one eigendecomposition per layer, then every rank is a slice.

The best rank-r affine replacement of a layer, in mean squared error of its outputs, is the PCA of those outputs
(reduced-rank regression of the layer's own output on its input; Izenman, 1975).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ranksearch.errors import DataError
from ranksearch.factorize.factors import Factors, at_all_rows, grouped_weight, square_roots
from ranksearch.factorize.patches import PatchMoments
from ranksearch.factorize.statistics import Layer, LayerStatistics, Moments, groups_of

# Far above the rounding of an eigendecomposition in float64, far below what the data say.
TIE_BREAK = 1e-9
# Shrinkage is looked for where there are fewer rows than this for each direction.
ROWS_FOR_EACH_DIRECTION = 4
# Choosing a strength takes some fifteen decompositions, which is too slow for larger ones.
LARGEST_TO_SHRINK = 1024
SHRINKAGES = (1e-4, 1e-3, 0.01, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class FullDecomposition:
    """A layer's outputs in their principal directions, group by group, the most telling direction first.

    Attributes:
        encode: output -> coordinates, `[groups, directions, out / groups]`.
        decode: coordinates -> output, `[groups, out / groups, directions]`.
        energies: variance of each coordinate, `[groups, directions]`.
        shift: mean output without the layer's bias, `[groups, out / groups]`.
        halves: covariance of the coordinates on either half of the examples, `[groups, directions, directions]`;
            none where there were no halves, or too many directions to decompose once more.
        prior: the same of white inputs.
        shrinkage: how much of it the directions were found with.
    """

    encode: Tensor
    decode: Tensor
    energies: Tensor
    shift: Tensor
    halves: tuple[Tensor, ...]
    prior: Tensor
    shrinkage: float

    def truncation_errors(self) -> list[float]:
        """Share of the output's variance that each rank loses on the calibration data: entry r belongs to rank r.

        Where loss-aware weights were used, the variance is the weighted one. Ranks of a grouped layer that are no
        multiple of its groups have the error of the next lower one that is.
        """
        return self._by_rank(_lost(self.energies))

    def expected_errors(self) -> list[float]:
        """See `Decomposition`; of more than 1,024 directions, the truncation errors."""
        if not self.halves:
            return self.truncation_errors()
        errors = []
        for half, other in (self.halves, self.halves[::-1]):
            # The mixture fades as one over the number of rows, and a half has half of them.
            directions = _directions(half, self.prior, 2 * self.shrinkage)
            seen, unseen = (_lost(_energies(directions, covariance)) for covariance in (half, other))
            errors.append([at_all_rows(a, b) for a, b in zip(seen.tolist(), unseen.tolist(), strict=True)])
        return self._by_rank(torch.tensor(errors, dtype=torch.float64).mean(0))

    def _by_rank(self, lost: Tensor) -> list[float]:
        groups, directions = self.energies.shape
        return [float(lost[rank // groups]) for rank in range(groups * directions + 1)]

    def factors(self, layer: Layer, rank: int) -> Factors:
        """Cut the layer down to a rank, a multiple of its groups.

        Returns:
            The factors, in the dtype and on the device of the layer's weight.
        """
        groups, kept = len(self.energies), rank // len(self.energies)
        encode, decode = self.encode[:, :kept], self.decode[:, :, :kept]
        weight = grouped_weight(layer, groups)
        down = (encode @ weight).reshape(groups * kept, *layer.weight.shape[1:])
        lost = self.shift - torch.einsum("gor,grp,gp->go", decode, encode, self.shift)
        bias = lost.flatten() if layer.bias is None else lost.flatten() + layer.bias.detach().cpu().to(lost)
        like = layer.weight.detach()
        up = decode.reshape(len(like), kept, *[1] * (like.ndim - 2))
        return Factors(down.to(like), up.to(like), bias.to(like))


def decompose_fully(
    layer: Layer,
    statistics: LayerStatistics | None = None,
    sensitivity: Tensor | None = None,
    shrinkage: float | None = None,
) -> FullDecomposition:
    """Find a layer's principal output directions.

    Directions that the calibration data hardly show are ordered with the help of the weights: the covariance is
    mixed with that of the outputs to white inputs, ``covariance + shrinkage * scale * prior``, both of one trace.
    With plenty of rows the mixture is too thin to change any direction that the data show. With few, it has the
    strength whose directions, found on either half of the examples, miss least of the other half's variance and
    harm no rank. Energies stay those of the calibration data: a truncation error is the error measured there.

    Args:
        layer: the dense layer.
        statistics: of its calibration; None takes the inputs as white, which makes the best weights-only choice.
        sensitivity: second moment of the loss's gradient at the layer's outputs, `[groups, out / groups,
            out / groups]`, which errors are then weighted by.
        shrinkage: strength of the mixture; None chooses it.

    Raises:
        DataError: statistics, sensitivity or weights are not finite, hold no rows, or do not fit.
    """
    groups = groups_of(layer)
    weight = grouped_weight(layer, groups)
    root, inverse = (None, None) if sensitivity is None else square_roots(sensitivity, weight)
    weighted = weight if root is None else root @ weight
    # Coordinates are those of an orthonormal frame of the outputs; `frame` is None where they are the outputs.
    frame, mapped, shift = None, weighted, torch.zeros_like(weight[:, :, 0])
    halves: list[Moments] = []
    if statistics is None:
        covariance = weighted @ weighted.mT
    else:
        outer = root
        if statistics.side == "input":
            frame, mapped = torch.linalg.qr(weighted)
            outer = mapped
        halves = [_seen_through(outer, half) for half in statistics.halves if half.count]
        if not halves:
            raise DataError("calibration saw no rows of the layer: give batches that are not empty")
        covariance = sum(halves[1:], halves[0]).covariance
        shift = statistics.mean
        if statistics.side == "input":
            shift = torch.einsum("goi,gi->go", weight, shift)
        elif layer.bias is not None:
            shift = shift - layer.bias.detach().cpu().double().reshape(groups, -1)
    if not bool(torch.isfinite(covariance).all()):
        raise DataError("layer outputs or weights are not finite: check the calibration images and the weights")
    prior = mapped @ mapped.mT
    size = covariance.shape[-1]
    both = tuple(half.covariance for half in halves) if len(halves) == 2 and size <= LARGEST_TO_SHRINK else ()
    if shrinkage is None:
        scarce = bool(both) and sum(half.count for half in halves) < ROWS_FOR_EACH_DIRECTION * size
        shrinkage = _chosen_shrinkage(both, prior) if scarce else TIE_BREAK
    directions = _directions(covariance, prior, shrinkage)
    energies = _energies(directions, covariance)
    basis = directions if frame is None else frame @ directions
    encode = basis.mT if root is None else basis.mT @ root
    decode = basis if inverse is None else inverse @ basis
    return FullDecomposition(encode, decode, energies, shift, both, prior, shrinkage)


def _seen_through(outer: Tensor | None, moments: Moments | PatchMoments) -> Moments:
    """The moments of rows that a matrix maps, `[groups, directions, size]`."""
    mean, covariance = moments.mean, moments.covariance.double()
    if outer is not None:
        mean, covariance = (outer @ mean[..., None])[..., 0], outer @ covariance @ outer.mT
    return Moments(moments.count, mean, covariance * moments.count)


def _lost(energies: Tensor) -> Tensor:
    """Share of all energy that is not in the first r coordinates of each group, for r = 0, 1, ..."""
    by_rank = energies.sum(0)
    total = by_rank.sum()
    # Summed from the smallest, so that the error at full rank is 0 and never rises with the rank.
    lost = torch.cat([by_rank.flip(0).cumsum(0).flip(0), by_rank.new_zeros(1)])
    return lost / total if total > 0 else torch.zeros_like(lost)


def _directions(covariance: Tensor, prior: Tensor, shrinkage: float) -> Tensor:
    """Eigenvectors of the mixture as columns, the largest first, `[groups, size, size]`."""
    variance = covariance.diagonal(dim1=-2, dim2=-1).sum((-1), keepdim=True)[..., None]
    prior_variance = prior.diagonal(dim1=-2, dim2=-1).sum((-1), keepdim=True)[..., None]
    known = (variance > 0) & (prior_variance > 0)
    scale = torch.where(known, variance / prior_variance.clamp_min(1e-300), torch.ones_like(variance))
    mixed = covariance + shrinkage * scale * prior
    vectors: Tensor = torch.linalg.eigh((mixed + mixed.mT) / 2).eigenvectors
    return vectors.flip(-1)


def _energies(directions: Tensor, covariance: Tensor) -> Tensor:
    return torch.einsum("gor,gop,gpr->gr", directions, covariance, directions).clamp_min(0)


def _chosen_shrinkage(halves: tuple[Tensor, ...], prior: Tensor) -> float:
    """The strength whose directions from one half of the examples miss least of the other half.

    A half has half the rows, so it says about half as many directions what all rows say about all: errors are
    compared at the lower half of the ranks, as ratios, every rank alike. A strength that harms any rank is left out.
    """
    ranks = max(prior.shape[-1] // 2, 1)

    def missed(strength: float) -> Tensor:
        logs = []
        for half, other in (halves, halves[::-1]):
            held = _energies(_directions(half, prior, strength), other).cumsum(-1).sum(0)
            total = other.diagonal(dim1=-2, dim2=-1).sum()
            logs.append((total - held[:ranks]).clamp_min(1e-300).log())
        return (logs[0] + logs[1]) / 2

    plain = missed(TIE_BREAK)
    gains = {strength: plain - missed(strength) for strength in SHRINKAGES}
    harmless = {strength: float(gain.mean()) for strength, gain in gains.items() if float(gain.min()) >= -1e-3}
    best = max(harmless, key=harmless.__getitem__, default=TIE_BREAK)
    # All examples together are twice a half, and the strength fades as one over their number; a quarter of that
    # again, for a strength too low gains a little less, where one too high harms ranks near the number of rows.
    return best / 8 if harmless.get(best, 0.0) > 0 else TIE_BREAK

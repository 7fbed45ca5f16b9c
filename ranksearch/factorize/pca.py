"""The full scheme: one eigendecomposition per layer, of which every rank is a slice.

The best rank-r affine replacement of a layer, in mean squared error of its outputs, is the PCA of those outputs
(reduced-rank regression of the layer's own output on its input; Izenman, 1975).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ranksearch.errors import DataError
from ranksearch.factorize.base import Factors, grouped_weight, square_roots
from ranksearch.factorize.patch_moments import in_float64
from ranksearch.factorize.statistics import Layer, LayerStatistics, Moments, SecondMoments, at_all_rows, groups_of

# Far above the rounding error of a float64 eigendecomposition, far below the effect of the data.
TIE_BREAK = 1e-9
# Shrinkage is selected if there are fewer rows per direction than this.
ROWS_FOR_EACH_DIRECTION = 4
# Selecting a strength takes about fifteen eigendecompositions, which is too slow for larger matrices. One of those is
# computed in float32, in half the time, with a fixed strength where rows are few.
LARGEST_TO_SHRINK = 1024
SHRINKAGE_OF_LARGER = 1e-3
SHRINKAGES = (1e-4, 1e-3, 0.01, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class PCADecomposition:
    """Principal components of a layer's outputs, group by group, the leading one first.

    Attributes:
        encode: output -> coordinates, `[groups, directions, out / groups]`.
        decode: coordinates -> output, `[groups, out / groups, directions]`.
        energies: variance of each coordinate, `[groups, directions]`.
        shift: mean output without the layer's bias, `[groups, out / groups]`.
        halves: output covariance before rotation to components, for either half of the examples,
            `[groups, directions, directions]`; empty without two halves, or with plenty of rows above 1,024 directions.
        prior: the same covariance for white inputs.
        shrinkage: weight of the prior in the covariance that the directions are computed from.
        rows: number of calibration rows.
    """

    encode: Tensor
    decode: Tensor
    energies: Tensor
    shift: Tensor
    halves: tuple[Tensor, ...]
    prior: Tensor
    shrinkage: float
    rows: int

    def truncation_errors(self) -> list[float]:
        """Return the share of the output's variance that each rank loses on the calibration data; entry r is rank r's.

        With loss-aware weights, the variance is the weighted one. A rank of a grouped layer that is not a multiple of
        its groups has the error of the next lower multiple.
        """
        return self._by_rank(_lost(self.energies))

    def expected_errors(self) -> list[float]:
        """See `Decomposition`; without `halves`, return the truncation errors."""
        if not self.halves:
            return self.truncation_errors()
        errors, size = [], self.prior.shape[-1]
        for half, other in (self.halves, self.halves[::-1]):
            if size > LARGEST_TO_SHRINK:
                directions = _range(half, min(self.rows // 2, size))
            else:
                # Shrinkage is inversely proportional to the number of rows, and a half has half of them.
                directions = _directions(half, self.prior, 2 * self.shrinkage)
            seen, unseen = (_lost_outside(directions, covariance) for covariance in (half, other))
            pairs = zip(seen.tolist(), unseen.tolist(), strict=True)
            errors.append([at_all_rows(a, b, self.rows, half.shape[-1]) for a, b in pairs])
        return self._by_rank(torch.tensor(errors, dtype=torch.float64).mean(0))

    def forget(self) -> None:
        """See `Decomposition`; nothing is kept for the errors alone."""

    def _by_rank(self, lost: Tensor) -> list[float]:
        groups, directions = self.energies.shape
        by_group = lost.tolist()
        return [by_group[rank // groups] for rank in range(groups * directions + 1)]

    def factors(self, layer: Layer, rank: int, *, rough: bool = False) -> Factors:  # always exact
        """Return the factors of a rank; see `Decomposition`."""
        groups, kept = len(self.energies), rank // len(self.energies)
        encode, decode = self.encode[:, :kept], self.decode[:, :, :kept]
        down = (encode @ grouped_weight(layer, groups)).reshape(groups * kept, *layer.weight.shape[1:])
        lost = self.shift - torch.einsum("gor,grp,gp->go", decode, encode, self.shift)
        bias = lost.flatten() if layer.bias is None else lost.flatten() + layer.bias.detach().to(lost)
        like = layer.weight.detach()
        up = decode.reshape(len(like), kept, *[1] * (like.ndim - 2))
        return Factors(down.to(like), up.to(like), bias.to(like))


def decompose_pca(
    layer: Layer,
    statistics: LayerStatistics | None = None,
    sensitivity: Tensor | None = None,
    shrinkage: float | None = None,
) -> PCADecomposition:
    """Compute the principal directions of a layer's outputs.

    Directions that the calibration data barely determine are ordered with the help of the weights: the covariance is
    shrunk towards that of the outputs for white inputs, ``covariance + shrinkage * scale * prior``, scaled to the same
    trace. With plenty of rows, shrinkage is too weak to change any direction that the data determine. With few, it has
    the strength whose directions, from either half of the examples, lose the least variance of the other half and
    worsen no rank. Energies are those of the calibration data: a truncation error is the error measured there.

    Args:
        layer: the dense layer.
        statistics: calibration statistics of the layer; None assumes white inputs (the best weights-only choice).
        sensitivity: error weights, `[groups, out / groups, out / groups]`: second moment of the loss's output gradient.
        shrinkage: shrinkage strength; None selects it.

    Raises:
        DataError: statistics, sensitivity or weights are not finite, have no rows, or do not fit.
    """
    groups = groups_of(layer)
    weight = grouped_weight(layer, groups)
    root, inverse = (None, None) if sensitivity is None else square_roots(sensitivity, weight)
    weighted = weight if root is None else root @ weight
    # Coordinates refer to an orthonormal frame of the outputs; if `frame` is None, they are the outputs.
    frame, mapped, shift = None, weighted, torch.zeros_like(weight[:, :, 0])
    halves: list[Moments] = []
    if statistics is None:
        covariance = weighted @ weighted.mT
    else:
        outer = root
        if statistics.side == "input":
            if weighted.shape[1] > weighted.shape[2]:
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
            shift = shift - in_float64(layer.bias.detach()).reshape(groups, -1)
    if not bool(torch.isfinite(covariance).all()):
        raise DataError("layer outputs or weights are not finite: check the calibration images and the weights")
    size = covariance.shape[-1]
    precision = torch.float64 if size <= LARGEST_TO_SHRINK else torch.float32
    covariance, mapped = covariance.to(precision), mapped.to(precision)
    prior = mapped @ mapped.mT
    rows = sum(half.count for half in halves)
    scarce = len(halves) == 2 and rows < ROWS_FOR_EACH_DIRECTION * size
    kept = len(halves) == 2 and (scarce or size <= LARGEST_TO_SHRINK)
    both = tuple(half.covariance.to(precision) for half in halves) if kept else ()
    if shrinkage is None:
        shrinkage = TIE_BREAK
        if scarce:
            shrinkage = _chosen_shrinkage(both, prior) if size <= LARGEST_TO_SHRINK else SHRINKAGE_OF_LARGER
    directions = _directions(covariance, prior, shrinkage)
    energies, directions = _energies(directions, covariance).double(), directions.double()
    basis = directions if frame is None else frame @ directions
    encode = basis.mT if root is None else basis.mT @ root
    decode = basis if inverse is None else inverse @ basis
    return PCADecomposition(encode, decode, energies, shift, both, prior, shrinkage, rows)


def _seen_through(outer: Tensor | None, moments: SecondMoments) -> Moments:
    """Return the moments of rows mapped by a matrix, `[groups, directions, size]`, or unmapped if it is None."""
    if outer is None:
        return Moments(moments.count, moments.mean, moments.covariance.double() * moments.count)
    covariance = outer @ moments.with_outputs(outer).double()
    return Moments(moments.count, (outer @ moments.mean[..., None])[..., 0], covariance * moments.count)


def _lost(energies: Tensor) -> Tensor:
    """Return the share of all energy outside the first r coordinates of each group, for r = 0, 1, ..."""
    by_rank = energies.sum(0)
    total = by_rank.sum()
    # Summed from the smallest, so that the error is 0 at full rank and never grows with the rank.
    lost = torch.cat([by_rank.flip(0).cumsum(0).flip(0), by_rank.new_zeros(1)])
    return lost / total if total > 0 else torch.zeros_like(lost)


def _lost_outside(directions: Tensor, covariance: Tensor) -> Tensor:
    """Return the share of a covariance outside the first r directions, for r = 0, 1, ... up to full rank.

    If there are fewer directions than that, the others capture equal shares of what is left, as random ones do.
    """
    held, size = _energies(directions, covariance).double(), covariance.shape[-1]
    total = covariance.diagonal(dim1=-2, dim2=-1).double().sum(-1)
    if (missing := size - held.shape[-1]) > 0:
        left = (total - held.sum(-1)).clamp_min(0) / missing
        held = torch.cat([held, left[:, None].expand(-1, missing)], 1)
    return _lost(held)


def _range(covariance: Tensor, count: int) -> Tensor:
    """Return the leading eigenvectors of covariances whose rank is at most a count, `[groups, size, count]`.

    They are in the span of the covariance's product with random vectors (Halko et al., 2011).
    """
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(covariance.shape[-1], count, generator=generator).to(covariance)
    basis = torch.linalg.qr(covariance @ probes).Q
    vectors = torch.linalg.eigh(basis.mT @ covariance @ basis).eigenvectors
    leading: Tensor = (basis @ vectors).flip(-1)
    return leading


def _directions(covariance: Tensor, prior: Tensor, shrinkage: float) -> Tensor:
    """Return the eigenvectors of the shrunk covariance as columns, leading one first, `[groups, size, size]`."""
    variance = covariance.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)[..., None]
    prior_variance = prior.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)[..., None]
    positive = (variance > 0) & (prior_variance > 0)
    scale = torch.where(positive, variance / prior_variance.clamp_min(1e-300), torch.ones_like(variance))
    mixed = covariance + shrinkage * scale * prior
    vectors: Tensor = torch.linalg.eigh((mixed + mixed.mT) / 2).eigenvectors
    return vectors.flip(-1)


def _energies(directions: Tensor, covariance: Tensor) -> Tensor:
    return torch.einsum("gor,gop,gpr->gr", directions, covariance, directions).clamp_min(0)


def _chosen_shrinkage(halves: tuple[Tensor, ...], prior: Tensor) -> float:
    """Return the strength whose directions from one half of the examples lose the least variance of the other half."""
    # Half of the rows determine about half as many directions as all rows do, so log errors are compared over the lower
    # half of the ranks, all weighted equally. Strengths that worsen any rank are excluded.
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
    admissible = {strength: float(gain.mean()) for strength, gain in gains.items() if float(gain.min()) >= -1e-3}
    best = max(admissible, key=admissible.__getitem__, default=TIE_BREAK)
    # Halved, since all examples are twice a half and the strength is inversely proportional to their number; then
    # quartered, since too low a strength gains slightly less, and too high a one worsens ranks near the number of rows.
    return best / 8 if admissible.get(best, 0.0) > 0 else TIE_BREAK

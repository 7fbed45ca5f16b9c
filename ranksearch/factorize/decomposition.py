"""One eigendecomposition per layer, then every rank is a slice.

The best rank-r affine replacement of a layer, in mean squared error of its outputs, is the PCA of those outputs
(reduced-rank regression of the layer's own output on its input; Izenman, 1975).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear

# Far above the rounding of an eigendecomposition in float64, far below what the data say.
TIE_BREAK = 1e-9
# Shrinkage is looked for where there are fewer rows than this for each direction.
ROWS_FOR_EACH_DIRECTION = 4
# Choosing a strength takes some fifteen decompositions, which is too slow for larger ones.
LARGEST_TO_SHRINK = 1024
SHRINKAGES = (1e-4, 1e-3, 0.01, 0.1, 0.3, 1.0)


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
    def covariance(self) -> Tensor:
        """`[groups, size, size]`, divided by the count."""
        return self.scatter / max(self.count, 1)


@dataclass(frozen=True)
class LayerStatistics:
    """What calibration saw of one layer.

    Attributes:
        side: whether the rows are the layer's outputs, or, where those are fewer numbers, the inputs of its positions.
        halves: the moments of two disjoint halves of the examples, by which shrinkage is chosen.
    """

    side: Literal["input", "output"]
    halves: tuple[Moments, Moments]

    @property
    def all(self) -> Moments:
        """The moments of all rows."""
        return self.halves[0] + self.halves[1]


@dataclass(frozen=True)
class Factors:
    """The two weights of a factorized layer and the bias of the second one.

    Attributes:
        down: the first factor's weight, the layer's own weight shape with ``rank`` outputs.
        up: the second factor's weight as a matrix, `[out, rank / groups]`.
        bias: `[out]`.
    """

    down: Tensor
    up: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Decomposition:
    """A layer's outputs in their principal directions, group by group, the most telling direction first.

    Attributes:
        encode: output -> coordinates, `[groups, directions, out / groups]`.
        decode: coordinates -> output, `[groups, out / groups, directions]`.
        energies: variance of each coordinate, `[groups, directions]`.
        shift: mean output without the layer's bias, `[groups, out / groups]`.
    """

    encode: Tensor
    decode: Tensor
    energies: Tensor
    shift: Tensor

    def truncation_errors(self) -> list[float]:
        """Share of the output's variance that each rank loses: entry r belongs to rank r, from 0.

        Where loss-aware weights were used, the variance is the weighted one. Ranks of a grouped layer that are no
        multiple of its groups have the error of the next lower one that is.
        """
        groups, directions = self.energies.shape
        total = float(self.energies.sum())
        if total <= 0:
            return [0.0] * (groups * directions + 1)
        by_rank = self.energies.sum(0)
        # Summed from the smallest, so that the error at full rank is 0 and never rises with the rank.
        lost = torch.cat([by_rank.flip(0).cumsum(0).flip(0), by_rank.new_zeros(1)]) / total
        return [float(lost[rank // groups]) for rank in range(groups * directions + 1)]

    def factors(self, layer: Layer, rank: int) -> Factors:
        """Cut the layer down to a rank, a multiple of its groups.

        Returns:
            The factors, in the dtype and on the device of the layer's weight.
        """
        groups, kept = len(self.energies), rank // len(self.energies)
        encode, decode = self.encode[:, :kept], self.decode[:, :, :kept]
        weight = _grouped_weight(layer, groups)
        down = (encode @ weight).reshape(groups * kept, *layer.weight.shape[1:])
        lost = self.shift - torch.einsum("gor,grp,gp->go", decode, encode, self.shift)
        bias = lost.flatten() if layer.bias is None else lost.flatten() + layer.bias.detach().cpu().to(lost)
        like = layer.weight.detach()
        return Factors(down.to(like), decode.flatten(0, 1).to(like), bias.to(like))


def groups_of(layer: Layer) -> int:
    """A layer's groups; 1 for linear layers."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def _grouped_weight(layer: Layer, groups: int) -> Tensor:
    """The weight in float64 on the CPU, `[groups, out / groups, fan_in]`."""
    weight = layer.weight.detach().cpu().double()
    return weight.reshape(groups, len(weight) // groups, -1)


def decompose(
    layer: Layer,
    statistics: LayerStatistics | None = None,
    sensitivity: Tensor | None = None,
    shrinkage: float | None = None,
) -> Decomposition:
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
        ValueError: statistics, sensitivity or weights are not finite, hold no rows, or do not fit.
    """
    groups = groups_of(layer)
    weight = _grouped_weight(layer, groups)
    root, inverse = (None, None) if sensitivity is None else _square_roots(sensitivity, weight)
    weighted = weight if root is None else root @ weight
    # Coordinates are those of an orthonormal frame of the outputs; `frame` is None where they are the outputs.
    frame, mapped, halves, shift = None, weighted, [], torch.zeros_like(weight[:, :, 0])
    if statistics is None:
        covariance, count = weighted @ weighted.mT, None
    else:
        everything = statistics.all
        count = everything.count
        if statistics.side == "input":
            frame, mapped = torch.linalg.qr(weighted)
            shift = torch.einsum("goi,gi->go", weight, everything.mean)
            outer = mapped
        else:
            bias = 0 if layer.bias is None else layer.bias.detach().cpu().double().reshape(groups, -1)
            shift = everything.mean - bias
            outer = root
        if count == 0:
            raise ValueError("calibration saw no rows of the layer: give batches that are not empty")
        covariance, *halves = (
            moments.covariance if outer is None else outer @ moments.covariance @ outer.mT
            for moments in (everything, *statistics.halves)
            if moments.count
        )
    if not bool(torch.isfinite(covariance).all()):
        raise ValueError("layer outputs or weights are not finite: check the calibration images and the weights")
    prior = mapped @ mapped.mT
    if shrinkage is None:
        size = covariance.shape[-1]
        scarce = len(halves) == 2 and count is not None and count < ROWS_FOR_EACH_DIRECTION * size
        shrinkage = _chosen_shrinkage(halves, prior) if scarce and size <= LARGEST_TO_SHRINK else TIE_BREAK
    directions = _directions(covariance, prior, shrinkage)
    energies = _energies(directions, covariance)
    basis = directions if frame is None else frame @ directions
    encode = basis.mT if root is None else basis.mT @ root
    decode = basis if inverse is None else inverse @ basis
    return Decomposition(encode, decode, energies, shift)


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


def _chosen_shrinkage(halves: list[Tensor], prior: Tensor) -> float:
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


def _square_roots(sensitivity: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of each group's matrix and its inverse, with a floor below which directions count alike."""
    groups, out = weight.shape[:2]
    if sensitivity.shape != (groups, out, out) or not bool(torch.isfinite(sensitivity).all()):
        raise ValueError(
            f"a sensitivity of shape {list(sensitivity.shape)} does not fit or is not finite: "
            f"give finite numbers of shape {[groups, out, out]}"
        )
    values, vectors = torch.linalg.eigh((sensitivity + sensitivity.mT).double().cpu() / 2)
    # Of mean 1, for errors are shares and the factors should stay of one size.
    mean = values.clamp_min(0).mean()
    values = values.clamp_min(0) / mean if mean > 0 else torch.ones_like(values)
    roots = (values + 1e-4).sqrt()
    return vectors * roots[:, None, :] @ vectors.mT, vectors / roots[:, None, :] @ vectors.mT

"""One eigendecomposition per layer, then every rank is a slice.

The best rank-r affine replacement of a layer, in mean squared error of its outputs, is the PCA of those outputs
(reduced-rank regression of the layer's own output on its input; Izenman, 1975).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutputStatistics:
    """First and second moments of one layer's output over the calibration data, in float64, on the CPU.

    Attributes:
        count: outputs seen (examples times positions).
        mean: `[out]`.
        covariance: `[out, out]`, about the mean, divided by ``count``.
    """

    count: int
    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Factors:
    """The two weights of a factorized layer and the bias of the second one.

    Attributes:
        down: the first factor's weight, the layer's own weight shape with ``rank`` outputs.
        up: the second factor's weight as a matrix, `[out, rank]`.
        bias: `[out]`.
    """

    down: Tensor
    up: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Decomposition:
    """A layer's outputs in their principal directions.

    Attributes:
        mean: mean output, `[out]`.
        basis: orthonormal columns, the most telling direction first, `[out, out]`.
        energies: the output's variance along each column, `[out]`.
    """

    mean: Tensor
    basis: Tensor
    energies: Tensor

    def truncation_errors(self) -> list[float]:
        """Share of the output's variance that each rank loses: entry r belongs to rank r, 0 to `out`."""
        total = float(self.energies.sum())
        if total <= 0:
            return [0.0] * (len(self.energies) + 1)
        # Summed from the smallest, so that the error at full rank is 0 and never rises with the rank.
        lost = torch.cat([self.energies.flip(0).cumsum(0).flip(0), self.energies.new_zeros(1)])
        return [float(value) for value in lost / total]

    def factors(self, weight: Tensor, bias: Tensor | None, rank: int) -> Factors:
        """Cut the layer down to a rank.

        Args:
            weight: the dense weight, `[out, in, kh, kw]` or `[out, in]`.
            bias: the dense bias, `[out]`, or None.
            rank: 1 to `out`.

        Returns:
            The factors, in the dtype and on the device of ``weight``.
        """
        up = self.basis[:, :rank]
        exact = weight.cpu().to(up)
        down = torch.einsum("or,o...->r...", up, exact)
        offset = -self.mean if bias is None else bias.cpu().to(up) - self.mean
        return Factors(down.to(weight), up.to(weight), (self.mean + up @ (up.T @ offset)).to(weight))


# Far above the rounding of an eigendecomposition in float64, far below what the data say.
TIE_BREAK = 1e-9


def decompose(statistics: OutputStatistics, weight: Tensor) -> Decomposition:
    """Find a layer's principal output directions.

    Directions that the calibration data never show, such as all beyond the number of outputs seen, are ordered by
    what the weights alone say: the output covariance of white inputs, mixed in with a weight that cannot change
    the order of any direction that the data do show. The energies are those of the calibration data, so that a
    truncation error equals the error measured there.

    Args:
        statistics: of the layer's outputs.
        weight: the dense weight, `[out, ...]`.

    Raises:
        ValueError: the outputs were not finite.
    """
    covariance = statistics.covariance
    if not bool(torch.isfinite(covariance).all()):
        raise ValueError("layer outputs are not finite: check the calibration images and the weights")
    rows = weight.detach().cpu().to(covariance).flatten(1)
    prior = rows @ rows.T
    variance, prior_variance = float(covariance.trace()), float(prior.trace())
    scale = variance / prior_variance if variance > 0 and prior_variance > 0 else 1.0
    mixed = covariance + TIE_BREAK * scale * prior
    directions = torch.linalg.eigh((mixed + mixed.T) / 2).eigenvectors.flip(1)
    energies = torch.einsum("or,op,pr->r", directions, covariance, directions).clamp_min(0)
    return Decomposition(statistics.mean, directions, energies)

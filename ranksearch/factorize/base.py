"""Interface of layer decompositions, the factors that they return, and shared helpers."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ranksearch.errors import DataError
from ranksearch.factorize.patch_moments import in_float64
from ranksearch.factorize.statistics import Layer

# Added to the sensitivity of output directions, as a share of their mean, lest the inverse root amplify noise.
LEAST_SENSITIVITY = 1e-4


@dataclass(frozen=True)
class Factors:
    """Weights of a factorized layer's two factors, and the bias of the second one.

    Attributes:
        down: weight of the first factor, `[rank, in / groups, ...]`.
        up: weight of the second factor, `[out, rank / groups, ...]`.
        bias: bias of the second factor, `[out]`.
    """

    down: Tensor
    up: Tensor
    bias: Tensor


class Decomposition(Protocol):
    """A layer decomposed by one scheme, which can be truncated to any rank."""

    def expected_errors(self) -> list[float]:
        """Return the share of the output's variance that each rank is expected to lose on held-out images.

        Entry r belongs to rank r, from 0 to at least the break-even rank. The error never grows with the rank; a rank
        of a grouped layer that is not a multiple of its groups has the error of the next lower multiple.
        """

    def forget(self) -> None:
        """Free what only the expected errors needed; it is computed again if it is asked for."""

    def factors(self, layer: Layer, rank: int, *, rough: bool = False) -> Factors:
        """Return the factors of a rank, a multiple of the layer's groups, in its weight's dtype and on its device.

        Args:
            layer: the dense layer.
            rank: rank of all groups.
            rough: start from what the expected errors were computed with, which is faster; for comparisons of plans.
        """


def grouped_weight(layer: Layer, groups: int) -> Tensor:
    """Return a layer's weight in float64, `[groups, out / groups, fan_in]`."""
    weight = in_float64(layer.weight.detach())
    return weight.reshape(groups, len(weight) // groups, -1)


def square_roots(sensitivity: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square root and the inverse square root of each group's sensitivity, with a floor on its eigenvalues.

    Args:
        sensitivity: symmetric matrices, `[groups, out / groups, out / groups]`.
        weight: weight whose outputs it must match, `[groups, out / groups, fan_in]`.

    Returns:
        Both in the sensitivity's shape, scaled to a mean eigenvalue of about 1 before the root, in float64.

    Raises:
        DataError: the sensitivity has another shape or is not finite.
    """
    groups, out = weight.shape[:2]
    if sensitivity.shape != (groups, out, out) or not bool(torch.isfinite(sensitivity).all()):
        raise DataError(
            f"a sensitivity of shape {list(sensitivity.shape)} does not fit or is not finite: "
            f"give finite numbers of shape {[groups, out, out]}"
        )
    values, vectors = torch.linalg.eigh((sensitivity + sensitivity.mT).to(weight) / 2)
    # Scale to mean 1: errors are shares, and the factors should keep their scale.
    mean = values.clamp_min(0).mean()
    values = values.clamp_min(0) / mean if mean > 0 else torch.ones_like(values)
    roots = (values + LEAST_SENSITIVITY).sqrt()
    return vectors * roots[:, None, :] @ vectors.mT, vectors / roots[:, None, :] @ vectors.mT

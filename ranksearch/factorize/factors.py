"""Two weights in the place of one: what a decomposition promises, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ranksearch.errors import DataError
from ranksearch.factorize.statistics import Layer

# Of a direction of outputs, as a share of their mean; below it the inverse root would lift noise.
LEAST_SENSITIVITY = 1e-4


@dataclass(frozen=True)
class Factors:
    """The two weights of a factorized layer and the bias of the second one.

    Attributes:
        down: the first factor's weight, `[rank, in / groups, ...]`.
        up: the second factor's weight, `[out, rank / groups, ...]`.
        bias: `[out]`.
    """

    down: Tensor
    up: Tensor
    bias: Tensor


class Decomposition(Protocol):
    """A layer decomposed by one scheme, from which any rank can be cut."""

    def expected_errors(self) -> list[float]:
        """Share of the output's variance that each rank is expected to lose on images that were not seen.

        Entry r belongs to rank r, from 0 to at least the break-even rank. It never grows with the rank; ranks of a
        grouped layer that are no multiple of its groups have the error of the next lower one that is.
        """
        ...

    def factors(self, layer: Layer, rank: int) -> Factors:
        """Cut the layer down to a rank, a multiple of its groups.

        Returns:
            The factors, in the dtype and on the device of the layer's weight.
        """
        ...


def at_all_rows(seen: float, unseen: float) -> float:
    """The expected error of a solution from all examples, from the errors of one that was made on half of them.

    The rise of the error on unseen rows over the least there is falls as one over the number of rows, and so does
    the drop below it on the rows that were seen: at twice the rows, a quarter of the way from one to the other is gone.

    Args:
        seen: error on the half that the solution saw.
        unseen: error on the other.
    """
    return 0.75 * unseen + 0.25 * min(seen, unseen)


def grouped_weight(layer: Layer, groups: int) -> Tensor:
    """A layer's weight in float64 on the CPU, `[groups, out / groups, fan_in]`."""
    weight = layer.weight.detach().cpu().double()
    return weight.reshape(groups, len(weight) // groups, -1)


def square_roots(sensitivity: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of each group's matrix and its inverse, with a floor below which directions count alike.

    Args:
        sensitivity: `[groups, out / groups, out / groups]`, symmetric.
        weight: that it should fit, `[groups, out / groups, fan_in]`.

    Returns:
        Both of the sensitivity's shape, of mean eigenvalue about 1, in float64 on the CPU.

    Raises:
        DataError: the sensitivity is of another shape or not finite.
    """
    groups, out = weight.shape[:2]
    if sensitivity.shape != (groups, out, out) or not bool(torch.isfinite(sensitivity).all()):
        raise DataError(
            f"a sensitivity of shape {list(sensitivity.shape)} does not fit or is not finite: "
            f"give finite numbers of shape {[groups, out, out]}"
        )
    values, vectors = torch.linalg.eigh((sensitivity + sensitivity.mT).double().cpu() / 2)
    # Of mean 1, for errors are shares and the factors should stay of one size.
    mean = values.clamp_min(0).mean()
    values = values.clamp_min(0) / mean if mean > 0 else torch.ones_like(values)
    roots = (values + LEAST_SENSITIVITY).sqrt()
    return vectors * roots[:, None, :] @ vectors.mT, vectors / roots[:, None, :] @ vectors.mT

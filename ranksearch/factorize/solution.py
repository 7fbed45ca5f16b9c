"""Factors of a matrix product or convolution, and the error that they leave."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LowRankSolution:
    """Factors of a matrix product or of a convolution.

    Attributes:
        Wa: the first factor.
        Wb: the second factor, or None if a single matrix or kernel suffices.
        bias: bias of the second factor, or None if the weights were not refitted and had none.
        rank: the latent size, or -1 if nothing was factorized.
        nmse: error of the returned solution as a share of the target's variance, over all outputs: 1 - R^2.
    """

    Wa: Tensor
    Wb: Tensor | None = None
    bias: Tensor | None = None
    rank: int = -1
    nmse: float = 0.0


def truncation_error(target: Tensor, outputs: Tensor, axis: int = -1) -> float:
    """Return the squared error over the target's variance about its mean per output; 0 if both are zero.

    Args:
        target: target outputs, of any shape.
        outputs: approximate outputs, of the same shape.
        axis: axis of the outputs.
    """
    rows = target.cpu().double().movedim(axis, -1).flatten(0, -2)
    missed = float((rows - outputs.cpu().double().movedim(axis, -1).flatten(0, -2)).square().sum())
    variance = float((rows - rows.mean(0)).square().sum())
    if variance == 0:
        rounding = (10 * torch.finfo(outputs.dtype).eps) ** 2 if outputs.is_floating_point() else 0.0
        return 0.0 if missed <= rounding * float(rows.square().sum()) else float("inf")
    return missed / variance

"""Least-squares problems for the solvers."""

from __future__ import annotations

import torch
from torch import Tensor


def problem(seed: int, rows: int, wide: int, out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, targets and weights in float64: targets are near to an affine map of the inputs."""
    torch.manual_seed(seed)
    X = torch.randn(rows, wide).double() @ torch.randn(wide, wide).double() + 2
    Wa = torch.randn(wide, out).double()
    return X, X @ Wa + 0.3 * torch.randn(rows, out).double() - 1, Wa

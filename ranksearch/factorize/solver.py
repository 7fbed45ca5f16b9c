"""Tensors in, tensors out: the best low-rank solution for a matrix product and for a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import DataError, first_line
from ranksearch.factorize.calibration import as_rows, collect_statistics
from ranksearch.factorize.full import decompose_fully
from ranksearch.plan import LayerSpec, resolve_latent_size


@dataclass
class LowRankSolution:
    """Factors of a matrix product or of a convolution.

    Attributes:
        Wa: the first factor.
        Wb: the second, or None where one matrix or kernel is as good.
        bias: of the second factor, or None where there was none to begin with.
        rank: the latent size, or -1 where nothing was factorized.
        nmse: share of the target's variance, over all outputs, that what is returned here misses: 1 - R^2.
    """

    Wa: Tensor
    Wb: Tensor | None = None
    bias: Tensor | None = None
    rank: int = -1
    nmse: float = 0.0


def truncation_error(target: Tensor, found: Tensor, axis: int = -1) -> float:
    """Squared error over the target's variance about its mean per output; 0 where both are nothing.

    Args:
        target: of any shape.
        found: of the same shape.
        axis: of the outputs.
    """
    rows = target.cpu().double().movedim(axis, -1).flatten(0, -2)
    missed = float((rows - found.cpu().double().movedim(axis, -1).flatten(0, -2)).square().sum())
    variance = float((rows - rows.mean(0)).square().sum())
    if variance == 0:
        rounding = (10 * torch.finfo(found.dtype).eps) ** 2 if found.is_floating_point() else 0.0
        return 0.0 if missed <= rounding * float(rows.square().sum()) else float("inf")
    return missed / variance


def _require_finite(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.numel() == 0:
            raise DataError(f"{name} of shape {list(tensor.shape)} is empty: give at least one example")
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{name} has numbers that are not finite: take them out")


def _apply(x: Tensor, first: Tensor, second: Tensor | None, bias: Tensor | None) -> Tensor:
    out = x @ first if second is None else x @ first @ second
    return out if bias is None else out + bias


def _require_matrices(X: Tensor, Y: Tensor, Wa: Tensor, Wb: Tensor | None, bias: Tensor | None) -> None:
    _require_finite(X=X, Y=Y, Wa=Wa, Wb=Wb, bias=bias)
    shapes = [X.ndim, Y.ndim, Wa.ndim, 2 if Wb is None else Wb.ndim]
    if shapes != [2] * 4 or len(X) != len(Y) or len(Wa) != X.shape[1]:
        raise DataError(
            f"X {list(X.shape)}, Y {list(Y.shape)} and Wa {list(Wa.shape)} do not fit: give [N, D], [N, M] and [D, k]"
        )
    last = Wa if Wb is None else Wb
    if last.shape[1] != Y.shape[1] or (Wb is not None and Wb.shape[0] != Wa.shape[1]):
        other = f" and Wa {list(Wa.shape)}" if Wb is not None else ""
        raise DataError(
            f"{'Wa' if Wb is None else 'Wb'} {list(last.shape)} does not fit Y {list(Y.shape)}{other}: give [k, M]"
        )
    if bias is not None and bias.shape != Y.shape[1:]:
        raise DataError(f"bias {list(bias.shape)} does not fit Y {list(Y.shape)}: give [M]")


def factorize_matrix(
    X: Tensor,
    Y: Tensor,
    Wa: Tensor,
    Wb: Tensor | None = None,
    bias: Tensor | None = None,
    rank: float = 0.25,
    n_iters: int = 3,
) -> LowRankSolution:
    """Find the affine map of a rank from X to Y with the least mean squared error.

    This is reduced-rank regression (Izenman, 1975): fit Y by least squares, keep the fit's leading directions.

    Args:
        X: inputs, `[N, D]`.
        Y: targets, `[N, M]`.
        Wa: the present weights, `[D, k]`, or `[D, M]` without ``Wb``.
        Wb: the present second factor, `[k, M]`, or None.
        bias: the present bias, `[M]`, or None.
        rank: an int of at least 1, or a fraction in (0, 1) of ``min(D, M)``.
        n_iters: not used, for the solution is exact; accepted for compatibility.

    Returns:
        The solution. With a rank of D or M and more, one matrix ``Wa`` `[D, M]` that fits Y, ``Wb`` None, and rank -1;
        with a lower one that is at least the present latent size k, the present factors, and rank -1. Where Y is what
        the present weights give, the error never grows with the rank.

    Raises:
        DataError: shapes do not fit, tensors are empty or not finite, or the rank is out of range.
    """
    with torch.no_grad():
        _require_matrices(X, Y, Wa, Wb, bias)
        size = resolve_latent_size(rank, X.shape[1], Y.shape[1])
        if Wb is not None and Wa.shape[1] <= size < min(X.shape[1], Y.shape[1]):
            return LowRankSolution(Wa, Wb, bias, -1, truncation_error(Y, _apply(X, Wa, Wb, bias)))
        inputs, targets = X.cpu().double(), Y.cpu().double()
        mean, target_mean = inputs.mean(0), targets.mean(0)
        centred = inputs - mean
        fit = torch.linalg.lstsq(centred, targets - target_mean, driver="gelsd").solution
        if size >= min(X.shape[1], Y.shape[1]):
            first, second = fit, None
            offset = target_mean - mean @ first
        else:
            fitted = centred @ fit
            directions = torch.linalg.eigh(fitted.mT @ fitted).eigenvectors.flip(1)[:, :size]
            first, second = fit @ directions, directions.mT
            offset = target_mean - mean @ first @ second
        solved = first.to(Wa), None if second is None else second.to(Wa), offset.to(Wa)
        nmse = truncation_error(Y, _apply(X.to(Wa), *solved))
        return LowRankSolution(*solved, -1 if second is None else size, nmse)


def _require_kernels(
    X: Tensor, Wa: Tensor, Wb: Tensor | None, biasA: Tensor | None, biasB: Tensor | None, groups: int
) -> None:
    _require_finite(X=X, Wa=Wa, Wb=Wb, biasA=biasA, biasB=biasB)
    if X.ndim != 4 or Wa.ndim != 4 or X.shape[1] != Wa.shape[1] * groups or len(Wa) % groups:
        raise DataError(f"X {list(X.shape)} and Wa {list(Wa.shape)} do not fit: give [B, C, H, W] and [k, C, kh, kw]")
    if Wb is not None and (
        Wb.ndim != 4 or Wb.shape[1] * groups != len(Wa) or Wb.shape[2:] != (1, 1) or len(Wb) % groups
    ):
        raise DataError(f"Wb {list(Wb.shape)} does not fit Wa {list(Wa.shape)}: give [O, k, 1, 1]")
    for name, part, outputs in (("biasA", biasA, len(Wa)), ("biasB", biasB, len(Wa if Wb is None else Wb))):
        if part is not None and part.shape != (outputs,):
            raise DataError(f"{name} {list(part.shape)} does not fit {outputs} outputs: give one number for each")


def _joined(
    Wa: Tensor, Wb: Tensor | None, biasA: Tensor | None, biasB: Tensor | None, groups: int
) -> tuple[Tensor, Tensor | None]:
    """The kernel and the bias that two factors make together."""
    if Wb is None:
        return Wa, biasA if biasB is None else biasB
    up = Wb.reshape(groups, -1, len(Wa) // groups)
    weight = (up @ Wa.reshape(groups, len(Wa) // groups, -1)).reshape(len(Wb), *Wa.shape[1:])
    if biasA is None:
        return weight, biasB
    bias = (up @ biasA.reshape(groups, -1, 1)).flatten()
    return weight, bias if biasB is None else bias + biasB


def factorize_conv2d(
    X: Tensor,
    Wa: Tensor,
    Wb: Tensor | None = None,
    rank: float = 0.25,
    biasA: Tensor | None = None,
    biasB: Tensor | None = None,
    n_iters: int = 3,
    **conv2d_kwargs: Any,
) -> LowRankSolution:
    """Find the two convolutions of a rank that keep a convolution's outputs best.

    Args:
        X: inputs, `[B, C, H, W]`.
        Wa: the present kernel, `[k, C / groups, kh, kw]`, or `[O, C / groups, kh, kw]` without ``Wb``.
        Wb: the present second factor, `[O, k / groups, 1, 1]`, or None.
        rank: an int of at least 1, or a fraction in (0, 1) of ``min(C, O)``.
        biasA: the present bias of the first factor, or None.
        biasB: the present bias of the second, or None.
        n_iters: not used, for the solution is exact; accepted for compatibility.
        **conv2d_kwargs: ``stride``, ``padding``, ``dilation``, ``padding_mode`` and ``groups`` of the kernel.

    Returns:
        The solution: ``Wa`` `[rank, C / groups, kh, kw]`, ``Wb`` `[O, rank / groups, 1, 1]`, ``bias`` `[O]`. With a
        rank of C or O and more, one kernel ``Wa`` `[O, C / groups, kh, kw]` that gives the outputs, ``Wb`` None, and
        rank -1; with a lower one that is at least the present latent size k, the present factors, and rank -1. The
        error never grows with the rank.

    Raises:
        DataError: shapes do not fit, tensors are empty or not finite, or the rank is out of range.
    """
    with torch.no_grad():
        groups = conv2d_kwargs.get("groups", 1)
        _require_kernels(X, Wa, Wb, biasA, biasB, groups)
        weight, bias = _joined(Wa, Wb, biasA, biasB, groups)
        size = LayerSpec("convolution", "conv2d", X.shape[1], len(weight), 1, groups=groups).rank(rank)
        if size >= min(X.shape[1], len(weight)):
            return LowRankSolution(weight, None, bias, -1, 0.0)
        if Wb is not None and size >= len(Wa):
            return LowRankSolution(Wa, Wb, bias, -1, 0.0)
        dense = nn.Conv2d(X.shape[1], len(weight), weight.shape[2:], bias=False, device="meta", **conv2d_kwargs)  # type: ignore[arg-type]  # a size is a tuple
        dense.weight = nn.Parameter(weight, requires_grad=False)
        dense.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        X = X.to(weight)
        try:
            statistics = collect_statistics(dense, [X], [""], ["full"])[""]
        except RuntimeError as error:
            reason = first_line(error)
            raise DataError(f"X {list(X.shape)} cannot go through the kernel ({reason}): give larger images") from None
        factors = decompose_fully(dense, statistics).factors(dense, size)
        first = nn.Conv2d(X.shape[1], size, weight.shape[2:], bias=False, device="meta", **conv2d_kwargs)  # type: ignore[arg-type]  # the same
        first.weight = nn.Parameter(factors.down, requires_grad=False)
        found = nn.functional.conv2d(first(X), factors.up, factors.bias, groups=groups)
        nmse = truncation_error(as_rows(dense(X), dense), as_rows(found, dense))
        return LowRankSolution(factors.down, factors.up, factors.bias, size, nmse)

"""Functional interface: the best low-rank factors of a matrix product and of a convolution."""

from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import DataError, first_line
from ranksearch.factorize.calibration import collect_statistics
from ranksearch.factorize.pca import decompose_pca
from ranksearch.factorize.solution import LowRankSolution, truncation_error
from ranksearch.factorize.thinning import as_rows
from ranksearch.plan import LayerSpec, resolve_latent_size


def _require_finite(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.numel() == 0:
            raise DataError(f"{name} of shape {list(tensor.shape)} is empty: give at least one example")
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{name} has values that are not finite: remove them")


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
    name, last, other = ("Wa", Wa, "") if Wb is None else ("Wb", Wb, f" and Wa {list(Wa.shape)}")
    if last.shape[1] != Y.shape[1] or (Wb is not None and Wb.shape[0] != Wa.shape[1]):
        raise DataError(f"{name} {list(last.shape)} does not fit Y {list(Y.shape)}{other}: give [k, M]")
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
    """Compute the affine map of a given rank from X to Y with the least mean squared error.

    This is reduced-rank regression (Izenman, 1975): fit Y by least squares, keep the fit's leading directions.

    Args:
        X: inputs, `[N, D]`.
        Y: targets, `[N, M]`.
        Wa: the current weights, `[D, k]`, or `[D, M]` without ``Wb``.
        Wb: the current second factor, `[k, M]`, or None.
        bias: the current bias, `[M]`, or None.
        rank: an int of at least 1, or a fraction in (0, 1) of ``min(D, M)``.
        n_iters: unused, since the solution is exact; accepted for compatibility.

    Returns:
        The solution. For a rank of at least D or M, a single matrix ``Wa`` `[D, M]` fitted to Y, ``Wb`` None and rank
        -1; for a lower rank that is at least the current latent size k, the current factors and rank -1. If Y is the
        output of the current weights, the error never grows with the rank.

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
        else:
            fitted = centred @ fit
            directions = torch.linalg.eigh(fitted.mT @ fitted).eigenvectors.flip(1)[:, :size]
            first, second = fit @ directions, directions.mT
        offset = target_mean - _apply(mean, first, second, None)
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
    """Return the kernel and the bias of the product of two factors."""
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
    """Compute the two convolutions of a given rank that best preserve a convolution's outputs.

    Args:
        X: inputs, `[B, C, H, W]`.
        Wa: the current kernel, `[k, C / groups, kh, kw]`, or `[O, C / groups, kh, kw]` without ``Wb``.
        Wb: the current second factor, `[O, k / groups, 1, 1]`, or None.
        rank: an int of at least 1, or a fraction in (0, 1) of ``min(C, O)``.
        biasA: the current bias of the first factor, or None.
        biasB: the current bias of the second factor, or None.
        n_iters: unused, since the solution is exact; accepted for compatibility.
        **conv2d_kwargs: ``stride``, ``padding``, ``dilation``, ``padding_mode`` and ``groups`` of the kernel.

    Returns:
        The solution: ``Wa`` `[rank, C / groups, kh, kw]`, ``Wb`` `[O, rank / groups, 1, 1]`, ``bias`` `[O]`. For a rank
        of at least C or O, a single kernel ``Wa`` `[O, C / groups, kh, kw]` with the same outputs, ``Wb`` None and rank
        -1; for a lower rank that is at least the current latent size k, the current factors and rank -1. The error
        never grows with the rank.

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
            raise DataError(f"X {list(X.shape)} is too small for the kernel ({reason}): give larger images") from None
        factors = decompose_pca(dense, statistics).factors(dense, size)
        first = nn.Conv2d(X.shape[1], size, weight.shape[2:], bias=False, device="meta", **conv2d_kwargs)  # type: ignore[arg-type]  # the same
        first.weight = nn.Parameter(factors.down, requires_grad=False)
        outputs = nn.functional.conv2d(first(X), factors.up, factors.bias, groups=groups)
        nmse = truncation_error(as_rows(dense(X), dense), as_rows(outputs, dense))
        return LowRankSolution(factors.down, factors.up, factors.bias, size, nmse)

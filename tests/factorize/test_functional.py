"""The two solvers: the least-squares optimum of a rank, and errors that are measured."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import problem
from torch import Tensor
from torch.nn import functional as F

from ranksearch.factorize import LowRankSolution, factorize_conv2d, factorize_matrix
from ranksearch.factorize.solution import truncation_error


def predict(X: Tensor, solution: LowRankSolution) -> Tensor:
    found = X @ solution.Wa if solution.Wb is None else X @ solution.Wa @ solution.Wb
    return found if solution.bias is None else found + solution.bias


@given(st.integers(0, 999), st.integers(2, 8), st.integers(2, 8), st.integers(1, 7))
def test_a_matrix_solution_is_the_optimum_of_its_rank(seed: int, wide: int, out: int, rank: int) -> None:
    X, Y, Wa = problem(seed, 60, wide, out)
    solution = factorize_matrix(X, Y, Wa, rank=rank)
    assert solution.nmse == pytest.approx(truncation_error(Y, predict(X, solution)))
    if rank >= min(wide, out):
        assert (solution.rank, solution.Wb) == (-1, None)
    else:
        assert solution.Wb is not None
        assert (solution.rank, solution.Wa.shape, solution.Wb.shape) == (rank, (wide, rank), (rank, out))
    # The textbook optimum by another way: whiten the inputs, cut the singular values of the map.
    centred, target = X - X.mean(0), Y - Y.mean(0)
    Q, _ = torch.linalg.qr(centred)
    U, S, Vh = torch.linalg.svd(Q.T @ target, full_matrices=False)
    optimum = truncation_error(Y, Q @ (U[:, :rank] * S[:rank]) @ Vh[:rank] + Y.mean(0))
    assert solution.nmse <= 1.0001 * optimum + 1e-12


def test_a_rank_at_or_above_the_present_one_changes_nothing() -> None:
    X, Y, _ = problem(0, 40, 8, 8)
    Wa, Wb, bias = torch.randn(8, 3).double(), torch.randn(3, 8).double(), torch.randn(8).double()
    solution = factorize_matrix(X, Y, Wa, Wb, bias, rank=3)
    assert solution.rank == -1
    assert solution.Wa is Wa
    assert solution.Wb is Wb
    assert solution.bias is bias
    assert solution.nmse == pytest.approx(truncation_error(Y, X @ Wa @ Wb + bias))
    assert factorize_matrix(X, Y, Wa, Wb, bias, rank=2).rank == 2


def test_fewer_rows_than_inputs_and_dead_outputs_stay_finite() -> None:
    X, Y, Wa = problem(0, 5, 12, 9)
    Y[:, 3] = 1
    solution = factorize_matrix(X, Y, Wa, rank=3)
    assert bool(torch.isfinite(predict(X, solution)).all())
    zero = factorize_matrix(torch.zeros(5, 12).double(), Y, Wa, rank=3)
    assert zero.nmse == pytest.approx(1)
    assert factorize_matrix(X, torch.ones_like(Y), Wa, rank=3).nmse == 0


@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2, "padding": 1}, {"padding": "same"}, {"groups": 2, "dilation": 2}]
)
@pytest.mark.parametrize("biased", [False, True])
def test_a_convolution_solution_is_what_it_says(settings: dict[str, object], biased: bool) -> None:
    torch.manual_seed(0)
    groups = int(str(settings.get("groups", 1)))
    X = torch.einsum("bchw,cd->bdhw", torch.randn(4, 8, 10, 10), torch.randn(8, 8)).double()
    Wa, bias = torch.randn(12, 8 // groups, 3, 3).double(), torch.randn(12).double() * 5 if biased else None
    solution = factorize_conv2d(X, Wa, rank=4, biasA=bias, **settings)
    assert solution.rank == 4
    assert solution.Wb is not None
    exact = F.conv2d(X, Wa, bias, **settings)
    found = F.conv2d(F.conv2d(X, solution.Wa, **settings), solution.Wb, solution.bias, groups=groups)
    assert solution.nmse == pytest.approx(truncation_error(exact, found, axis=1), rel=1e-6)
    again = factorize_conv2d(X, solution.Wa, solution.Wb, 2, None, solution.bias, **settings)
    assert again.rank == 2
    kept = factorize_conv2d(X, solution.Wa, solution.Wb, 4, None, solution.bias, **settings)
    assert (kept.rank, kept.Wa is solution.Wa, kept.Wb is solution.Wb) == (-1, True, True)


X, Y, WA = problem(0, 20, 6, 5)


def test_biases_of_both_factors_are_kept_together() -> None:
    X, Wa, Wb = torch.randn(2, 6, 6, 6).double(), torch.randn(5, 6, 3, 3).double(), torch.randn(8, 5, 1, 1).double()
    first, second = torch.randn(5).double(), torch.randn(8).double()
    exact = F.conv2d(F.conv2d(X, Wa, first), Wb, second)
    kept = factorize_conv2d(X, Wa, Wb, 5, first, second)
    assert torch.allclose(F.conv2d(F.conv2d(X, kept.Wa), Wb, kept.bias), exact)
    lower = factorize_conv2d(X, Wa, Wb, 4, first, second)
    assert lower.Wb is not None
    found = F.conv2d(F.conv2d(X, lower.Wa), lower.Wb, lower.bias)
    assert lower.nmse == pytest.approx(truncation_error(exact, found, axis=1))


@given(st.integers(2, 12), st.integers(2, 12), st.floats(0.05, 0.95))
def test_a_fraction_is_of_the_smaller_side(wide: int, out: int, share: float) -> None:
    size = max(1, int(share * min(wide, out)))
    inputs, targets, weights = problem(0, 40, wide, out)
    assert factorize_matrix(inputs, targets, weights, rank=share).rank == size
    images, kernel = torch.randn(4, wide, 5, 4), torch.randn(out, wide, 1, 1)
    assert factorize_conv2d(images, kernel, rank=share).rank == size


@given(
    st.sampled_from([1, 2]), st.integers(2, 6), st.integers(2, 6), st.integers(1, 14), st.integers(1, 16), st.booleans()
)
def test_a_rank_says_whether_a_kernel_becomes_one_stays_two_or_is_solved_for(
    groups: int, channels: int, outputs: int, latent: int, rank: int, factored: bool
) -> None:
    torch.manual_seed(0)
    inputs, out, present = channels * groups, outputs * groups, latent * groups
    images = torch.randn(3, inputs, 5, 6).double()
    Wa = torch.randn(present if factored else out, channels, 3, 2).double()
    Wb = torch.randn(out, latent, 1, 1).double() if factored else None
    bias = torch.randn(out).double()
    solution = factorize_conv2d(images, Wa, Wb, rank * groups, None, bias, groups=groups)
    exact = F.conv2d(images, Wa, None if factored else bias, groups=groups)
    if Wb is not None:
        exact = F.conv2d(exact, Wb, bias, groups=groups)
    if rank >= min(channels, outputs):
        assert (solution.rank, solution.Wb, solution.Wa.shape) == (-1, None, (out, channels, 3, 2))
        assert torch.allclose(F.conv2d(images, solution.Wa, solution.bias, groups=groups), exact)
    elif factored and rank >= latent:
        assert (solution.rank, solution.Wa is Wa, solution.Wb is Wb) == (-1, True, True)
    else:
        assert (solution.rank, solution.Wa.shape) == (rank * groups, (rank * groups, channels, 3, 2))


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize(("inputs", "latent", "outputs"), [(16, 16, 16), (16, 8, 16), (32, 16, 24), (12, 7, 30)])
def test_the_error_never_grows_with_the_rank(inputs: int, latent: int, outputs: int, factored: bool) -> None:
    torch.manual_seed(0)
    X, bias, ranks = torch.randn(100, inputs), torch.randn(outputs), (1, 2, 4, 8, 12, 16, 24, 32)
    Wa = torch.randn(inputs, latent if factored else outputs)
    Wb = torch.randn(latent, outputs) if factored else None
    Y = X @ Wa @ Wb + bias if Wb is not None else X @ Wa + bias
    images, kernel = torch.randn(2, inputs, 5, 5), torch.randn(latent if factored else outputs, inputs, 3, 3)
    second = torch.randn(outputs, latent, 1, 1) if factored else None
    of_matrices = [factorize_matrix(X, Y, Wa, Wb, bias, rank) for rank in ranks]
    of_kernels = [factorize_conv2d(images, kernel, second, rank, biasB=bias) for rank in ranks]
    for solutions in (of_matrices, of_kernels):
        errors = [solution.nmse for solution in solutions]
        assert all(later <= before + 1e-8 for before, later in pairwise(errors))
        assert errors[0] < 1
        single = [solution.Wb is None for solution in solutions]
        assert single == [rank >= min(inputs, outputs) for rank in ranks]
    for rank, solution in zip(ranks, of_matrices, strict=True):
        kept = factored and latent <= rank < min(inputs, outputs)
        width = outputs if rank >= min(inputs, outputs) else latent if kept else rank
        assert solution.Wa.shape == (inputs, width)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("biases", [(False, False), (True, False), (False, True), (True, True)])
def test_two_factors_stand_for_the_kernel_and_the_bias_that_they_make_together(
    groups: int, biases: tuple[bool, bool]
) -> None:
    torch.manual_seed(0)
    images, Wa = torch.randn(4, 8, 6, 7).double(), torch.randn(6, 8 // groups, 3, 2).double()
    Wb = torch.randn(8, 6 // groups, 1, 1).double()
    first, second = (torch.randn(size).double() if has else None for size, has in zip((6, 8), biases, strict=True))
    exact = F.conv2d(F.conv2d(images, Wa, first, groups=groups), Wb, second, groups=groups)
    kept = factorize_conv2d(images, Wa, Wb, 6, first, second, groups=groups)
    found = F.conv2d(F.conv2d(images, kept.Wa, groups=groups), kept.Wb, kept.bias, groups=groups)
    assert torch.allclose(found, exact)
    assert (kept.bias is None) == (not any(biases))
    lower = factorize_conv2d(images, Wa, Wb, 4, first, second, groups=groups)
    found = F.conv2d(F.conv2d(images, lower.Wa, groups=groups), lower.Wb, lower.bias, groups=groups)
    assert 0 < truncation_error(exact, found, axis=1) == pytest.approx(lower.nmse)


def test_a_kernel_of_one_factor_has_either_bias() -> None:
    torch.manual_seed(0)
    images, Wa, bias = torch.randn(4, 4, 6, 7), torch.randn(8, 4, 3, 2), torch.randn(8)
    one, other = factorize_conv2d(images, Wa, rank=3, biasA=bias), factorize_conv2d(images, Wa, rank=3, biasB=bias)
    assert one.bias is not None
    assert other.bias is not None
    assert torch.equal(one.bias, other.bias)
    assert not torch.allclose(one.bias, factorize_conv2d(images, Wa, rank=3).bias)


@given(st.integers(0, 99), st.sampled_from([0, 1, -1]), st.sampled_from([torch.float32, torch.float64, torch.float16]))
def test_a_truncation_error_is_a_share_of_the_variance_along_any_axis(seed: int, axis: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    target = (torch.randn(4, 5, 6) + 3).to(dtype)
    assert truncation_error(target, target, axis) == 0
    others = [other for other in range(3) if other != axis % 3]
    mean = target.double().mean(others, keepdim=True).expand(target.shape)
    assert truncation_error(target, mean, axis) == pytest.approx(1)
    half = mean + (target.double() - mean) / 2
    assert truncation_error(target, half, axis) == pytest.approx(0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_there_is_no_variance_only_rounding_is_forgiven(dtype: torch.dtype) -> None:
    target = torch.full((50, 3), 1000.0, dtype=dtype)
    rounding = 1000 * torch.finfo(dtype).eps
    assert truncation_error(target, target + 2 * rounding) == 0
    assert truncation_error(target, target + 20 * rounding) == float("inf")
    assert truncation_error(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 3, dtype=torch.int64)) == 0
    assert truncation_error(torch.zeros(4, 3, dtype=torch.int64), torch.ones(4, 3, dtype=torch.int64)) == float("inf")


def test_present_factors_without_a_bias_stay_without_one() -> None:
    Wa, Wb = torch.randn(6, 3).double(), torch.randn(3, 5).double()
    kept = factorize_matrix(X, Y, Wa, Wb, rank=3)
    assert (kept.bias, kept.rank) == (None, -1)
    assert kept.nmse == pytest.approx(truncation_error(Y, X @ Wa @ Wb))


@pytest.mark.parametrize("rank", [2, 5])
def test_a_solution_is_of_the_present_weights_type(rank: int) -> None:
    found = factorize_matrix(X, Y, WA.float(), rank=rank)
    parts = [part for part in (found.Wa, found.Wb, found.bias) if part is not None]
    assert {part.dtype for part in parts} == {torch.float32}
    assert found.nmse == pytest.approx(factorize_matrix(X, Y, WA, rank=rank).nmse, rel=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [2, 4])
def test_a_convolution_solution_is_the_optimum_of_its_patches(groups: int, rank: int) -> None:
    torch.manual_seed(0)
    images = torch.einsum("bchw,cd->bdhw", torch.randn(24, 6, 7, 6), torch.randn(6, 6)).double()
    Wa, bias = torch.randn(6, 6 // groups, 3, 2).double(), torch.randn(6).double()
    solution = factorize_conv2d(images, Wa, rank=rank, biasA=bias, groups=groups)
    exact = F.conv2d(images, Wa, bias, groups=groups).movedim(1, -1).flatten(0, -2)
    patches = F.unfold(images, (3, 2)).movedim(1, -1).flatten(0, -2)
    parts = zip(patches.chunk(groups, 1), exact.chunk(groups, 1), Wa.chunk(groups), strict=True)
    found = [predict(x, factorize_matrix(x, y, w.flatten(1).mT, rank=rank // groups)) for x, y, w in parts]
    assert solution.nmse == pytest.approx(truncation_error(exact, torch.cat(found, 1)), rel=1e-3)


def test_images_of_another_type_are_those_of_the_weights() -> None:
    torch.manual_seed(0)
    images, Wa = torch.randn(4, 4, 6, 7), torch.randn(8, 4, 3, 3).double()
    found, same = factorize_conv2d(images, Wa, rank=3), factorize_conv2d(images.double(), Wa, rank=3)
    assert found.Wa.dtype == torch.float64
    assert torch.equal(found.Wa, same.Wa)


def test_a_single_output_is_one_kernel() -> None:
    assert factorize_conv2d(torch.randn(2, 4, 6, 6), torch.randn(1, 4, 3, 3), rank=1).rank == -1

"""The two solvers: the least-squares optimum of a rank, and errors that are measured."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ranksearch.factorize import LowRankSolution, factorize_conv2d, factorize_matrix
from ranksearch.factorize.solver import truncation_error


def problem(seed: int, rows: int, wide: int, out: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    X = torch.randn(rows, wide).double() @ torch.randn(wide, wide).double() + 2
    Wa = torch.randn(wide, out).double()
    return X, X @ Wa + 0.3 * torch.randn(rows, out).double() - 1, Wa


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
BAD = [
    ({"rank": 0}, "latent size 0"),
    ({"rank": -2}, "latent size -2"),
    ({"rank": 1.5}, "latent size 1.5"),
    ({"X": X[:0], "Y": Y[:0]}, "is empty"),
    ({"X": X * float("nan")}, "not finite"),
    ({"Y": Y[:7]}, "do not fit"),
    ({"Wa": WA[:4]}, "do not fit"),
    ({"Wb": torch.zeros(4, 5)}, "does not fit"),
    ({"bias": torch.zeros(4)}, "bias"),
]


@pytest.mark.parametrize(("wrong", "said"), BAD)
def test_matrices_that_do_not_fit_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        factorize_matrix(**({"X": X, "Y": Y, "Wa": WA} | wrong))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rank": 0}, "latent size 0"),
        ({"X": torch.zeros(2, 5, 6, 6)}, "do not fit"),
        ({"X": torch.zeros(0, 4, 6, 6)}, "is empty"),
        ({"X": torch.full((2, 4, 6, 6), float("inf"))}, "not finite"),
        ({"Wb": torch.zeros(8, 5, 1, 1)}, "does not fit Wa"),
        ({"biasA": torch.zeros(3)}, "bias"),
        ({"biasB": torch.zeros(3)}, "bias"),
        ({"X": torch.randn(2, 4, 2, 2)}, "cannot go through"),
    ],
)
def test_convolutions_that_do_not_fit_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        factorize_conv2d(**({"X": torch.randn(2, 4, 6, 6), "Wa": torch.randn(8, 4, 3, 3)} | wrong))


def test_biases_of_both_factors_are_kept_together() -> None:
    X, Wa, Wb = torch.randn(2, 4, 6, 6).double(), torch.randn(5, 4, 3, 3).double(), torch.randn(8, 5, 1, 1).double()
    first, second = torch.randn(5).double(), torch.randn(8).double()
    exact = F.conv2d(F.conv2d(X, Wa, first), Wb, second)
    kept = factorize_conv2d(X, Wa, Wb, 5, first, second)
    assert torch.allclose(F.conv2d(F.conv2d(X, kept.Wa), Wb, kept.bias), exact)
    lower = factorize_conv2d(X, Wa, Wb, 4, first, second)
    assert lower.Wb is not None
    found = F.conv2d(F.conv2d(X, lower.Wa), lower.Wb, lower.bias)
    assert lower.nmse == pytest.approx(truncation_error(exact, found, axis=1))

"""What the two solvers take, and what they say of what they do not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest
import torch
from problems import problem
from torch import Tensor

from ranksearch.errors import DataError, PlanError
from ranksearch.factorize import LowRankSolution, factorize_conv2d, factorize_matrix

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
        ({"X": torch.randn(2, 4, 2, 2)}, "is too small for the kernel"),
    ],
)
def test_convolutions_that_do_not_fit_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        factorize_conv2d(**({"X": torch.randn(2, 4, 6, 6), "Wa": torch.randn(8, 4, 3, 3)} | wrong))


SOLVERS: list[tuple[Callable[..., LowRankSolution], dict[str, Tensor], set[tuple[str, int]]]] = [
    (
        factorize_matrix,
        {"X": X, "Y": Y, "Wa": torch.randn(6, 3), "Wb": torch.randn(3, 5), "bias": torch.randn(5)},
        set(),
    ),
    (
        factorize_conv2d,
        {
            "X": torch.randn(3, 4, 6, 7),
            "Wa": torch.randn(5, 4, 3, 2),
            "Wb": torch.randn(8, 5, 1, 1),
            "biasA": torch.randn(5),
            "biasB": torch.randn(8),
        },
        {("X", 0), ("X", 2), ("X", 3), ("Wa", 2), ("Wa", 3)},  # the images' number and size, and the kernel's
    ),
]


@pytest.mark.parametrize(("solve", "given", "free"), SOLVERS)
def test_every_tensor_must_hold_finite_numbers_and_is_named(
    solve: Callable[..., LowRankSolution], given: dict[str, Tensor], free: set[tuple[str, int]]
) -> None:
    assert solve(**given, rank=2).rank == 2
    for name, tensor in given.items():
        for wrong in (float("nan"), float("inf")):
            broken = tensor.clone()
            broken.view(-1)[-1] = wrong
            with pytest.raises(DataError, match=f"^{name} has values that are not finite: remove them$"):
                solve(**{**given, name: broken}, rank=2)
            rest = {key: value for key, value in given.items() if key not in ("Wb", "biasA")}
            if name in ("bias", "biasB"):  # the last, where others before it are None
                with pytest.raises(DataError, match=f"^{name} has values that are not finite"):
                    solve(**{**rest, name: broken}, rank=2)
        with pytest.raises(DataError, match=rf"^{name} of shape \[0.*\] is empty: give at least one example$"):
            solve(**{**given, name: tensor[:0]}, rank=2)


@pytest.mark.parametrize(("solve", "given", "free"), SOLVERS)
def test_another_size_along_any_axis_is_refused(
    solve: Callable[..., LowRankSolution], given: dict[str, Tensor], free: set[tuple[str, int]]
) -> None:
    for name, tensor in given.items():
        for other in (tensor[None], tensor[..., None]):
            with pytest.raises(DataError, match=r"not fit.*: give "):
                solve(**{**given, name: other}, rank=2)
        for axis in range(tensor.ndim):
            larger = {**given, name: torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)}
            if (name, axis) in free:
                assert solve(**larger, rank=2).rank == 2
            else:
                with pytest.raises(DataError, match=r"not fit.*: give "):
                    solve(**larger, rank=2)


@pytest.mark.parametrize(("solve", "names"), [(factorize_matrix, "X Y Wa Wb bias"), (factorize_conv2d, "X Wa Wb")])
def test_signatures_are_those_of_composer(solve: Callable[..., LowRankSolution], names: str) -> None:
    known = inspect.signature(solve).parameters
    assert list(known)[: len(names.split())] == names.split()
    assert (known["rank"].default, known["n_iters"].default) == (0.25, 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"Y": Y[:7]}, "X [20, 6], Y [7, 5] and Wa [6, 3] do not fit: give [N, D], [N, M] and [D, k]"),
        ({"Wa": WA, "Wb": None, "Y": X}, "Wa [6, 5] does not fit Y [20, 6]: give [k, M]"),
        ({"Wb": torch.ones(4, 5)}, "Wb [4, 5] does not fit Y [20, 5] and Wa [6, 3]: give [k, M]"),
        ({"bias": torch.ones(4)}, "bias [4] does not fit Y [20, 5]: give [M]"),
    ],
)
def test_matrices_that_do_not_fit_are_told_with_their_shapes(wrong: dict[str, Tensor], said: str) -> None:
    given = {"X": X, "Y": Y, "Wa": torch.ones(6, 3), "Wb": torch.ones(3, 5), "bias": torch.ones(5)}
    with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
        factorize_matrix(**{**given, **wrong})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"X": torch.ones(2, 5, 6, 6)},
            "X [2, 5, 6, 6] and Wa [6, 4, 3, 3] do not fit: give [B, C, H, W] and [k, C, kh, kw]",
        ),
        ({"Wb": torch.ones(8, 5, 1, 1)}, "Wb [8, 5, 1, 1] does not fit Wa [6, 4, 3, 3]: give [O, k, 1, 1]"),
        ({"biasA": torch.ones(8)}, "biasA [8] does not fit 6 outputs: give one number for each"),
        ({"biasB": torch.ones(6)}, "biasB [6] does not fit 8 outputs: give one number for each"),
    ],
)
def test_kernels_that_do_not_fit_are_told_with_their_shapes(wrong: dict[str, Tensor], said: str) -> None:
    given = {"X": torch.ones(2, 4, 6, 6), "Wa": torch.ones(6, 4, 3, 3), "Wb": torch.ones(8, 6, 1, 1)}
    with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
        factorize_conv2d(**{**given, **wrong})


def test_without_a_rank_it_is_a_quarter_of_the_smaller_side() -> None:
    assert factorize_matrix(X, Y, WA).rank == 1
    assert factorize_conv2d(torch.randn(2, 8, 6, 6), torch.randn(12, 8, 3, 3)).rank == 2


def test_ranks_are_whole_groups_and_images_as_large_as_the_kernel() -> None:
    images, kernel = torch.randn(2, 4, 6, 6), torch.randn(8, 2, 3, 3)
    with pytest.raises(PlanError, match="latent size 3 for 'convolution' is not a multiple of its 2 groups: use 2"):
        factorize_conv2d(images, kernel, rank=3, groups=2)
    with pytest.raises(DataError, match=r"is too small for the kernel \(.*size.*\): give larger images"):
        factorize_conv2d(images[:, :, :2], kernel, rank=2, groups=2)

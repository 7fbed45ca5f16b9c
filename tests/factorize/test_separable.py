"""Laws of the schemes that split a kernel."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import PLANES, convolutions
from torch import Tensor, nn

from ranksearch.errors import PlanError
from ranksearch.factorize import FactorizedConv2d, collect_statistics, decompose, decompose_schemes
from ranksearch.factorize.als import FEWEST_ROWS_TO_COMBINE, LEAST_RIDGE, AlternatingLeastSquares, cross_validated_error
from ranksearch.factorize.separable import FEW_RANKS, SeparableDecomposition
from ranksearch.factorize.shapes import describe, joined_settings, settings_of, split_settings
from ranksearch.factorize.solution import truncation_error
from ranksearch.plan import FIRST_AXES, SCHEMES

SPLITS = SCHEMES[1:]


HEIGHT, WIDTH = 10, 9
layers = convolutions(HEIGHT, WIDTH, PLANES)


def images(layer: nn.Conv2d, count: int = 6, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Tensor:
    """Maps whose channels and neighbours resemble each other."""
    mixed = torch.einsum(
        "bchw,cd->bdhw",
        torch.randn(count, layer.in_channels, *size),
        torch.randn(2, 64, 64).sum(0)[: layer.in_channels, : layer.in_channels],
    )
    smooth = nn.functional.avg_pool2d(mixed, 3, 1, 1)
    return (torch.relu(2 * smooth + 0.3 * mixed) + 0.1).to(layer.weight.dtype)


def joined(layer: nn.Conv2d, decomposition: Any, rank: int, scheme: str) -> nn.Sequential:
    """Both factors as plain convolutions, of any rank: also beyond break-even, which no factorized layer takes."""
    factors = decomposition.factors(layer, rank)
    first, second = split_settings(settings_of(layer), scheme)
    one = nn.Conv2d(layer.in_channels, rank, bias=False, **first).double()
    two = nn.Conv2d(rank, layer.out_channels, **second).double()
    with torch.no_grad():
        one.weight.copy_(factors.down)
        two.weight.copy_(factors.up)
        assert two.bias is not None
        two.bias.copy_(factors.bias)
    return nn.Sequential(one, two)


def full_rank(layer: nn.Conv2d, scheme: str) -> int:
    """Rows or columns of the matrix that is decomposed, whichever are fewer, over all groups."""
    height, width = layer.kernel_size
    rows, columns = FIRST_AXES[scheme]
    piece = layer.in_channels // layer.groups * (height if rows else 1) * (width if columns else 1)
    outputs = layer.out_channels // layer.groups * (1 if rows else height) * (1 if columns else width)
    return layer.groups * min(piece, outputs)


@given(layers, st.sampled_from(SCHEMES), st.booleans())
def test_full_rank_reproduces_the_layer_in_the_interior_and_at_the_borders(
    layer: nn.Conv2d, scheme: str, with_data: bool
) -> None:
    statistics = collect_statistics(nn.Sequential(layer), [images(layer)], ["0"])["0"] if with_data else None
    decomposition = decompose(layer, statistics, scheme=scheme)
    unseen = torch.randn(2, layer.in_channels, HEIGHT + 1, WIDTH).double()
    with torch.no_grad():
        again, exact = joined(layer, decomposition, full_rank(layer, scheme), scheme)(unseen), layer(unseen)
    assert again.shape == exact.shape
    assert torch.allclose(again, exact, atol=1e-8)


@given(layers, st.sampled_from(SCHEMES))
def test_settings_are_dealt_out_and_joined_again(layer: nn.Conv2d, scheme: str) -> None:
    first, second = split_settings(settings_of(layer), scheme)
    one = nn.Conv2d(layer.in_channels, 2 * layer.groups, **first)
    two = nn.Conv2d(2 * layer.groups, layer.out_channels, **second)
    found = joined_settings(one, two, scheme)
    expected = settings_of(layer)
    if expected["padding"] == "valid" and scheme != "full":
        expected["padding"], found["padding"] = "valid", "valid" if found["padding"] in ("valid", (0, 0)) else None
    assert found == expected


def latent_problem(split: SeparableDecomposition, ranks: int) -> AlternatingLeastSquares:
    return split.problem.latent(split.problem.whole, split.scheme, ranks)[2]


@given(layers, st.sampled_from(SPLITS), st.integers(1, 3))
def test_the_error_of_the_quadratic_form_is_the_measured_error(layer: nn.Conv2d, scheme: str, rank: int) -> None:
    seen = images(layer)
    statistics = collect_statistics(nn.Sequential(layer), [seen], ["0"])["0"]
    split = decompose(layer, statistics, scheme=scheme)
    assert isinstance(split, SeparableDecomposition)
    rows = max(split.problem.limits[scheme], rank, FEWEST_ROWS_TO_COMBINE)
    problem = latent_problem(split, min(rows, split.problem.orders[scheme].shape[1]))
    error = problem.moments.error(*problem.ridged(split.ridge).solve(rank))
    with torch.no_grad():
        measured = truncation_error(layer(seen), joined(layer, split, rank * layer.groups, scheme)(seen), axis=1)
    assert error == pytest.approx(measured, rel=1e-6, abs=1e-10)


@given(layers, st.sampled_from(SPLITS), st.integers(1, 3))
def test_alternating_updates_only_lower_the_error(layer: nn.Conv2d, scheme: str, rank: int) -> None:
    statistics = collect_statistics(nn.Sequential(layer), [images(layer)], ["0"])["0"]
    split = decompose(layer, statistics, scheme=scheme)
    assert isinstance(split, SeparableDecomposition)
    problem = latent_problem(split, split.problem.orders[scheme].shape[1]).ridged(LEAST_RIDGE)
    errors = [problem.moments.error(*problem.solve(rank, turns)) for turns in range(4)]
    assert all(after <= before * (1 + 1e-6) + 1e-12 for before, after in itertools.pairwise(errors))


@given(layers, st.sampled_from(SPLITS))
def test_one_cholesky_factor_gives_the_held_out_error_of_every_rank(layer: nn.Conv2d, scheme: str) -> None:
    seen = images(layer, 12)
    statistics = collect_statistics(nn.Sequential(layer), [seen], ["0"])["0"]
    split = decompose(layer, statistics, scheme=scheme)
    assert isinstance(split, SeparableDecomposition)
    for fold in split.problem.folds(scheme):
        problem = fold.problem.ridged(1e-3)
        errors = problem.nested_errors(fold.held_out)
        assert errors[0] == 1
        for rank in range(1, len(errors)):
            solved = fold.held_out.error(*problem.solve(rank, turns=0))
            assert float(errors[rank]) == pytest.approx(solved, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("scheme", SPLITS)
def test_gradient_descent_finds_hardly_better_factors(scheme: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, padding=1).double()
    seen = images(layer, 16)
    ours = FactorizedConv2d.from_conv2d(layer, 4, input=seen, scheme=scheme)
    with torch.no_grad():
        exact = layer(seen)
        error = truncation_error(exact, ours(seen), axis=1)
    optimizer = torch.optim.LBFGS(ours.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (ours(seen) - exact).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        assert error <= 1.15 * truncation_error(exact, ours(seen), axis=1)


@given(layers)
def test_expected_errors_start_at_everything_and_never_grow(layer: nn.Conv2d) -> None:
    statistics = collect_statistics(nn.Sequential(layer), [images(layer)], ["0"])["0"]
    for scheme, decomposition in decompose_schemes(layer, statistics).items():
        errors = decomposition.expected_errors()
        assert len(errors) > describe(layer).break_even_rank(scheme)
        assert errors[0] == pytest.approx(1, abs=1e-6)
        assert all(0 <= after <= before for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_expected_errors_are_those_on_images_that_were_not_seen(scheme: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 12, 3, padding=1)
    mix = nn.Conv2d(12, 12, 5, padding=2).requires_grad_(False)
    seen, unseen = (torch.relu(mix(torch.randn(count, 12, 8, 8))) for count in (48, 512))
    statistics = collect_statistics(nn.Sequential(layer), [seen], ["0"])["0"]
    decomposition = decompose(layer, statistics, scheme=scheme)
    expected = decomposition.expected_errors()
    with torch.no_grad():
        for rank in (2, 5, 8):
            twin = FactorizedConv2d.from_conv2d(layer, rank, statistics=statistics, scheme=scheme)
            assert expected[rank] == pytest.approx(truncation_error(layer(unseen), twin(unseen), axis=1), rel=0.1)


@pytest.mark.parametrize("scheme", SPLITS)
def test_scarce_patches_are_helped_by_white_ones(scheme: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 3, padding=1)
    mix = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)
    seen, unseen = (torch.relu(mix(torch.randn(count, 16, 6, 6))) for count in (4, 256))
    statistics = collect_statistics(nn.Sequential(layer), [seen], ["0"])["0"]
    split = decompose(layer, statistics, scheme=scheme)
    assert isinstance(split, SeparableDecomposition)
    assert split.ridge > LEAST_RIDGE
    errors = []
    for ridge in (split.ridge, LEAST_RIDGE):
        plain = dataclasses.replace(split, problem=dataclasses.replace(split.problem, given_ridge=ridge))
        twin = FactorizedConv2d(16, 16, 3, 5, scheme, padding=1)
        twin._set_factors(plain.factors(layer, 5))
        with torch.no_grad():
            errors.append(truncation_error(layer(unseen), twin(unseen), axis=1))
    assert errors[0] < errors[1]


DEGENERATE = {
    "one image": lambda shape: torch.randn(1, *shape[1:]),
    "zero images": lambda shape: torch.zeros(shape),
    "constant images": lambda shape: torch.ones(shape),
    "one pattern": lambda shape: torch.randn(shape[0], 1, 1, 1) * torch.randn(1, *shape[1:2], 1, 1),
    "huge images": lambda shape: 1e15 * torch.randn(shape),
    "dead channels": lambda shape: torch.randn(shape) * (torch.arange(shape[1]) < 3)[:, None, None],
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("weights", ["drawn", "zero"])
@pytest.mark.parametrize("channels", [12, 40])
@pytest.mark.parametrize("scheme", SPLITS)
def test_degenerate_data_give_finite_factors(scheme: str, channels: int, weights: str, kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, 3, padding=1)
    seen = DEGENERATE[kind]((6, channels, 5, 5)).expand(-1, -1, 5, 5).contiguous()
    with torch.no_grad():
        if weights == "zero":
            layer.weight.zero_()
        twin = FactorizedConv2d.from_conv2d(layer, channels // 2, input=seen, scheme=scheme)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in twin.state_dict().values())
        exact = layer(seen).double()
        missed = (twin(seen) - exact).square().mean()
        variance = (exact - exact.mean((0, 2, 3), keepdim=True)).square().mean()
        assert float(missed) <= float(variance) + 1e-6
    statistics = collect_statistics(nn.Sequential(layer), [seen], ["0"])["0"]
    assert all(0 <= error <= 1.001 for error in decompose(layer, statistics, scheme=scheme).expected_errors())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_far_mean_does_not_drown_the_factors(scheme: str) -> None:
    torch.manual_seed(0)
    layer, seen = nn.Conv2d(40, 40, 3), torch.randn(16, 40, 9, 9)
    errors = []
    for shift in (0.0, 3000.0):
        twin = FactorizedConv2d.from_conv2d(layer, 20, input=seen + shift, scheme=scheme).double()
        again = nn.Conv2d(40, 40, 3).double()
        again.load_state_dict(layer.state_dict())
        with torch.no_grad():
            shifted = (seen + shift).double()
            errors.append(truncation_error(again(shifted), twin(shifted), axis=1))
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


@pytest.mark.parametrize("scheme", SPLITS)
def test_loss_aware_factors_lower_the_weighted_error(scheme: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 12, 3, padding=1).double()
    seen = images(layer, 16)
    weights = torch.logspace(0, -2, 12).double()
    statistics = collect_statistics(nn.Sequential(layer), [seen], ["0"])["0"]
    errors = []
    for sensitivity in (torch.diag(weights)[None], None):
        twin = FactorizedConv2d(12, 12, 3, 4, scheme, padding=1).double()
        twin._set_factors(decompose(layer, statistics, sensitivity, scheme).factors(layer, 4))
        with torch.no_grad():
            errors.append(float(((twin(seen) - layer(seen)).square().mean((0, 2, 3)) * weights).sum()))
    assert errors[0] < errors[1]


def test_statistics_that_cannot_serve_are_refused() -> None:
    layer, seen = nn.Conv2d(8, 8, 3), torch.randn(4, 8, 9, 9)
    outputs = collect_statistics(nn.Sequential(layer), [seen], ["0"], ["full"])["0"]
    with pytest.raises(ValueError, match=r"outputs do not serve scheme 'vertical': collect them with schemes=\['vert"):
        decompose(layer, outputs, scheme="vertical")
    other = collect_statistics(nn.Sequential(nn.Conv2d(6, 8, 3)), [seen[:, :6]], ["0"])["0"]
    for scheme in SCHEMES:
        with pytest.raises(
            ValueError, match=r"statistics of \[1, 54\] numbers do not fit the layer's inputs, \[1, 72\]"
        ):
            decompose(layer, other, scheme=scheme)
    nothing = collect_statistics(nn.Sequential(layer), [seen[:0]], ["0"])["0"]
    with pytest.raises(ValueError, match="no rows"):
        decompose(layer, nothing, scheme="vertical")
    for channels in (8, 40):
        for factor in (float("inf"), 1e30):
            layer = nn.Conv2d(channels, 8, 3)
            bad = collect_statistics(nn.Sequential(layer), [torch.randn(4, channels, 9, 9) * factor], ["0"])["0"]
            with pytest.raises(ValueError, match="layer inputs are not finite"):
                decompose(layer, bad, scheme="vertical")
    with pytest.raises(PlanError, match="scheme 'sideways' is unknown"):
        decompose(layer, scheme="sideways")
    with pytest.raises(PlanError, match="'vertical' does not fit"):
        FactorizedConv2d.from_conv2d(nn.Conv2d(8, 8, 1), 2, scheme="vertical")


@pytest.mark.parametrize("scheme", SPLITS)
def test_errors_between_the_ranks_that_are_solved_are_those_that_solving_finds(scheme: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 32, 3, padding=1)
    mix = nn.Conv2d(32, 32, 5, padding=2).requires_grad_(False)
    seen = torch.relu(mix(torch.randn(64, 32, 8, 8)))
    statistics = collect_statistics(nn.Sequential(layer), [seen], ["0"])["0"]
    split = decompose(layer, statistics, scheme=scheme)
    assert isinstance(split, SeparableDecomposition)
    expected, folds = split.expected_errors(), split.problem.folds(scheme)
    problems = [fold.problem.ridged(2 * split.ridge) for fold in folds]
    assert split.limit > FEW_RANKS
    for rank in range(1, split.limit + 1):
        assert expected[rank] == pytest.approx(cross_validated_error(folds, problems, rank, 288), rel=0.1)

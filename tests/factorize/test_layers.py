"""Factorized layers are drop-ins that always save MACs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import PLANES, convolutions
from torch import nn

from ranksearch.cost.macs import count_macs
from ranksearch.errors import PlanError
from ranksearch.factorize import (
    FactorizedConv2d,
    FactorizedLinear,
    LowRankSolution,
    collect_statistics,
    decompose_schemes,
    factorized_like,
    factorizing_could_speedup,
)
from ranksearch.factorize.shapes import describe, settings_of
from ranksearch.factorize.solution import truncation_error
from ranksearch.plan import SCHEMES, LayerChoice, LayerSpec, RankPlan

sizes = st.integers(2, 24)


@given(sizes, sizes, st.integers(1, 3), st.integers(1, 40))
def test_a_latent_size_is_taken_exactly_up_to_the_break_even_rank(
    wide: int, narrow: int, kernel: int, rank: int
) -> None:
    limit = LayerSpec("any", "conv2d", wide, narrow, 1, (kernel, kernel)).break_even_rank()
    if rank <= limit:
        layer = FactorizedConv2d(wide, narrow, kernel, rank)
        assert (layer.in_channels, layer.latent_channels, layer.out_channels) == (wide, rank, narrow)
    else:
        with pytest.raises(PlanError, match=f"break-even rank {limit}"):
            FactorizedConv2d(wide, narrow, kernel, rank)


@pytest.mark.parametrize("size", [0, -1, 1.0, 1.5, 0.0, -0.25, float("nan"), True])
def test_sizes_out_of_range_are_refused(size: float) -> None:
    with pytest.raises(PlanError, match="latent size"):
        FactorizedLinear(16, 16, latent_features=size)


@given(convolutions(11, 9), st.sampled_from(SCHEMES))
def test_the_output_has_the_shape_of_the_layer_it_stands_for(layer: nn.Conv2d, scheme: str) -> None:
    if scheme in describe(layer).schemes:
        x = torch.randn(2, layer.in_channels, 11, 9).double()
        sizes = (layer.in_channels, layer.out_channels)
        twin = FactorizedConv2d(
            *sizes, latent_channels=layer.groups, scheme=scheme, **settings_of(layer), dtype=torch.float64
        )
        assert twin(x).shape == layer(x).shape


def test_the_state_dict_has_the_names_that_others_know() -> None:
    assert list(FactorizedConv2d(8, 8, 3).state_dict()) == ["module0.weight", "module1.weight", "module1.bias"]
    assert list(FactorizedLinear(8, 8, bias=False).state_dict()) == ["module0.weight", "module1.weight"]


def test_grouped_latent_sizes_are_whole_groups() -> None:
    assert FactorizedConv2d(24, 24, 3, groups=4).latent_size == 4  # a quarter of 24 is 6, one of each group
    layer = FactorizedConv2d(16, 16, 3, 8, groups=4)
    assert layer(torch.randn(1, 16, 5, 5)).shape == (1, 16, 3, 3)
    with pytest.raises(PlanError, match="not a multiple of its 4 groups: use 4"):
        FactorizedConv2d(16, 16, 3, 6, groups=4)
    with pytest.raises(PlanError, match="break-even rank 12"):
        FactorizedConv2d(16, 16, 3, 16, groups=4)


@pytest.mark.parametrize(
    ("module", "size", "expected"),
    [
        (FactorizedLinear(64, 64, latent_features=20), 19, True),
        (FactorizedLinear(64, 64, latent_features=20), 20, False),
        (FactorizedConv2d(64, 64, 3, 20), 19, True),
        (FactorizedConv2d(16, 16, 3, 8, groups=2), 3, False),
        (nn.ReLU(), 1, False),
    ],
)
def test_a_factorized_layer_gains_by_any_smaller_size_and_other_modules_by_none(
    module: nn.Module, size: float, expected: bool
) -> None:
    assert factorizing_could_speedup(module, size) is expected


@given(convolutions(40, 40, PLANES, most=20), st.sampled_from(SCHEMES))
def test_what_gains_has_fewer_macs_on_large_maps(layer: nn.Conv2d, scheme: str) -> None:
    shape, dense = (layer.in_channels, 400, 400), nn.Sequential(layer.float()).to("meta")
    before, groups = count_macs(dense, shape), layer.groups
    for rank in range(groups, 41, 3 * groups):
        if factorizing_could_speedup(layer, rank, scheme):
            twin = factorized_like(dense, RankPlan({"0": LayerChoice(rank, scheme)}))
            assert count_macs(twin, shape) < before * 1.03  # at the borders the map between may be a little larger


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 5), st.sampled_from(SCHEMES))
def test_a_layer_gains_exactly_while_its_factors_have_fewer_weights(
    wide: int, narrow: int, height: int, width: int, scheme: str
) -> None:
    settings = (wide, narrow, (height, width))
    layer, spec = nn.Conv2d(*settings), LayerSpec("", "conv2d", wide, narrow, 1, (height, width))
    can = scheme in spec.schemes
    for size in range(1, 41):
        fewer = can and spec.weights_at(size, scheme) < layer.weight.numel()
        assert factorizing_could_speedup(layer, size, scheme) is fewer
    if can:
        largest = FactorizedConv2d.max_allowed_latent_channels(*settings, scheme)
        assert largest == FactorizedConv2d.max_allowed_latent_features(*settings, scheme)
        assert spec.weights_at(largest, scheme) < layer.weight.numel() <= spec.weights_at(largest + 1, scheme)
        assert FactorizedConv2d(*settings, largest, scheme).latent_size == largest


def test_schemes_that_do_not_exist_are_named() -> None:
    layer = nn.Conv2d(8, 8, 3)
    with pytest.raises(PlanError, match="scheme 'sideways' is unknown: use one of full, vertical"):
        factorizing_could_speedup(layer, 2, "sideways")
    with pytest.raises(PlanError, match="scheme 'sideways' is unknown"):
        FactorizedConv2d(8, 8, 3, 2, scheme="sideways")
    with pytest.raises(PlanError, match="scheme 'sideways' is unknown"):
        collect_statistics(nn.Sequential(layer), [torch.randn(2, 8, 5, 5)], ["0"], ["sideways"])
    with pytest.raises(PlanError, match="scheme 'sideways' is unknown"):
        decompose_schemes(layer, schemes=["sideways"])


LAYERS = [
    nn.Conv2d(12, 10, 3, stride=2, padding=1),
    nn.Conv2d(12, 10, (2, 5), padding="same", dilation=(1, 2)),
    nn.Conv2d(12, 10, (7, 1), padding=(3, 0), padding_mode="reflect"),
    nn.Conv2d(12, 10, (1, 3), padding="same", padding_mode="circular", bias=False),
    nn.Conv2d(12, 12, 3, groups=2),
    nn.Conv2d(6, 24, 1, stride=2),
    nn.Linear(12, 10),
    nn.Linear(6, 30, bias=False),
]


def batch(layer: nn.Module, count: int = 64) -> torch.Tensor:
    torch.manual_seed(1)
    if isinstance(layer, nn.Linear):
        return torch.randn(count, layer.in_features) @ torch.randn(layer.in_features, layer.in_features)
    assert isinstance(layer, nn.Conv2d)
    wide = layer.in_channels
    return torch.einsum("bchw,cd->bdhw", torch.randn(count // 8, wide, 9, 9), torch.randn(wide, wide))


def made(layer: nn.Module, size: int, scheme: str, **how: torch.Tensor) -> FactorizedConv2d | FactorizedLinear:
    if isinstance(layer, nn.Linear):
        return FactorizedLinear.from_linear(layer, size, **how)
    assert isinstance(layer, nn.Conv2d)
    return FactorizedConv2d.from_conv2d(layer, size, scheme=scheme, **how)


every_layer_by_every_scheme = pytest.mark.parametrize(
    ("layer", "scheme"), [(layer, scheme) for layer in LAYERS for scheme in describe(layer).schemes], ids=str
)


@every_layer_by_every_scheme
def test_trained_weights_are_kept_and_better_with_data(layer: nn.Module, scheme: str) -> None:
    x = batch(layer)
    errors = {}
    with torch.no_grad():
        exact = layer(x)
        for size in (2, 4):
            for name, how in (("weights", {}), ("data", {"input": x})):
                errors[name, size] = float((made(layer, size, scheme, **how)(x) - exact).square().mean())
    variance = float(exact.var())
    assert errors["data", 2] <= errors["weights", 2]
    assert errors["data", 4] <= errors["weights", 4]
    assert errors["data", 4] < errors["data", 2] < variance


@every_layer_by_every_scheme
def test_lowering_the_rank_loses_what_its_solution_says(layer: nn.Module, scheme: str) -> None:
    x = batch(layer)
    low = made(layer, 4, scheme, input=x)
    kept = {name: tensor.clone() for name, tensor in low.state_dict().items()}
    solution = low.solution_for_rank(x, 2)
    assert all(torch.equal(kept[name], tensor) for name, tensor in low.state_dict().items())
    with torch.no_grad():
        before = low(x)
        low.set_rank(x, 2)
        after = low(x)
    assert low.latent_size == 2
    assert low.scheme == scheme
    assert solution.rank == 2
    axis = -1 if isinstance(layer, nn.Linear) else 1
    assert truncation_error(before, after, axis) == pytest.approx(solution.nmse, rel=1e-4, abs=1e-9)
    assert not low.should_factorize(2)


def test_ranks_go_down_only_and_equal_ones_do_nothing() -> None:
    layer, x = FactorizedLinear(16, 16, latent_features=4), torch.randn(32, 16)
    kept = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.set_rank(x, 4)
    with pytest.raises(ValueError, match="latent size 5 exceeds the current 4"):
        layer.set_rank(x, 5)
    same = layer.solution_for_rank(x, 4)
    assert same.rank == -1
    with pytest.raises(ValueError, match="rank -1 is not factorized"):
        layer.apply_solution(same)
    with pytest.raises(ValueError, match="does not fit the layer"):
        layer.apply_solution(FactorizedLinear(16, 12, latent_features=5).solution_for_rank(x, 3))
    for wrong in (torch.randn(0, 16), torch.randn(8, 15), torch.full((8, 16), float("nan"))):
        with pytest.raises(ValueError, match="input of shape"):
            layer.set_rank(wrong, 2)
    for rank in (0, -1, 1.5):
        with pytest.raises(ValueError, match="latent size"):
            layer.set_rank(x, rank)
    assert all(torch.equal(kept[name], tensor) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize(
    "make",
    [
        *(functools.partial(FactorizedConv2d, 8, 8, 3, 4, scheme, stride=2, padding=1) for scheme in SCHEMES),
        functools.partial(FactorizedLinear, 8, 8, latent_features=3),
    ],
)
def test_a_state_dict_gives_its_outputs_back(make: Callable[[], FactorizedConv2d | FactorizedLinear]) -> None:
    layer, twin = make(), make()
    x = torch.randn(2, 8, 6, 6) if isinstance(layer, FactorizedConv2d) else torch.randn(2, 8)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))
    layer.reset_parameters()
    assert not torch.equal(twin(x), layer(x))


def test_a_linear_layer_takes_any_leading_axes() -> None:
    layer, x = FactorizedLinear(8, 8, latent_features=2), torch.randn(2, 3, 5, 8)
    assert torch.allclose(layer(x), layer(x.flatten(0, -2)).view_as(x), atol=1e-6)


@every_layer_by_every_scheme
def test_one_example_is_enough(layer: nn.Module, scheme: str) -> None:
    x = batch(layer)[:1]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in made(layer, 4, scheme, input=x).state_dict().values())


def test_flags_and_formats_are_carried_over() -> None:
    linear = nn.Linear(16, 16)
    linear.bias.requires_grad_(False)
    factorized = FactorizedLinear.from_linear(linear.eval(), 4)
    assert [parameter.requires_grad for parameter in factorized.parameters()] == [True, True, False]
    assert not factorized.module0.training
    conv = FactorizedConv2d(16, 16, 3, 8).to(memory_format=torch.channels_last)
    conv.set_rank(torch.randn(4, 16, 6, 6), 4)
    assert conv.module0.weight.is_contiguous(memory_format=torch.channels_last)


def test_grouped_ranks_are_refused_unless_whole() -> None:
    layer, x = FactorizedConv2d(16, 16, 3, 8, groups=4), torch.randn(4, 16, 6, 6)
    for size in (11, 7, 1):
        with pytest.raises(ValueError, match="not a multiple of its 4 groups"):
            layer.set_rank(x, size)
    layer.set_rank(x, 4)
    assert layer.latent_size == 4
    assert not factorizing_could_speedup(nn.Conv2d(16, 16, 3, groups=4), 13)
    assert not factorizing_could_speedup(nn.LazyConv2d(8, 3), 2)


@pytest.mark.parametrize(
    ("layer", "x", "said"),
    [
        (nn.Conv2d(8, 8, 5), torch.randn(2, 8, 3, 3), "is too small for the layer"),
        (nn.Conv2d(8, 8, 3), torch.randn(2, 8, 9, 9).double(), "does not fit weights of torch.float32"),
        (nn.Conv2d(8, 8, 3), torch.randn(2, 7, 9, 9), "does not fit the layer"),
        (FactorizedConv2d(8, 8, 3, 4), torch.randn(2, 8, 9, 9), "is not a plain Conv2d"),
    ],
)
def test_inputs_and_layers_that_do_not_fit_are_refused(layer: nn.Module, x: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FactorizedConv2d.from_conv2d(layer, 2, input=x)


def test_a_solution_that_does_not_fit_changes_nothing() -> None:
    layer = FactorizedLinear(16, 16, latent_features=5)
    kept = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for bias in (torch.randn(7), torch.full((16,), float("nan"))):
        with pytest.raises(ValueError, match="does not fit 16 outputs or is not finite: find one"):
            layer.apply_solution(LowRankSolution(torch.randn(16, 3), torch.randn(3, 16), bias, 3, 0.0))
    assert all(torch.equal(kept[name], tensor) for name, tensor in layer.state_dict().items())

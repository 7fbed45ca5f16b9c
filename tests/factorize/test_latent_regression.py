"""Laws of the factors that are solved by regression on latent values."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import PLANES, convolutions
from torch import Tensor, nn

from ranksearch.factorize import FactorizedConv2d, FactorizedLinear, collect_statistics, decompose
from ranksearch.factorize.latent_regression import regress_on_latent_values
from ranksearch.factorize.shapes import describe, settings_of
from ranksearch.factorize.solution import truncation_error
from ranksearch.factorize.statistics import Layer
from ranksearch.factorize.thinning import as_rows
from ranksearch.plan import SCHEMES

layers = convolutions(8, 8, PLANES)


def solved(layer: Layer, twin: FactorizedConv2d | FactorizedLinear, inputs: Tensor, **more: Tensor) -> nn.Module:
    """The twin with its factors solved on inputs."""
    twin = copy.deepcopy(twin)
    with torch.no_grad():
        mean = as_rows(layer(inputs), layer).mean(0)
        twin._set_factors(regress_on_latent_values(layer, twin, inputs, mean, **more))
    return twin


def smooth(count: int, channels: int, size: int) -> Tensor:
    """Maps whose channels and neighbours resemble each other."""
    mixed = torch.einsum("bchw,cd->bdhw", torch.randn(count, channels, size, size), torch.randn(channels, channels))
    return torch.relu(2 * nn.functional.avg_pool2d(mixed, 3, 1, 1) + 0.3 * mixed)


@torch.no_grad()
def error(layer: Layer, network: nn.Module, inputs: Tensor) -> float:
    """Share of the layer's variance that a network in its place loses."""
    return truncation_error(layer(inputs), network(inputs), axis=1 if isinstance(layer, nn.Conv2d) else -1)


@given(layers, st.sampled_from(SCHEMES))
def test_a_layer_of_low_rank_is_reproduced_whatever_its_geometry(layer: nn.Conv2d, scheme: str) -> None:
    spec = describe(layer)
    assume(scheme in spec.schemes and spec.break_even_rank(scheme) >= layer.groups)
    twin = FactorizedConv2d(
        layer.in_channels, layer.out_channels, latent_channels=layer.groups, scheme=scheme, **settings_of(layer)
    ).double()
    dense = twin._product()
    found = solved(dense, twin, smooth(12, layer.in_channels, 8).double())
    assert error(dense, found, smooth(3, layer.in_channels, 9).double()) < 1e-6


@given(st.integers(1, 3), st.integers(2, 6))
def test_a_linear_layer_of_low_rank_is_reproduced(rank: int, tokens: int) -> None:
    twin = FactorizedLinear(12, 10, rank)
    dense = twin._product()
    assert error(dense, solved(dense, twin, torch.randn(8, tokens, 12)), torch.randn(4, tokens, 12)) < 1e-6


@pytest.mark.parametrize("scheme", SCHEMES)
def test_few_rows_serve_as_well_as_for_covariances_of_whole_patches(scheme: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3, padding=1)
    with torch.no_grad():  # decaying singular values, as trained layers have
        left, values, right = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
        layer.weight.copy_(((left / torch.arange(1, len(values) + 1) ** 0.7) @ right).view_as(layer.weight))
    inputs = smooth(72, 64, 6)
    few, unseen = inputs[:8], inputs[8:]  # 288 rows of 576 numbers
    statistics = collect_statistics(layer, [few], [""])[""]
    for rank in (8, 20):
        twin = FactorizedConv2d(64, 64, 3, rank, scheme, padding=1)
        found = error(layer, solved(layer, twin, few), unseen)
        twin._set_factors(decompose(layer, statistics, scheme=scheme).factors(layer, rank))
        assert found <= 1.06 * error(layer, twin, unseen)


def test_the_mean_is_the_one_that_is_wanted() -> None:
    layer, inputs = nn.Conv2d(12, 12, 3, padding=1), smooth(6, 12, 5)
    twin, mean = FactorizedConv2d(12, 12, 3, 4, "vertical", padding=1), torch.randn(12)
    with torch.no_grad():
        twin._set_factors(regress_on_latent_values(layer, twin, inputs, mean))
        assert torch.allclose(twin(inputs).mean((0, 2, 3)), mean, atol=1e-5)


def test_equal_weights_of_all_outputs_change_nothing_and_others_are_followed() -> None:
    layer, inputs = nn.Conv2d(12, 12, 3, padding=1), smooth(6, 12, 5)
    twin = FactorizedConv2d(12, 12, 3, 4, "horizontal", padding=1)
    plain = solved(layer, twin, inputs)
    equal = solved(layer, twin, inputs, sensitivity=3 * torch.eye(12)[None])
    weights = torch.ones(12)
    weights[0] = 1e4
    first = solved(layer, twin, inputs, sensitivity=torch.diag(weights)[None])
    with torch.no_grad():
        wanted = layer(inputs)
        assert torch.allclose(plain(inputs), equal(inputs), atol=1e-3)
        assert (first(inputs) - wanted)[:, 0].square().mean() < (plain(inputs) - wanted)[:, 0].square().mean() / 4


def test_the_layer_is_unchanged_and_constant_inputs_are_finite() -> None:
    layer = nn.Conv2d(12, 12, 3)
    before, twin = copy.deepcopy(layer.state_dict()), FactorizedConv2d(12, 12, 3, 4)
    found = solved(layer, twin, torch.ones(4, 12, 5, 5))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert all(bool(value.isfinite().all()) for value in found.state_dict().values())
    with torch.no_grad():
        assert torch.allclose(found(torch.ones(2, 12, 5, 5)), layer(torch.ones(2, 12, 5, 5)), atol=1e-5)

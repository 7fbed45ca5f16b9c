"""A proxy weighs every scheme of every layer, by what an error of it does to the network."""

from __future__ import annotations

import pytest
import torch
from conftest import CPU
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ranksearch.allocation.closed_form import closed_form
from ranksearch.allocation.decomposed_model import Proxy, Weights
from ranksearch.allocation.sensitivity import Fisher, Mixture, Probes, Relative
from ranksearch.cost.macs import MacsCost
from ranksearch.data.splits import Splits
from ranksearch.errors import SettingError
from ranksearch.factorize import collect_outputs
from ranksearch.search_space.rules import SpaceSettings
from ranksearch.study.context import SearchContext, SearchInputs, build_context, build_search_space
from ranksearch.study.settings import CalibrationSettings
from ranksearch.training.recipe import Recipe

EVERY = [Relative(), Fisher(), Fisher(0.3), Probes(), Probes(0.5, 0.3), Mixture([Fisher(0.5), Probes(0.5)])]


@pytest.mark.parametrize("proxy", EVERY, ids=repr)
def test_every_scheme_has_a_weight_and_the_model_stays_as_it_was(proxy: Proxy, context: SearchContext) -> None:
    before = {name: tensor.clone() for name, tensor in context.model.state_dict().items()}
    weights = proxy.weights(context)
    assert {name: set(of_layer) for name, of_layer in weights.items()} == {
        layer.spec.name: set(layer.schemes) for layer in context.space.layers
    }
    assert all(0 < weight <= 1 for of_layer in weights.values() for weight in of_layer.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in context.model.state_dict().items())


def flat(weights: Weights) -> list[float]:
    return [weight for of_layer in weights.values() for weight in of_layer.values()]


@pytest.mark.parametrize("kind", [Fisher, Probes])
def test_powers_lead_from_relative_to_the_proxy(kind: type[Fisher | Probes], context: SearchContext) -> None:
    whole = kind().weights(context)
    assert kind(0.0).weights(context) == Relative().weights(context)
    assert flat(Mixture([kind(0.25), kind(0.75)]).weights(context)) == pytest.approx(flat(whole))
    assert len({round(weight, 9) for weight in flat(whole)}) > 1


class TwoBranches(nn.Module):
    """Two layers of one shape, of which one hardly counts."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.stem = nn.Conv2d(3, 8, 3)  # which the rules leave dense
        self.loud, self.faint = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        both = self.loud(x) + self.share * self.faint(x)
        out: Tensor = self.head(torch.relu(both).amax((2, 3)))
        return out


@pytest.mark.parametrize("proxy", [Fisher(), pytest.param(Probes(), marks=pytest.mark.slow)], ids=repr)
def test_a_layer_that_hardly_counts_is_hardly_feared_for(proxy: Proxy, splits: Splits) -> None:
    torch.manual_seed(0)
    model = TwoBranches(0.1).eval()
    with torch.no_grad():
        model.faint.weight.copy_(model.loud.weight)
    space = build_search_space(model, splits, SpaceSettings(), MacsCost(), CPU)
    context = build_context(SearchInputs(model, splits, space, 10**9, Recipe(0), 0, CPU), CalibrationSettings(128, 64))
    weights = proxy.weights(context)
    assert weights.keys() == {"loud", "faint"}
    # Of one shape, weights and inputs, they differ in their share alone, and harm grows with about its square.
    for scheme, weight in weights["faint"].items():
        assert 0.003 < weight / weights["loud"][scheme] < 0.03


@given(st.integers(1, 3), st.integers(0, 2**16))
def test_moments_of_outputs_are_those_of_the_outputs(batches: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * 9, 5))
    images = [torch.randn(3, 4, 5, 5) for _ in range(batches)]
    found = collect_outputs(model, images, ["0", "2"])
    with torch.no_grad():
        maps = model[0](torch.cat(images))
        rows = {"0": maps.movedim(1, -1).reshape(-1, 2, 3), "2": model[2](model[1](maps))[:, None]}
    for name, expected in rows.items():
        assert found[name].count == len(expected)
        for group in range(expected.shape[1]):
            covariance = torch.cov(expected[:, group].T.double(), correction=0)
            assert torch.allclose(found[name].covariance[group], covariance, rtol=1e-4, atol=1e-6)


def test_settings_out_of_range_are_refused() -> None:
    for make in (lambda: Fisher(1.5), lambda: Probes(-0.1), lambda: Probes(error=1.0), lambda: Mixture([])):
        with pytest.raises(SettingError):
            make()
    with pytest.raises(SettingError, match="are not proxies"):
        Mixture(["fisher"])


def test_the_closed_form_avoids_what_is_feared(context: SearchContext) -> None:
    feared = context.space.layers[0].spec.name
    weights = {name: dict.fromkeys(curves, 1.0) for name, curves in context.errors.items()}
    weights[feared] = dict.fromkeys(weights[feared], 1e6)
    budget = context.space.cost.dense // 2
    [calm] = closed_form(context, [budget])
    afraid = context.weighted(weights)
    [careful] = closed_form(afraid, [budget])
    assert feared in calm.layers
    assert feared not in careful.layers

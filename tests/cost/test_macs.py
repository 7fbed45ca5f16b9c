"""What a plan is predicted to cost is what the built network costs, exactly."""

from __future__ import annotations

import random

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from strategies import convolutions
from torch import nn

from ranksearch.cost.base import NetworkCost
from ranksearch.cost.macs import MacsCost, count_macs, count_params
from ranksearch.factorize import factorized_like, profile_layers
from ranksearch.models.cifar import cifar_resnet
from ranksearch.plan import LayerChoice, RankPlan

# Published, in millions, at 224 x 224 (torchvision's documentation, "GFLOPS").
PUBLISHED = {"resnet18": 1814, "resnet50": 4089, "densenet121": 2834, "mobilenet_v3_large": 217, "vgg11_bn": 7609}


def build(name: str) -> nn.Module:
    # RegNet computes its widths with tensors, which must hold numbers.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return cifar_resnet(20, 10) if name == "cifar_resnet20" else torchvision.models.get_model(name)


@pytest.mark.parametrize(
    "name", [*PUBLISHED, "resnext50_32x4d", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t", "cifar_resnet20"]
)
def test_predicted_macs_are_the_measured_ones(name: str) -> None:
    model = build(name)
    shape = (3, 32, 32) if name == "cifar_resnet20" else (3, 224, 224)
    profile = profile_layers(model, torch.empty(1, *shape))
    cost = NetworkCost(MacsCost(), count_macs(model, shape), {spec.name: spec for spec in profile.layers})
    draw = random.Random(name)
    for _ in range(3):
        chosen = [spec for spec in profile.layers if draw.random() < 0.7]
        schemes = {spec.name: draw.choice(spec.schemes) for spec in chosen}
        plan = RankPlan(
            {
                spec.name: LayerChoice(spec.whole_groups(draw.randint(1, spec.break_even_rank(scheme))), scheme)
                for spec in chosen
                if (scheme := schemes[spec.name])
            }
        )
        assert count_macs(factorized_like(model, plan), shape) == cost.total(plan)


@given(convolutions(9, 8, most=20), st.integers(9, 15), st.integers(8, 15), st.floats(0, 1))
def test_predicted_macs_of_any_layer_by_any_scheme_are_the_measured_ones(
    layer: nn.Conv2d, height: int, width: int, share: float
) -> None:
    shape, model = (layer.in_channels, height, width), nn.Sequential(layer.float())
    dense = count_macs(model, shape)
    for spec in profile_layers(model, torch.empty(1, *shape)).layers:
        assert spec.dense_macs == dense
        cost = NetworkCost(MacsCost(), dense, {spec.name: spec})
        for scheme in spec.schemes:
            rank = spec.whole_groups(1 + int(share * (spec.break_even_rank(scheme) - 1)))
            plan = RankPlan({spec.name: LayerChoice(rank, scheme)})
            measured = count_macs(factorized_like(model, plan), shape)
            assert measured == cost.total(plan)
            assert measured < dense


@pytest.mark.parametrize("name", PUBLISHED)
def test_dense_macs_are_the_published_ones(name: str) -> None:
    assert count_macs(build(name), (3, 224, 224)) / 1e6 == pytest.approx(PUBLISHED[name], rel=0.005)


def test_a_linear_layer_over_tokens_costs_its_positions() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.Linear(12, 8))
    assert count_macs(model, (5, 3, 4)) == 5 * 12 * 8
    [spec] = profile_layers(model, torch.empty(2, 5, 3, 4)).layers
    assert (spec.positions, spec.dense_macs) == (5, 5 * 12 * 8)


def test_shared_parameters_are_counted_once() -> None:
    layer = nn.Linear(4, 4)
    assert count_params(nn.Sequential(layer, layer)) == 20

"""A network of six layers, described without building it, and its search space."""

from __future__ import annotations

from ranksearch.cost.base import NetworkCost
from ranksearch.cost.macs import MacsCost
from ranksearch.factorize import LayerProfile
from ranksearch.plan import LayerSpec, SkippedLayer
from ranksearch.search_space.rules import SpaceSettings, build_space
from ranksearch.search_space.space import SearchSpace

SPECS = (
    LayerSpec("stem", "conv2d", 3, 32, 64, (7, 7)),
    LayerSpec("layer1.0.conv1", "conv2d", 32, 32, 64, (3, 3)),
    LayerSpec("layer1.0.conv2", "conv2d", 32, 64, 16, (1, 1)),
    LayerSpec("layer2.0.grouped", "conv2d", 64, 64, 16, (3, 3), 4),
    LayerSpec("mlp.0", "linear", 64, 48, 1),
    LayerSpec("fc", "linear", 48, 10, 1),
)
PROFILE = LayerProfile(SPECS, {"grouped": SkippedLayer("grouped convolution (4 groups)")}, stem="stem", classifier="fc")
COST = NetworkCost(MacsCost(), sum(spec.dense_macs for spec in SPECS) + 1000, {spec.name: spec for spec in SPECS})


def space(**settings: object) -> SearchSpace:
    return build_space(SpaceSettings(**settings), PROFILE, COST)

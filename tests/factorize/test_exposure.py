"""Layers hidden in attention or in subclasses compute the same once they are plain modules, and can be factorized."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from torch import Tensor, nn
from torch.nn import functional as F

import ranksearch
from ranksearch import LayerChoice, RankPlan
from ranksearch.allocation.closed_form import closed_form
from ranksearch.allocation.decomposed_model import decompose_model
from ranksearch.allocation.effort import EFFORTS
from ranksearch.batches import read_batch
from ranksearch.cost import Latency
from ranksearch.cost.base import NetworkCost
from ranksearch.cost.macs import MacsCost, count_macs
from ranksearch.factorize.effective import effective_layer
from ranksearch.factorize.exposure import exposed
from ranksearch.factorize.layers.attention import UnpackedAttention
from ranksearch.factorize.layers.padded import PaddedConv2d
from ranksearch.factorize.surgery import factorized_like
from ranksearch.search_space.rules import SpaceSettings, build_space


class StaticSame(nn.Conv2d):
    """A convolution that pads by a module of its own, for one image size."""

    def __init__(self, *sizes: int, image: int, **settings: Any) -> None:
        super().__init__(*sizes, **settings)
        outputs = -(-image // self.stride[0])
        whole = max((outputs - 1) * self.stride[0] + self.dilation[0] * (self.kernel_size[0] - 1) + 1 - image, 0)
        self.pad = nn.ZeroPad2d((whole // 2, whole - whole // 2) * 2) if whole else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pad(x), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@given(
    batch_first=st.booleans(),
    bias=st.booleans(),
    keys=st.sampled_from([None, 24]),
    masked=st.sampled_from(["no", "added", "forbidden", "each head"]),
    padded=st.booleans(),
    weights=st.sampled_from(["none", "averaged", "each head"]),
)
def test_unpacked_attention_computes_the_same(
    batch_first: bool, bias: bool, keys: int | None, masked: str, padded: bool, weights: str
) -> None:
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(32, 4, bias=bias, batch_first=batch_first, kdim=keys, vdim=keys).eval()
    query, key = torch.randn(3, 5, 32), torch.randn(3, 7, keys or 32)
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    masks = {"added": torch.randn(5, 7), "forbidden": torch.rand(5, 7) > 0.8, "each head": torch.randn(12, 5, 7)}
    mask = masks.get(masked)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[0, 5:] = True
    if mask is not None and mask.dtype is not torch.bool:
        padding = torch.zeros(3, 7).masked_fill(padding, float("-inf"))
    options: dict[str, Any] = {"attn_mask": mask, "key_padding_mask": padding if padded else None}
    options |= {"need_weights": weights != "none", "average_attn_weights": weights != "each head"}
    with torch.no_grad():
        (expected, seen), (actual, ours) = (
            each(query, key, key, **options) for each in (packed, UnpackedAttention(packed))
        )
    assert torch.allclose(actual, expected, atol=1e-5)
    assert (seen is None and ours is None) or torch.allclose(ours, seen, atol=1e-5)


class Encoder(nn.Module):
    """A classifier of sequences whose layers take the fused path in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.encoder(x).mean(1))
        return logits


def test_a_transformer_is_compressed_with_its_attention() -> None:
    model, x = Encoder().eval(), torch.randn(64, 6, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    profile = ranksearch.profile_layers(model, x[:1])
    assert not profile.skipped
    assert sum("self_attn" in spec.name for spec in profile.layers) == 8
    result = ranksearch.compress(model, [x], 2.5, progress=False)
    assert any("_proj" in name for name in result.plan.layers)
    assert count_macs(model, x[:1]) >= 2.5 * count_macs(result.network, x[:1])
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        error = (result.network(x) - model(x)).square().mean() / model(x).var()
    assert error < 0.5


def test_only_what_a_plan_names_is_unpacked_and_the_state_fits_a_network_built_anew() -> None:
    model, x = Encoder().eval(), torch.randn(48, 6, 32)
    plan = RankPlan({"encoder.layers.0.self_attn.q_proj": LayerChoice(6), "encoder.layers.1.linear1": LayerChoice(8)})
    network = ranksearch.apply_plan(plan, model, [x], progress=False)
    first, second = (layer.self_attn for layer in network.encoder.layers)  # type: ignore[union-attr]  # a module
    assert isinstance(first, UnpackedAttention)
    assert type(second) is nn.MultiheadAttention
    again = factorized_like(model, plan)
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x), network(x))


def test_nothing_hidden_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    assert exposed(model) is model


SUBCLASSES: dict[str, Any] = {
    "standardized": lambda: ScaledStdConv2d(16, 32, 3, padding=1),
    "standardized, same": lambda: ScaledStdConv2dSame(16, 32, 3, stride=2),
    "without a bias": lambda: StdConv2d(16, 32, 3),
    "same": lambda: Conv2dSame(16, 32, 5),
    "same, strided": lambda: Conv2dSame(16, 32, 3, stride=2),
    "same, dilated and grouped": lambda: Conv2dSame(16, 32, 3, dilation=2, groups=2),
    "padded by a module": lambda: StaticSame(16, 32, 3, stride=2, image=20),
    "normed": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 32, 3, padding=1)),
}


@pytest.mark.parametrize("name", SUBCLASSES)
def test_the_effective_layer_computes_what_the_subclass_does(name: str) -> None:
    torch.manual_seed(0)
    layer = SUBCLASSES[name]().eval()
    plain = effective_layer(SUBCLASSES[name]().eval())
    assert type(plain) in (nn.Conv2d, PaddedConv2d)
    torch.manual_seed(0)
    plain = effective_layer(SUBCLASSES[name]())
    assert plain is not None
    with torch.no_grad():
        for size in (20, 21, 26):
            x = torch.randn(2, 16, size, size)
            assert torch.allclose(plain(x), layer(x), atol=1e-6)


@pytest.mark.parametrize("name", SUBCLASSES)
@pytest.mark.parametrize("scheme", ["full", "vertical", "horizontal", "pointwise"])
def test_a_subclass_is_factorized_at_its_own_cost(name: str, scheme: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(SUBCLASSES[name](), nn.ReLU()).eval(), torch.randn(24, 16, 20, 20)
    profile = ranksearch.profile_layers(model, x[:1])
    [spec] = profile.layers
    size = spec.whole_groups(spec.break_even_rank(scheme))
    plan = RankPlan({"0": LayerChoice(size, scheme)})
    network = ranksearch.apply_plan(plan, model, [x], progress=False)
    assert count_macs(network, x[:1]) == spec.macs_at(size, scheme)
    again = factorized_like(model, plan)
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x), network(x))
        assert (network(x) - model(x)).square().mean() < 0.3 * model(x).var()


def test_what_computes_more_than_a_convolution_is_left_alone() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Gated(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.relu())

    assert effective_layer(Doubled(8, 8, 3)) is None
    assert effective_layer(Gated(8, 8)) is None
    profile = ranksearch.profile_layers(nn.Sequential(Doubled(16, 16, 3), nn.ReLU()), torch.zeros(1, 16, 8, 8))
    assert profile.skipped["0"].reason == "Doubled is not a plain Conv2d or Linear"
    assert profile.skipped["0"].share == 1


def test_inputs_that_a_stride_does_not_divide_leave_a_layer_dense() -> None:
    model = nn.Sequential(Conv2dSame(16, 32, 3, stride=2), nn.ReLU())
    profile = ranksearch.profile_layers(model, torch.zeros(1, 16, 9, 9))
    assert profile.skipped["0"].reason == "its padding depends on the size of its input"
    assert ranksearch.profile_layers(model, torch.zeros(1, 16, 10, 10)).layers


def test_a_search_has_hidden_layers_in_its_space_by_macs_and_by_the_clock() -> None:
    model, x = Encoder().eval(), torch.randn(48, 6, 32)
    profile = ranksearch.profile_layers(model, x[:1])
    names = {spec.name for spec in profile.layers}
    table = Latency(repeats=2).measure(model, profile.layers, x.shape[1:], torch.device("cpu"))
    assert names == set(table.layers)
    cost = NetworkCost(MacsCost(), profile.macs, {spec.name: spec for spec in profile.layers})
    space = build_space(SpaceSettings(), profile, cost)
    inputs = read_batch(model, x).split(16)
    layers = decompose_model(model, space, inputs, [], sequential_images=32)
    [plan] = closed_form(replace(layers, effort=EFFORTS["fast"]), [profile.macs * 2 // 5])
    assert any("_proj" in name for name in plan.layers)
    assert count_macs(layers.build(plan), x[:1]) == cost.total(plan)

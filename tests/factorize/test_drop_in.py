"""A factorized layer stands in for the dense one: its type, settings, weight and ways of being called."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import convolutions
from torch import Tensor, nn

import ranksearch
from ranksearch import LayerChoice, RankPlan
from ranksearch.factorize import FactorizedConv2d, FactorizedLinear, profile_layers

SETTINGS = (
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "in_channels",
    "out_channels",
    "transposed",
    "output_padding",
    "_reversed_padding_repeated_twice",
)


@given(convolutions(11, 10), st.data())
def test_settings_and_weight_read_as_the_dense_layer_s(layer: nn.Conv2d, data: st.DataObject) -> None:
    profile = profile_layers(layer, torch.empty(1, layer.in_channels, 11, 10, dtype=layer.weight.dtype))
    assume(profile.layers)
    spec = profile.layers[0]
    scheme = data.draw(st.sampled_from(spec.schemes))
    twin = FactorizedConv2d.from_conv2d(layer, spec.groups, scheme=scheme)
    assert isinstance(twin, nn.Conv2d)
    for name in SETTINGS:
        assert getattr(twin, name) == getattr(layer, name), name
    assert twin.weight.shape == layer.weight.shape
    assert twin.weight.dtype == layer.weight.dtype
    assert (twin.bias is None) or twin.bias.shape == (layer.out_channels,)
    assert set(dict(twin.named_parameters())) <= {"module0.weight", "module1.weight", "module1.bias"}
    assert "latent_channels" in repr(twin)
    # The weight that is read is the one that both factors have together.
    images = torch.randn(2, layer.in_channels, 11, 10, dtype=layer.weight.dtype)
    whole = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                      layer.dilation, layer.groups, True, layer.padding_mode, dtype=layer.weight.dtype)  # fmt: skip
    with torch.no_grad():
        whole.weight.copy_(twin.weight)
        whole.bias.copy_(torch.zeros(layer.out_channels) if twin.bias is None else twin.bias)
        assert torch.allclose(twin(images), whole(images), atol=1e-4)
        assert torch.equal(twin(input=images), twin(images))


def test_a_linear_layer_s_settings_and_weight_read_as_the_dense_one_s() -> None:
    layer = nn.Linear(20, 30)
    twin = FactorizedLinear.from_linear(layer, 5)
    assert isinstance(twin, nn.Linear)
    assert (twin.in_features, twin.out_features, twin.weight.shape) == (20, 30, layer.weight.shape)
    rows = torch.randn(4, 20)
    assert torch.allclose(twin(input=rows), nn.functional.linear(rows, twin.weight, twin.bias), atol=1e-5)
    # Loops over layers of a type reach the factors, and do no harm to what is computed.
    for module in twin.modules():
        if isinstance(module, nn.Linear):
            module.weight.requires_grad = False
    assert not any(parameter.requires_grad for name, parameter in twin.named_parameters() if "weight" in name)


class Walk(nn.Module):
    """It walks through lists and calls what is of some types."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(channels, 16, 3, padding=1) for channels in (3, 16, 16)]
        self.body = nn.ModuleList([layer for each in convolutions for layer in (each, nn.ReLU(), nn.Dropout())])
        self.head = nn.ModuleList([nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            if isinstance(layer, nn.Conv2d | nn.ReLU):
                x = layer(x)
        x = x.mean((2, 3))
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                x = layer(input=x)
            elif isinstance(layer, nn.ReLU):
                x = layer(x)
        return x


@pytest.mark.parametrize(("name", "size"), [("body.3", 4), ("head.2", 8)])
def test_code_that_asks_for_types_finds_every_factorized_layer(name: str, size: int) -> None:
    torch.manual_seed(0)
    model, images = Walk().eval(), torch.randn(16, 3, 16, 16)
    network = ranksearch.apply_plan(RankPlan({name: LayerChoice(size)}), model, [images])
    runs: list[int] = []
    network.get_submodule(name).register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        error = float((network(images) - model(images)).norm() / model(images).norm())
    assert runs == [1]
    assert error < 0.1


def test_a_factorized_network_is_profiled_by_its_factors_and_not_by_what_they_stand_for() -> None:
    torch.manual_seed(0)
    model, images = Walk().eval(), torch.randn(16, 3, 16, 16)
    network = ranksearch.apply_plan(RankPlan({"body.3": LayerChoice(4)}), model, [images])
    profile = profile_layers(network, images[:1])
    assert "body.3" not in profile.skipped
    assert profile.skipped["body.3.module0"].reason == "a factor of a factorized layer"
    assert "body.3" not in [spec.name for spec in profile.layers]


def test_a_rank_of_the_inputs_or_outputs_and_more_is_one_kernel_which_a_layer_cannot_take() -> None:
    torch.manual_seed(0)
    layer, images = FactorizedConv2d(6, 40, 3, latent_channels=12), torch.randn(4, 6, 9, 9)
    one = layer.solution_for_rank(images, 8)
    assert (one.rank, one.Wb, one.Wa.shape) == (-1, None, (40, 6, 3, 3))
    with pytest.raises(ValueError, match="rank -1 is not factorized"):
        layer.apply_solution(one)
    with torch.no_grad():
        before = layer(images)
        layer.set_rank(images, 8)  # two factors that save MACs all the same
        assert layer.latent_size == 8
        assert torch.allclose(layer(images), before, atol=1.0)
    linear, rows = FactorizedLinear(20, 30, latent_features=8), torch.randn(50, 20)
    one = linear.solution_for_rank(rows, 20)
    assert (one.rank, one.Wb, one.Wa.shape) == (-1, None, (20, 30))
    assert torch.allclose(rows @ one.Wa + one.bias, linear(rows), atol=1e-5)

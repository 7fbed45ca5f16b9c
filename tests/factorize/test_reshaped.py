"""Convolutions along one axis or three, and transposed ones, are computed and factorized by a plain one inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ranksearch
from ranksearch import LayerChoice, RankPlan
from ranksearch.cost.macs import count_macs
from ranksearch.factorize.exposure import exposed
from ranksearch.factorize.surgery import factorized_like

KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Conv1d": (nn.Conv1d, (11,)),
    "Conv3d": (nn.Conv3d, (5, 7, 6)),
    "ConvTranspose1d": (nn.ConvTranspose1d, (9,)),
    "ConvTranspose2d": (nn.ConvTranspose2d, (5, 4)),
}
SCHEMES = [("Conv1d", "full"), ("Conv1d", "pointwise"), ("ConvTranspose1d", "full"), ("ConvTranspose2d", "full")]
SCHEMES += [("Conv3d", scheme) for scheme in ("full", "vertical", "horizontal", "pointwise")]


@given(
    kind=st.sampled_from(list(KINDS)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    batched=st.booleans(),
)
def test_the_layer_inside_computes_the_same(
    kind: str, kernel: int, stride: int, padding: int, dilation: int, groups: int, bias: bool, batched: bool
) -> None:
    torch.manual_seed(0)
    build, size = KINDS[kind]
    padding = min(padding, (kernel - 1) * dilation)
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if "Transpose" in kind:
        options["output_padding"] = min(1, stride - 1)
    layer = build(4, 6, kernel, bias=bias, **options)
    model = nn.Sequential(layer).eval()
    x = torch.randn(3, 4, *size) if batched else torch.randn(4, *size)
    opened = exposed(model)
    assert opened is not model
    inside = opened[0]  # type: ignore[index]  # a sequence
    assert isinstance(inside, build)
    assert torch.equal(inside.weight, layer.weight)
    assert repr(inside).splitlines()[0].startswith(type(inside).__name__)
    assert inside.kernel_size == layer.kernel_size
    with torch.no_grad():
        assert torch.allclose(opened(x), model(x), atol=1e-5)
    assert count_macs(opened, x[:1] if batched else x[None]) == count_macs(model, x[:1] if batched else x[None])


class Net(nn.Module):
    """A layer between two activations."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = KINDS[kind][0](16, 24, 2 if "Transpose" in kind else 3, **options)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x).relu()
        return found


@pytest.mark.parametrize(("kind", "scheme"), SCHEMES)
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_factorized_at_its_cost_and_the_state_fits_again(kind: str, scheme: str, stride: int) -> None:
    model, x = Net(kind, stride=stride).eval(), torch.randn(24, 16, *KINDS[kind][1])
    [spec] = ranksearch.profile_layers(model, x[:1]).layers
    assert spec.name == "layer.conv"
    if scheme not in spec.schemes:
        pytest.skip("a stride leaves nothing to save")
    size = spec.break_even_rank(scheme)
    plan = RankPlan({"layer.conv": LayerChoice(size, scheme)})
    network = ranksearch.apply_plan(plan, model, x, progress=False)
    assert count_macs(network, x[:1]) == spec.macs_at(size, scheme) < count_macs(model, x[:1])
    again = factorized_like(model, plan)
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x), network(x))
        # Entries of these inputs are independent, which no rank is good at.
        assert (network(x) - model(x)).square().mean() < 0.6 * model(x).var()


def test_a_rank_as_large_as_the_data_loses_nothing() -> None:
    for kind in KINDS:
        model = Net(kind).eval()
        low = torch.randn(24, 4, *KINDS[kind][1])
        mixed = torch.einsum("oc,bc...->bo...", torch.randn(16, 4), low)  # inputs of rank 4
        # Three frames of rank 4; outputs of a transposed convolution have no larger rank than its inputs.
        size, scheme = (12 if kind == "Conv3d" else 4), "full" if "Transpose" in kind else "pointwise"
        plan = RankPlan({"layer.conv": LayerChoice(size, scheme)})
        network = ranksearch.apply_plan(plan, model, mixed, progress=False)
        with torch.no_grad():
            assert torch.allclose(network(mixed), model(mixed), atol=2e-3)


class Named(nn.Conv3d):
    """A subclass that adds nothing to the forward, as in torchvision's networks of videos."""


def test_a_subclass_with_the_same_forward_is_taken_and_one_with_its_own_is_not() -> None:
    class Doubled(nn.Conv1d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    video = nn.Sequential(Named(8, 16, 3), nn.ReLU())
    assert [spec.name for spec in ranksearch.profile_layers(video, torch.zeros(1, 8, 3, 6, 6)).layers] == ["0.conv"]
    signal = ranksearch.profile_layers(nn.Sequential(Doubled(16, 16, 3), nn.ReLU()), torch.zeros(1, 16, 9))
    assert signal.skipped["0"].reason == "Doubled is neither a convolution nor a linear layer"
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(16, 16, 3)), nn.ReLU())
    assert not ranksearch.profile_layers(normed, torch.zeros(1, 16, 9)).layers


class UNet(nn.Module):
    """Down by strides, up by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.down = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.middle, self.up = nn.Conv2d(32, 32, 3, padding=1), nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1)
        self.last = nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.first(x).relu()
        up = self.up(self.middle(self.down(first).relu()).relu(), output_size=first.shape[-2:])
        return {"out": self.last(torch.cat([first, up], 1))}


def test_a_u_net_is_compressed_with_its_upsampling() -> None:
    model, x = UNet().eval(), torch.randn(40, 3, 15, 16)
    profile = ranksearch.profile_layers(model, x[:1])
    assert "up.conv" in {spec.name for spec in profile.layers}
    result = ranksearch.compress(model, x, 1.8, progress=False)
    assert count_macs(model, x[:1]) >= 1.8 * count_macs(result.network, x[:1])
    with torch.no_grad():
        assert result.network(x)["out"].shape == model(x)["out"].shape

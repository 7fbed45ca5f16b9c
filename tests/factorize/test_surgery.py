"""A plan builds a new model, and the old one never notices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ranksearch.errors import PlanError
from ranksearch.factorize import (
    Decomposition,
    FactorizedConv2d,
    FactorizedLinear,
    collect_statistics,
    decompose_schemes,
    factorize_model,
    profile_layers,
)
from ranksearch.factorize.solution import truncation_error
from ranksearch.plan import LayerChoice, RankPlan


class Shared(nn.Module):
    """One convolution in two places, one depthwise, one linear layer whose weight is read and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.again = self.twice[0]
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.tiny = nn.Conv2d(8, 1, 1)
        self.read = nn.Linear(8, 8)
        self.head = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.twice(self.stem(x)))
        x = self.depthwise(x) * torch.sigmoid(self.tiny(x))
        return self.head(x.mean((2, 3)) @ self.read.weight)


def decomposed(model: nn.Module, inputs: torch.Tensor, names: list[str]) -> dict[str, dict[str, Decomposition]]:
    statistics = collect_statistics(model, [inputs], names)
    return {name: decompose_schemes(model.get_submodule(name), statistics[name]) for name in names}


def test_profile_names_every_layer_once_and_says_why_others_are_skipped() -> None:
    profile = profile_layers(Shared(), torch.empty(2, 3, 6, 5))
    assert [spec.name for spec in profile.layers] == ["stem", "twice.0", "head"]
    assert set(profile.skipped) == {"depthwise", "tiny", "read"}
    assert "nothing to share" in profile.skipped["depthwise"].reason
    assert "never called" in profile.skipped["read"].reason
    assert "too small for any latent size to save MACs" in profile.skipped["tiny"].reason


def test_a_layer_whose_maps_leave_no_scheme_is_skipped() -> None:
    model = nn.Sequential(nn.Conv2d(8, 1, 3, stride=4), nn.Conv2d(1, 8, 3, padding=1))
    profile = profile_layers(model, torch.empty(2, 8, 11, 11))
    assert "too small for any latent size to save MACs" in profile.skipped["0"].reason
    assert all(spec.schemes for spec in profile.layers)


def test_profile_counts_the_positions_of_all_calls() -> None:
    positions = {spec.name: spec.positions for spec in profile_layers(Shared(), torch.empty(2, 3, 6, 5)).layers}
    assert positions == {"stem": 30, "twice.0": 60, "head": 1}


def test_the_source_is_unchanged_and_shares_no_memory_with_the_result() -> None:
    model = Shared().eval()
    before = copy.deepcopy(model.state_dict())
    inputs = torch.randn(4, 3, 6, 5)
    expected = model(inputs)
    plan = RankPlan({"twice.0": LayerChoice(2), "head": LayerChoice(2)})
    result = factorize_model(model, plan, decomposed(model, inputs, ["twice.0", "head"]))
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(inputs), expected)


def test_a_shared_layer_is_replaced_once_and_everywhere() -> None:
    model = Shared().eval()
    inputs = torch.randn(4, 3, 6, 5)
    plan = RankPlan({"twice.0": LayerChoice(3)})
    result = factorize_model(model, plan, decomposed(model, inputs, ["twice.0"]))
    assert isinstance(result.again, FactorizedConv2d)
    assert result.again is result.twice[0]


def test_a_root_layer_is_replaced_by_itself() -> None:
    layer, inputs = nn.Linear(16, 16), torch.randn(64, 16)
    plan = RankPlan({"": LayerChoice(4)})
    result = factorize_model(layer, plan, decomposed(layer, inputs, [""]))
    assert isinstance(result, FactorizedLinear)
    assert result.latent_size == 4


def test_settings_of_the_layer_are_carried_over() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 8, 3)).to(torch.float64)
    model = model.to(memory_format=torch.channels_last).eval()
    model[0].requires_grad_(False)
    inputs = torch.randn(2, 8, 9, 9).double()
    plan = RankPlan({"0": LayerChoice(2), "1": LayerChoice(2)})
    result = factorize_model(model, plan, decomposed(model, inputs, ["0", "1"]))
    assert [module.training for module in result.modules()] == [False] * 7
    assert {parameter.dtype for parameter in result.parameters()} == {torch.float64}
    assert [parameter.requires_grad for parameter in result[0].parameters()] == [False] * 3
    assert all(parameter.requires_grad for parameter in result[1].parameters())
    assert result[0].module0.weight.is_contiguous(memory_format=torch.channels_last)


def test_building_draws_no_random_numbers() -> None:
    model = Shared().eval()
    decompositions = decomposed(model, torch.randn(4, 3, 6, 5), ["head"])
    before = torch.get_rng_state()
    factorize_model(model, RankPlan({"head": LayerChoice(2)}), decompositions)
    assert torch.equal(before, torch.get_rng_state())


def test_gradients_reach_both_factors() -> None:
    model = Shared().eval()
    inputs = torch.randn(4, 3, 6, 5)
    result = factorize_model(model, RankPlan({"head": LayerChoice(2)}), decomposed(model, inputs, ["head"]))
    result(inputs).square().sum().backward()
    for factor in (result.head.module0, result.head.module1):
        assert float(factor.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("nowhere", 2, "lacks"),
        ("depthwise", 8, "depthwise"),
        ("head", 4, "exceeds its break-even rank 3"),
        ("twice.1", 2, "not a plain"),
    ],
)
def test_plans_that_do_not_fit_are_refused_by_name(name: str, size: int, said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        factorize_model(Shared(), RankPlan({name: LayerChoice(size)}), {})
    assert f"'{name}'" in str(caught.value)


def test_a_layer_without_calibration_is_refused() -> None:
    with pytest.raises(PlanError, match="no calibration data for scheme 'full' of 'head'"):
        factorize_model(Shared(), RankPlan({"head": LayerChoice(2)}), {})


def test_a_factorized_model_is_not_factorized_again() -> None:
    model = Shared().eval()
    inputs = torch.randn(4, 3, 6, 5)
    plan = RankPlan({"head": LayerChoice(2)})
    result = factorize_model(model, plan, decomposed(model, inputs, ["head"]))
    with pytest.raises(PlanError, match="not a plain"):
        factorize_model(result, plan, {})
    with pytest.raises(PlanError, match=r"'head.module1' cannot be factorized \(a factor of a factorized layer"):
        factorize_model(result, RankPlan({"head.module1": LayerChoice(1)}), {})
    again = profile_layers(result, inputs)
    assert [spec.name for spec in again.layers] == ["stem", "twice.0"]
    assert "factor" in again.skipped["head.module0"].reason


def test_a_smaller_plan_needs_no_new_calibration() -> None:
    model = Shared().eval()
    inputs = torch.randn(16, 3, 6, 5)
    decompositions = decomposed(model, inputs, ["twice.0", "head"])
    large, small = (
        factorize_model(model, RankPlan({"twice.0": LayerChoice(size), "head": LayerChoice(3)}), decompositions)
        for size in (6, 2)
    )
    exact = model.twice(model.stem(inputs)).detach()
    errors = [truncation_error(exact, other.twice(other.stem(inputs)).detach(), axis=1) for other in (large, small)]
    assert errors[0] < errors[1]
    assert torch.equal(large.twice[0].module0.weight[:2], small.twice[0].module0.weight)


class Reader(nn.Module):
    """Calls a layer and reads its weight too, makes tensors of its own, and holds one that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.plain, self.once = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.own = torch.ones(1, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.plain(self.read(x.to(self.read.weight.dtype))) + torch.arange(16)
        return x - self.own + self.once(self.own)


def test_layers_that_others_depend_on_are_named_and_odd_forwards_are_no_obstacle() -> None:
    profile = profile_layers(Reader(), torch.empty(4, 16))
    assert [spec.name for spec in profile.layers] == ["plain"]
    assert "also read by code outside the layer" in profile.skipped["read"].reason
    assert "never called for every example" in profile.skipped["once"].reason


def test_an_encoder_that_a_plan_leaves_dense_keeps_its_fast_path() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model, x = nn.Sequential(encoder, nn.Linear(32, 32)).eval(), torch.randn(2, 5, 32)
    assert [spec.name for spec in profile_layers(model, x).layers][-1] == "1"
    result = factorize_model(model, RankPlan({"1": LayerChoice(4)}), decomposed(model, x, ["1"]))
    with torch.no_grad():
        assert torch.equal(result[0](x), encoder(x))
        assert not torch.equal(result(x), model(x))


def test_hooks_that_change_outputs_do_not_disturb_the_statistics() -> None:
    inputs = torch.randn(256, 32)
    layer, hooked = nn.Linear(32, 16), nn.Linear(32, 16)
    hooked.load_state_dict(layer.state_dict())
    hooked.register_forward_hook(lambda module, args, output: output * 3 + torch.arange(16.0) * 5)
    plain, other = (collect_statistics(nn.Sequential(each), [inputs], ["0"])["0"].all for each in (layer, hooked))
    assert torch.equal(plain.covariance, other.covariance)
    calls: list[int] = []
    hooked.register_full_backward_hook(lambda module, before, after: calls.append(1))
    result = factorize_model(hooked, RankPlan({"": LayerChoice(4)}), {"": decompose_schemes(hooked)})
    result(inputs.requires_grad_()).sum().backward()
    assert calls == [1]

"""Layers that are solved one after another, for what the factorized network feeds them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import convolutions
from torch import Tensor, nn

from ranksearch.closed_form import divergence, predict
from ranksearch.errors import PlanError
from ranksearch.factorize import (
    Decomposition,
    collect_statistics,
    decompose_schemes,
    factorize_model,
    factorize_sequentially,
    profile_layers,
    recalibrate_batchnorm,
)
from ranksearch.factorize.solver import truncation_error
from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.problem import Problem

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def smooth(count: int, channels: int = 6, size: int = 12) -> Tensor:
    """Maps whose channels and neighbours resemble each other."""
    noise = torch.randn(count, channels, size, size)
    mixed = torch.einsum("bchw,cd->bdhw", noise, torch.randn(channels, channels))
    return nn.functional.avg_pool2d(mixed, 3, 1, 1) + 0.2 * noise + 0.5


class Residual(nn.Module):
    """Convolutions with norms and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, 12, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3))
        self.first = nn.Conv2d(12, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 12, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norms[0](self.stem(x)))
        inner = torch.relu(self.norms[1](self.first(x)))
        return torch.relu(x + self.norms[2](self.second(inner)))


def decomposed(model: nn.Module, images: Tensor) -> dict[str, dict[str, Decomposition]]:
    names = [spec.name for spec in profile_layers(model, images[:1]).layers]
    statistics = collect_statistics(model, [images], names)
    return {name: decompose_schemes(model.get_submodule(name), statistics[name]) for name in names}


def residual(count: int = 48) -> tuple[Residual, Tensor]:
    model, images = Residual(), smooth(count)
    recalibrate_batchnorm(model, [images])
    return model.eval(), images


PLANS = {
    "full": RankPlan({name: LayerChoice(4) for name in ("stem", "first", "second")}),
    "vertical": RankPlan({name: LayerChoice(4, "vertical") for name in ("stem", "first", "second")}),
    "pointwise": RankPlan({name: LayerChoice(3, "pointwise") for name in ("stem", "first", "second")}),
    "mixed": RankPlan({"stem": LayerChoice(3), "first": LayerChoice(4, "horizontal")}),
}


@torch.no_grad()
def output_of(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """What a layer gives when the network runs."""
    seen: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2]))
    network(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", PLANS)
def test_a_layer_makes_good_what_the_layers_before_it_lost(name: str) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model, images = residual()
        found = decomposed(model, images)
        network = factorize_sequentially(model, PLANS[name], found, images)
        last = list(dict(PLANS[name]))[-1]
        errors = []
        for layers in (network, factorize_model(model, PLANS[name], found)):
            # All that comes before the last layer is the same in both.
            network.set_submodule(last, layers.get_submodule(last))
            errors.append(truncation_error(*(output_of(net, last, images) for net in (model, network)), axis=1))
        assert errors[0] < errors[1]


@pytest.mark.parametrize("speedup", [3, 5, 8])
def test_a_trained_network_comes_nearer_to_its_dense_one(problem: Problem, speedup: float) -> None:
    plan = problem.space.allocate(problem.errors, int(problem.space.cost.dense / speedup))
    images = torch.cat(problem.calibration)
    networks = (
        factorize_model(problem.model, plan, problem.decompositions),
        factorize_sequentially(problem.model, plan, problem.decompositions, images),
    )
    for network in networks:
        recalibrate_batchnorm(network, problem.calibration)
    dense = predict(problem.model, problem.comparison)
    one_shot, in_turn = (divergence(predict(network, problem.comparison), dense) for network in networks)
    assert in_turn < one_shot


def best_rank(inputs: Tensor, target: Tensor, rank: int) -> float:
    """The least truncation error of an affine map of a rank from rows to rows (reduced-rank regression)."""
    inputs, target = (rows - rows.mean(0) for rows in (inputs, target))
    fitted = inputs @ torch.linalg.lstsq(inputs, target).solution
    kept = torch.linalg.svd(fitted, full_matrices=False)
    best = (kept.U[:, :rank] * kept.S[:rank]) @ kept.Vh[:rank]
    return float((target - best).square().sum() / target.square().sum())


def test_a_layer_by_the_full_scheme_is_the_best_there_is_for_its_inputs() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 9, 3, padding=1)).double().eval()
        images = smooth(64).double()
        plan = RankPlan({"0": LayerChoice(2), "2": LayerChoice(3)})
        network = factorize_sequentially(model, plan, {}, images)
        with torch.no_grad():
            target = model(images).movedim(1, -1).flatten(0, 2)
            found = network(images).movedim(1, -1).flatten(0, 2)
            patches = nn.functional.unfold(network[:2](images), 3, padding=1).mT.flatten(0, 1)
        centred = target - target.mean(0)
        error = float((target - found).square().sum() / centred.square().sum())
        best = best_rank(patches, target, 3)
        assert best * 0.9999 <= error <= best * 1.01


@given(convolutions(10, 9), st.data())
def test_a_first_layer_is_what_one_shot_makes_of_the_same_images(layer: nn.Conv2d, data: st.DataObject) -> None:
    images = smooth(64, layer.in_channels, 12)[..., :11, :10].double()
    profile = profile_layers(layer, images[:1])
    assume(profile.layers)
    spec = profile.layers[0]
    scheme = data.draw(st.sampled_from(spec.schemes))
    rank = spec.groups * data.draw(st.integers(1, max(1, spec.break_even_rank(scheme) // spec.groups)))
    assume(rank <= spec.break_even_rank(scheme))
    plan = RankPlan({"": LayerChoice(rank, scheme)})
    found = decomposed(layer, images)
    with torch.no_grad():
        dense = layer(images)
        networks = (
            factorize_model(layer, plan, found),
            factorize_sequentially(layer, plan, found, images),
        )
        one_shot, in_turn = (truncation_error(dense, network(images), axis=1) for network in networks)
    assert in_turn == pytest.approx(one_shot, rel=0.02, abs=1e-7)


def test_norms_hold_the_statistics_of_what_reaches_them() -> None:
    model, images = residual()
    network = factorize_sequentially(model, PLANS["mixed"], decomposed(model, images), images)
    again = copy.deepcopy(network)
    recalibrate_batchnorm(again, [images])
    for name, value in again.state_dict().items():
        assert torch.allclose(network.state_dict()[name], value, atol=1e-5), name


@pytest.mark.parametrize("training", [True, False])
def test_the_source_is_unchanged_and_shares_no_memory_with_the_result(training: bool) -> None:
    model, images = residual()
    model.train(training)
    before, expected = copy.deepcopy(model.state_dict()), copy.deepcopy(model).eval()(images)
    network = factorize_sequentially(model, PLANS["mixed"], decomposed(model, images), images)
    assert all(module.training == training for net in (model, network) for module in net.modules())
    assert all(norm.momentum == 0.1 for norm in network.norms)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(model.eval()(images), expected)
    assert all(parameter.requires_grad for parameter in network.parameters())


class Twice(nn.Module):
    """A convolution in two places, and one in a single place."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.once(torch.relu(self.twice(torch.relu(self.twice(x)))))


class Classifier(nn.Sequential):
    """A linear layer that sees one row per image."""

    def __init__(self) -> None:
        super().__init__(Residual(), nn.Linear(12, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x).mean((2, 3)))


class TimeFirst(nn.Module):
    """Linear layers that see tokens before examples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x.flatten(2).movedim(2, 0)))).mean(0)


def factors(network: nn.Module, name: str) -> list[Tensor]:
    return [tensor for key, tensor in network.state_dict().items() if key.startswith(name)]


@pytest.mark.parametrize(
    ("model", "plan", "kept"),
    [
        (Twice(), RankPlan({"once": LayerChoice(3), "twice": LayerChoice(3, "vertical")}), ["twice"]),
        (TimeFirst(), RankPlan({"first": LayerChoice(2), "second": LayerChoice(2)}), ["first", "second"]),
        (Classifier(), RankPlan({"0.first": LayerChoice(3), "0.second": LayerChoice(3), "1": LayerChoice(3)}), ["1"]),
    ],
    ids=["called twice", "examples along the second axis", "few rows"],
)
def test_what_cannot_be_solved_in_turn_keeps_the_factors_of_one_shot(
    model: nn.Module, plan: RankPlan, kept: list[str]
) -> None:
    images = smooth(40)
    found = decomposed(model.eval(), images)
    one_shot, in_turn = (
        factorize_model(model, plan, found),
        factorize_sequentially(model, plan, found, images),
    )
    for name in dict(plan):
        same = all(torch.equal(a, b) for a, b in zip(factors(one_shot, name), factors(in_turn, name), strict=True))
        # The first layer meets the same inputs in either way.
        assert same == (name in kept) or name == "0.first"
    with pytest.raises(PlanError, match=f"no calibration data for scheme .* of '{kept[0]}'"):
        factorize_sequentially(model, plan, {}, images)


def test_a_layer_with_hooks_of_its_own_keeps_the_factors_of_one_shot() -> None:
    model, images = residual()
    model.first.register_forward_hook(lambda *call: 3 * call[2])
    found = decomposed(model, images)
    one_shot, in_turn = (
        factorize_model(model, PLANS["full"], found),
        factorize_sequentially(model, PLANS["full"], found, images),
    )
    assert all(torch.equal(a, b) for a, b in zip(factors(one_shot, "first"), factors(in_turn, "first"), strict=True))


def test_numbers_that_are_not_finite_leave_a_layer_to_its_own_factors() -> None:
    class Bursting(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](torch.exp(300 * self[0](x)))

    model = Bursting(nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)).eval()
    images = smooth(32)
    found = {name: decompose_schemes(model.get_submodule(name)) for name in ("0", "1")}
    plan = RankPlan({"0": LayerChoice(2), "1": LayerChoice(2)})
    one_shot, in_turn = (
        factorize_model(model, plan, found),
        factorize_sequentially(model, plan, found, images),
    )
    assert all(torch.equal(a, b) for a, b in zip(factors(one_shot, "1"), factors(in_turn, "1"), strict=True))


def test_low_precision_and_autocast_come_near_the_same_factors() -> None:
    class Cast(Residual):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    torch.manual_seed(0)
    model, images = residual()
    cast = Cast().eval()
    cast.load_state_dict(model.state_dict())
    plan = PLANS["vertical"]
    precise = factorize_sequentially(model, plan, {}, images)
    under = factorize_sequentially(cast, plan, {}, images)
    half = factorize_sequentially(copy.deepcopy(model).bfloat16(), plan, {}, images.bfloat16())
    with torch.no_grad():
        target = precise(images)
        assert truncation_error(target, under(images).float(), axis=1) < 0.02
        assert truncation_error(target, half(images.bfloat16()).float(), axis=1) < 0.02
    assert under.first.module0.weight.dtype == torch.float32
    assert half.first.module0.weight.dtype == torch.bfloat16


def test_a_layer_by_its_second_name_is_solved_as_by_its_first() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(6, 6, 3, padding=1)
            self.alias = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.alias(x)

    model = Aliased()
    images = smooth(32)
    by_name = [
        factorize_sequentially(model.eval(), RankPlan({name: LayerChoice(2)}), {}, images)
        for name in ("first", "alias")
    ]
    assert torch.equal(by_name[0](images), by_name[1](images))


def test_settings_that_other_code_reads_are_those_of_the_layer() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) / self.inner.in_channels

    images = smooth(16)
    plan = RankPlan({"inner": LayerChoice(3)})
    assert factorize_sequentially(Reads().eval(), plan, {}, images)(images).shape == images.shape


def test_a_sensitivity_weighs_the_errors() -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(6, 8, 3, bias=False).double(), smooth(64).double()
    weights = torch.diag(torch.tensor([100.0] + 7 * [1e-2])).double()[None]
    plan = RankPlan({"": LayerChoice(1)})
    plain, weighed = (factorize_sequentially(layer, plan, {}, images, given) for given in (None, {"": weights}))
    with torch.no_grad():
        dense = layer(images)
        first = [truncation_error(dense[:, :1], network(images)[:, :1], axis=1) for network in (plain, weighed)]
    assert first[1] < 0.01 < first[0]

"""Layers that cannot be solved in turn, and networks that are unlike others."""

from __future__ import annotations

import copy

import pytest
import torch
from residual import PLANS, Residual, decomposed, residual, smooth
from torch import Tensor, nn

from ranksearch.errors import PlanError
from ranksearch.factorize import decompose_schemes, factorize_model, factorize_sequentially
from ranksearch.factorize.solution import truncation_error
from ranksearch.plan import LayerChoice, RankPlan


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
    ("model", "plan", "count", "kept"),
    [
        (Twice(), RankPlan({"once": LayerChoice(3), "twice": LayerChoice(3, "vertical")}), 40, ["twice"]),
        (
            Classifier(),
            RankPlan({"0.first": LayerChoice(3), "0.second": LayerChoice(3), "1": LayerChoice(3)}),
            10,
            ["1"],
        ),
    ],
    ids=["called twice", "fewer rows than outputs"],
)
def test_what_cannot_be_solved_in_turn_keeps_the_factors_of_one_shot(
    model: nn.Module, plan: RankPlan, count: int, kept: list[str]
) -> None:
    images = smooth(count)
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


def test_examples_along_the_second_axis_are_solved_in_turn_too() -> None:
    model, plan = TimeFirst().eval(), RankPlan({"first": LayerChoice(2), "second": LayerChoice(2)})
    images = smooth(40)
    found = decomposed(model, images)
    with torch.no_grad():
        dense = model(images)
        one_shot, in_turn = (
            float((network(images) - dense).square().sum())
            for network in (factorize_model(model, plan, found), factorize_sequentially(model, plan, found, images))
        )
    assert in_turn < one_shot


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

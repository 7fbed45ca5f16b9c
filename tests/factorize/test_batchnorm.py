"""BatchNorm adapted by differences: never touched where nothing changed, and no worse than the best of its shares."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from residual import PLANS, decomposed, residual
from torch import Tensor, nn

from ranksearch.calibrated import DenseReference
from ranksearch.errors import DataError
from ranksearch.factorize import (
    adapt_batchnorm,
    estimate_batchnorm,
    factorize_model,
    factorized_like,
    recalibrate_batchnorm,
    statistics_of_norms,
)
from ranksearch.factorize.batchnorm import SHARES, NormStatistics, adapted, norms_of
from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.problem import Problem


def moments(draw: st.DrawFn, size: int) -> NormStatistics:
    numbers = st.floats(-100, 100)
    mean = draw(st.lists(numbers, min_size=size, max_size=size))
    var = draw(st.lists(st.floats(0, 100), min_size=size, max_size=size))
    return NormStatistics(torch.tensor(mean), torch.tensor(var))


@given(st.data(), st.integers(1, 5), st.sampled_from(SHARES))
def test_equal_estimates_leave_the_stored_statistics_bit_for_bit(data: st.DataObject, size: int, share: float) -> None:
    stored, estimate = (data.draw(st.composite(moments)(size)) for _ in range(2))
    assert adapted(stored, estimate, estimate, share, 1e-5).equals(stored)


@given(st.data(), st.integers(1, 5))
def test_the_shares_are_the_move_and_the_estimate_and_what_lies_between(data: st.DataObject, size: int) -> None:
    stored, dense, factorized = (data.draw(st.composite(moments)(size)) for _ in range(3))
    moved, between, plain = (adapted(stored, dense, factorized, share, 1e-5) for share in (1.0, 0.5, 0.0))
    if dense.equals(factorized):
        return
    assert torch.allclose(plain.mean, factorized.mean)
    assert torch.allclose(plain.var, factorized.var)
    assert torch.allclose(moved.mean - stored.mean, factorized.mean - dense.mean, atol=1e-4)
    assert torch.allclose(between.mean, (moved.mean + plain.mean) / 2, atol=1e-4)
    assert bool((moved.var >= 0).all())


@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes_where_nothing_is_factorized(training: bool, problem: Problem) -> None:
    model = copy.deepcopy(problem.model).train(training)
    network = factorized_like(model, RankPlan())
    reference = DenseReference.from_model(model, problem.calibration, problem.comparison)
    reference.adapt(network)
    assert model.training == training
    for name, value in model.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    assert torch.equal(problem.build(RankPlan()).state_dict()["bn1.running_var"], model.state_dict()["bn1.running_var"])


def test_norms_before_the_first_factorized_layer_keep_theirs_bit_for_bit() -> None:
    model, images = residual()
    network = factorize_model(model, RankPlan({"second": LayerChoice(4)}), decomposed(model, images))
    before = statistics_of_norms(model)
    adapt_batchnorm(network, before, estimate_batchnorm(model, [images]), [images])
    after = statistics_of_norms(network)
    same = [name for name in before if before[name].equals(after[name])]
    assert same == ["norms.0", "norms.1"]
    assert [int(norm.num_batches_tracked) for norm in norms_of(network).values()] == [
        int(norm.num_batches_tracked) for norm in norms_of(model).values()
    ]


@pytest.mark.parametrize("best", SHARES)
def test_the_share_of_least_divergence_is_taken(best: float) -> None:
    model, images = residual()
    with torch.no_grad():
        for norm in norms_of(model).values():  # of a longer training, other than these images show
            norm.running_mean += 0.1
            norm.running_var *= 1.2
    stored, estimated = statistics_of_norms(model), estimate_batchnorm(model, [images])
    network = factorize_model(model, PLANS["mixed"], decomposed(model, images))
    plain = estimate_batchnorm(network, [images])

    def target(name: str, share: float) -> NormStatistics:
        return adapted(stored[name], estimated[name], plain[name], share, 1e-5)

    def distance(net: nn.Module) -> float:
        found = statistics_of_norms(net)
        return sum(float((found[name].mean - target(name, best).mean).abs().sum()) for name in found)

    assert adapt_batchnorm(network, stored, estimated, [images], distance) == best
    assert all(found.equals(target(name, best)) for name, found in statistics_of_norms(network).items())


def test_estimates_leave_the_model_as_it_was_and_are_those_of_recalibrating_it() -> None:
    model, images = residual()
    before = copy.deepcopy(model.state_dict())
    estimated = estimate_batchnorm(model, [images])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    recalibrate_batchnorm(model, [images])
    assert all(estimated[name].equals(found) for name, found in statistics_of_norms(model).items())


class Flat(nn.Module):
    """A norm over single rows, which cannot tell a variance from one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


def test_a_last_batch_of_one_example_is_left_out_and_single_ones_are_refused() -> None:
    torch.manual_seed(0)
    rows, model = torch.randn(9, 4), Flat().eval()
    alone = copy.deepcopy(model)
    recalibrate_batchnorm(model, rows.split(4))
    recalibrate_batchnorm(alone, rows[:8].split(4))
    assert torch.equal(model.norm.running_mean, alone.norm.running_mean)
    with pytest.raises(DataError, match="1 example says nothing of a variance: give batches of 2 or more"):
        recalibrate_batchnorm(model, rows.split(1))

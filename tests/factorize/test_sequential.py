"""Layers that are solved one after another, for what the factorized network feeds them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from residual import PLANS, decomposed, output_of, residual, smooth
from strategies import convolutions
from torch import Tensor, nn

from ranksearch.allocation.lagrangian import allocate
from ranksearch.batches import join
from ranksearch.factorize import (
    factorize_model,
    factorize_sequentially,
    profile_layers,
    recalibrate_batchnorm,
    record_activations,
)
from ranksearch.factorize.batchnorm import norms_of
from ranksearch.factorize.solution import truncation_error
from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.predictions import divergence, predict
from ranksearch.study.context import SearchContext


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
def test_a_trained_network_comes_nearer_to_its_dense_one(context: SearchContext, speedup: float) -> None:
    plan = allocate(context.space, context.errors, int(context.space.cost.dense / speedup))
    images = join(context.calibration).value
    networks = (
        factorize_model(context.model, plan, context.decompositions),
        factorize_sequentially(context.model, plan, context.decompositions, images),
    )
    for network in networks:
        recalibrate_batchnorm(network, context.calibration)
    dense = predict(context.model, context.comparison)
    one_shot, in_turn = (divergence(predict(network, context.comparison), dense) for network in networks)
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


def test_norms_are_moved_by_how_what_reaches_them_has_changed() -> None:
    model, images = residual()
    network = factorize_sequentially(model, PLANS["mixed"], decomposed(model, images), images)
    reached = []
    for net in (model, network):
        inputs: dict[str, Tensor] = {}
        for name, norm in norms_of(net).items():
            norm.register_forward_pre_hook(lambda _, args, name=name, inputs=inputs: inputs.update({name: args[0]}))
        with torch.no_grad():
            net.eval()(images)
        reached.append({name: torch.var_mean(value, (0, 2, 3)) for name, value in inputs.items()})
    for name, norm in norms_of(network).items():
        stored, (var_before, before), (var_after, after) = norms_of(model)[name], reached[0][name], reached[1][name]
        assert torch.allclose(norm.running_mean, stored.running_mean + after - before, atol=1e-5)
        assert torch.allclose(norm.running_var, stored.running_var * var_after / var_before, rtol=1e-4)


def test_a_network_of_which_nothing_is_factorized_keeps_its_statistics_bit_for_bit() -> None:
    model, images = residual()
    network = factorize_sequentially(model, RankPlan(), {}, images)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in model.state_dict().items())


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


def test_a_sensitivity_weighs_the_errors() -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(6, 8, 3, bias=False).double(), smooth(64).double()
    weights = torch.diag(torch.tensor([100.0] + 7 * [1e-2])).double()[None]
    plan = RankPlan({"": LayerChoice(1)})
    plain, weighted = (factorize_sequentially(layer, plan, {}, images, given) for given in (None, {"": weights}))
    with torch.no_grad():
        dense = layer(images)
        first = [truncation_error(dense[:, :1], network(images)[:, :1], axis=1) for network in (plain, weighted)]
    assert first[1] < 0.01 < first[0]


def test_layers_before_the_first_difference_of_plans_are_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from ranksearch.factorize import sequential

    model, images = residual()
    plans = [RankPlan(dict(PLANS["full"].layers))]
    last = list(plans[0].layers)[-1]
    plans.append(RankPlan({**plans[0].layers, last: LayerChoice(2, "vertical")}))
    alone = [factorize_sequentially(model, plan, {}, images) for plan in plans]
    calls: list[object] = []
    solve = sequential._solve
    monkeypatch.setattr(sequential, "_solve", lambda *args: (calls.append(args[0]), solve(*args))[1])
    dense, solved = record_activations(model, images, plans[0].layers), {}
    shared = [factorize_sequentially(model, plan, {}, dense, solved=solved) for plan in plans]
    assert len(calls) == len(plans[0]) + 1
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_the_dense_network_runs_once_for_all_plans() -> None:
    model, images = residual()
    dense = record_activations(model, images, PLANS["mixed"].layers)
    calls: list[object] = []
    model.register_forward_pre_hook(lambda *call: calls.append(call))
    for plan in PLANS.values():
        if set(plan.layers) <= set(dense.layers):
            factorize_sequentially(model, plan, {}, dense)
    assert not [call for call in calls if call[0] is model]

"""Laws of the closed form: exact, optimal, nested."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.errors import DataError
from ranksearch.factorize import (
    FactorizedConv2d,
    FactorizedLinear,
    collect_sensitivities,
    collect_statistics,
    decompose,
    factorize_model,
)
from ranksearch.factorize.pca import TIE_BREAK, decompose_pca
from ranksearch.factorize.shapes import describe
from ranksearch.plan import SCHEMES, LayerChoice, RankPlan


@dataclass(frozen=True)
class Case:
    layer: nn.Conv2d | nn.Linear
    inputs: Tensor


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A layer of any settings, in float64, with inputs whose channels are correlated."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    wide, narrow = draw(st.integers(6, 12)), draw(st.integers(6, 12))
    bias = draw(st.booleans())
    layer: nn.Conv2d | nn.Linear
    if draw(st.booleans()):
        layer = nn.Linear(wide, narrow, bias=bias)
        inputs = torch.randn(64, wide) @ torch.randn(wide, wide) + torch.randn(wide)
    elif draw(st.booleans()):
        groups = draw(st.sampled_from([2, 3]))
        layer = nn.Conv2d(6 * groups, 4 * groups, draw(st.sampled_from([1, 3])), padding=1, groups=groups, bias=bias)
        inputs = (
            torch.einsum("bchw,cd->bdhw", torch.randn(4, 6 * groups, 9, 8), torch.randn(6 * groups, 6 * groups)) + 1
        )
    else:
        stride = draw(st.sampled_from([1, 2, (2, 1)]))
        padding = draw(st.sampled_from([0, 1, (2, 1)] + (["same"] if stride == 1 else [])))
        layer = nn.Conv2d(
            wide,
            narrow,
            draw(st.sampled_from([1, 2, 3, (1, 3), (3, 2)])),
            stride=stride,
            padding=padding,
            dilation=draw(st.sampled_from([1, 2])),
            padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
            bias=bias,
        )
        inputs = torch.einsum("bchw,cd->bdhw", torch.randn(4, wide, 9, 8), torch.randn(wide, wide)) + 1
    return Case(layer.double(), inputs.double())


def outputs_as_rows(layer: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        out = layer(inputs)
    return out.movedim(1, -1).reshape(-1, out.shape[1])


def inputs_as_rows(layer: nn.Conv2d | nn.Linear, inputs: Tensor) -> Tensor:
    """Every group's own inputs, `[N, groups, fan_in]`, found by an identity kernel."""
    if isinstance(layer, nn.Linear):
        return inputs[:, None]
    fan_in, groups = layer.weight[0].numel(), layer.groups
    probe = nn.Conv2d(
        layer.in_channels,
        groups * fan_in,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        padding_mode=layer.padding_mode,
        groups=groups,
        bias=False,
    ).double()
    with torch.no_grad():
        probe.weight.copy_(torch.eye(fan_in).repeat(groups, 1).reshape(probe.weight.shape))
    return outputs_as_rows(probe, inputs).reshape(-1, groups, fan_in)


def factorized(case: Case, rank: int, shrinkage: float | None = TIE_BREAK) -> nn.Module:
    root = nn.Sequential(case.layer)
    statistics = collect_statistics(root, [case.inputs], ["0"])
    decompositions = {"0": {"full": decompose_pca(case.layer, statistics["0"], shrinkage=shrinkage)}}
    return factorize_model(root, RankPlan({"0": LayerChoice(rank)}), decompositions)


def truncation_error(exact: Tensor, approximate: Tensor) -> float:
    return float((exact - approximate).square().sum() / (exact - exact.mean(0)).square().sum())


@given(cases(), st.sampled_from([SCHEMES, ("full",)]))
def test_truncation_error_is_the_measured_error(case: Case, schemes: tuple[str, ...]) -> None:
    statistics = collect_statistics(nn.Sequential(case.layer), [case.inputs], ["0"], schemes)["0"]
    errors = decompose_pca(case.layer, statistics).truncation_errors()
    exact = outputs_as_rows(case.layer, case.inputs)
    spec = describe(case.layer)
    for rank in range(spec.groups, spec.break_even_rank() + 1, spec.groups):
        measured = truncation_error(exact, outputs_as_rows(factorized(case, rank, shrinkage=None), case.inputs))
        assert measured == pytest.approx(errors[rank], rel=1e-5, abs=1e-10)


@given(cases())
def test_the_closed_form_is_reduced_rank_regression(case: Case) -> None:
    exact = outputs_as_rows(case.layer, case.inputs)
    groups = describe(case.layer).groups
    targets = exact.reshape(len(exact), groups, -1)
    best = []
    for group in range(groups):
        # The textbook: regress the outputs on the inputs, keep the leading directions of the fitted values.
        rows, target = inputs_as_rows(case.layer, case.inputs)[:, group], targets[:, group]
        centred_rows, centred = rows - rows.mean(0), target - target.mean(0)
        fitted = centred_rows @ torch.linalg.lstsq(centred_rows, centred, driver="gelsd").solution
        directions = torch.linalg.svd(fitted, full_matrices=False).Vh[:2]
        best.append(fitted @ directions.T @ directions + target.mean(0))
    optimum = truncation_error(exact, torch.stack(best, 1).flatten(1))
    ours = truncation_error(exact, outputs_as_rows(factorized(case, 2 * groups), case.inputs))
    assert optimum * 0.9999 - 1e-9 <= ours <= optimum * 1.0001 + 1e-9


@given(cases())
def test_full_rank_reproduces_the_layer(case: Case) -> None:
    statistics = collect_statistics(nn.Sequential(case.layer), [case.inputs], ["0"])["0"]
    decomposition = decompose_pca(case.layer, statistics, shrinkage=TIE_BREAK)
    weight = case.layer.weight.detach()
    bias = torch.zeros(len(weight)).double() if case.layer.bias is None else case.layer.bias.detach()
    groups = describe(case.layer).groups
    factors = decomposition.factors(case.layer, min(len(weight), weight[0].numel() * groups))
    up = factors.up.reshape(groups, len(weight) // groups, -1)
    again = (up @ factors.down.reshape(groups, up.shape[2], -1)).reshape(weight.shape)
    assert torch.allclose(again, weight, atol=1e-10)
    assert torch.allclose(factors.bias, bias, atol=1e-9)


@given(cases())
def test_errors_never_grow_with_rank(case: Case) -> None:
    statistics = collect_statistics(nn.Sequential(case.layer), [case.inputs], ["0"])["0"]
    errors = decompose_pca(case.layer, statistics, shrinkage=TIE_BREAK).truncation_errors()
    assert errors[0] == pytest.approx(1)
    assert errors[-1] == 0
    assert all(after <= before for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("kind", ["two rows", "constant inputs", "zero inputs", "zero weights", "dead outputs"])
def test_degenerate_data_give_finite_factors(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 12)
    inputs = torch.randn(2 if kind == "two rows" else 64, 16)
    with torch.no_grad():
        if kind == "constant inputs":
            inputs[:] = inputs[0]
        if kind == "zero inputs":
            inputs.zero_()
        if kind == "zero weights":
            layer.weight.zero_()
        if kind == "dead outputs":
            layer.weight[3:].zero_()
    result = factorized(Case(layer, inputs), 4)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.state_dict().values())
    exact = outputs_as_rows(layer, inputs)
    ours = outputs_as_rows(result, inputs)
    assert float((exact - ours).square().mean()) <= float((exact - exact.mean(0)).square().mean()) + 1e-8


@pytest.mark.parametrize("rows", [32, 64, 256])
@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_shrinkage_does_no_worse_on_rows_that_were_not_seen_and_better_where_they_are_few(
    rows: int, decay: float
) -> None:
    """Unseen error of rank 32 and 60 of 128 outputs, over seeds, against the same without shrinkage."""
    shares = []
    for seed in range(6):
        torch.manual_seed(seed)
        layer = nn.Linear(128, 128)
        mix = torch.randn(128, 128) * torch.logspace(0, -decay, 128)
        sample, unseen = torch.randn(rows, 128) @ mix, torch.randn(4096, 128) @ mix
        exact = outputs_as_rows(layer, unseen)
        for rank in (32, 60):
            chosen, without = (
                truncation_error(exact, outputs_as_rows(factorized(Case(layer, sample), rank, strength), unseen))
                for strength in (None, TIE_BREAK)
            )
            shares.append(math.log(chosen / without))
    mean = math.exp(sum(shares) / len(shares))
    assert mean <= 1.0 + 1e-6
    assert mean < 0.97 or rows > 32


def test_few_rows_of_a_wide_layer_promise_no_more_than_they_keep() -> None:
    """Above 1,024 outputs: errors are those on other rows, and all outputs together lose nothing."""
    torch.manual_seed(0)
    layer, mixing = nn.Linear(1040, 1030), torch.randn(60, 1040)
    seen, unseen = (torch.randn(count, 60) @ mixing + torch.randn(count, 1040) for count in (40, 400))
    decomposition = decompose(layer, collect_statistics(layer, [seen], [""])[""])
    errors = decomposition.expected_errors()
    assert errors[0] == pytest.approx(1)
    assert errors[1030] == pytest.approx(0, abs=1e-9)
    for rank in (10, 20, 39):
        twin = FactorizedLinear(1040, 1030, rank)
        twin._set_factors(decomposition.factors(layer, rank))
        with torch.no_grad():
            measured = truncation_error(layer(unseen), twin(unseen))
        assert measured <= 1.1 * errors[rank]


def test_loss_aware_factors_are_the_best_for_the_weighted_error() -> None:
    """Against gradient descent from many starts on matrices small enough for it."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, bias=False).double()
    inputs = (torch.randn(200, 6) @ torch.randn(6, 6)).double()
    root = torch.randn(5, 5).double()
    sensitivity = (root @ root.T)[None]
    statistics = collect_statistics(nn.Sequential(layer), [inputs], ["0"])["0"]
    decomposition = decompose_pca(layer, statistics, sensitivity)
    exact = outputs_as_rows(layer, inputs)

    def weighted(found: Tensor) -> Tensor:
        missed = exact - found
        return torch.einsum("no,op,np->", missed, sensitivity[0], missed) / len(exact)

    factors = decomposition.factors(layer, 2)
    ours = float(weighted(inputs @ factors.down.T @ factors.up.T + factors.bias))
    total = float(weighted(exact.mean(0).expand_as(exact)))
    assert ours / total == pytest.approx(decomposition.truncation_errors()[2], rel=1e-3)

    def descended(seed: int) -> float:
        torch.manual_seed(seed)
        down, up, bias = (torch.randn(*shape).double().requires_grad_() for shape in ((2, 6), (5, 2), (5,)))
        optimizer = torch.optim.LBFGS([down, up, bias], max_iter=2000, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = weighted(inputs @ down.T @ up.T + bias)
            loss.backward()
            return loss

        optimizer.step(closure)
        return float(closure().detach())

    assert ours <= 1.001 * min(descended(seed) for seed in range(5))


def test_sensitivities_predict_how_the_loss_rises() -> None:
    """Half the trace of sensitivity times the covariance of a small output error, against the loss itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    inputs = torch.randn(4000, 8).double() * 2
    sensitivity = collect_sensitivities(model, [inputs], ["0"])["0"][0]
    noise = torch.randn(4000, 12).double() * torch.linspace(0.01, 0.1, 12)
    with torch.no_grad():
        logits, moved = model(inputs), model[2](model[1](model[0](inputs) + noise))
        rise = F.kl_div(moved.log_softmax(1), logits.softmax(1), reduction="batchmean")
    predicted = 0.5 * torch.trace(sensitivity @ (noise.T @ noise / len(noise)))
    assert float(predicted) == pytest.approx(float(rise), rel=0.1)


def test_collecting_sensitivities_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5))
    model.train()
    model[0].requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    collect_sensitivities(model, [torch.randn(8, 3, 6, 6)], ["0", "4"])
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True, True, True]
    assert model[0].weight.grad is None
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))
    assert all(module.training for module in model.modules())
    assert int(model[1].num_batches_tracked) == 0


def test_the_bias_carries_what_the_mean_loses() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, padding=1, bias=False).double()
    inputs = torch.randn(8, 8, 6, 6).double() + 5
    result = factorized(Case(layer, inputs), 2)
    twin = result.get_submodule("0")
    assert isinstance(twin, FactorizedConv2d)
    shift = outputs_as_rows(result, inputs).mean(0) - outputs_as_rows(layer, inputs).mean(0)
    assert float(shift.abs().max()) < 1e-9


def test_odd_sensitivities_are_refused_or_harmless() -> None:
    layer = nn.Linear(16, 16).half()
    for harmless in (torch.zeros(1, 16, 16), 1e-14 * torch.eye(16)[None], 1e14 * torch.eye(16)[None]):
        factors = decompose(layer, sensitivity=harmless).factors(layer, 4)
        assert bool(torch.isfinite(factors.up).all() and torch.isfinite(factors.down).all())
        assert float(factors.up.abs().max()) < 10
    for wrong in (torch.eye(16), torch.full((1, 16, 16), float("nan"))):
        with pytest.raises(ValueError, match="does not fit or is not finite"):
            decompose(layer, sensitivity=wrong)


def test_no_rows_are_refused() -> None:
    layer = nn.Linear(16, 16)
    with pytest.raises(ValueError, match="no rows"):
        decompose(layer, collect_statistics(nn.Sequential(layer), [torch.randn(0, 16)], ["0"])["0"])


@pytest.mark.parametrize("scheme", ["full", "vertical"])
def test_weights_that_are_not_finite_are_refused(scheme: str) -> None:
    layer = nn.Conv2d(8, 8, 3)
    nn.init.constant_(layer.weight, math.nan)
    with pytest.raises(DataError, match="not finite: check"):
        decompose(layer, scheme=scheme)

"""Laws of the closed form: exact, optimal, nested."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.factorize import (
    FactorizedConv2d,
    FactorizedLinear,
    collect_statistics,
    decompose,
    factorize_model,
)
from ranksearch.plan import LayerChoice, RankPlan


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
    """Every output's own inputs, `[N, fan_in]`, found by an identity kernel."""
    if isinstance(layer, nn.Linear):
        return inputs
    fan_in = layer.weight[0].numel()
    probe = nn.Conv2d(
        layer.in_channels,
        fan_in,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        padding_mode=layer.padding_mode,
        bias=False,
    ).double()
    with torch.no_grad():
        probe.weight.copy_(torch.eye(fan_in).reshape(probe.weight.shape))
    return outputs_as_rows(probe, inputs)


def factorized(case: Case, rank: int) -> nn.Module:
    root = nn.Sequential(case.layer)
    statistics = collect_statistics(root, [case.inputs], ["0"])
    decompositions = {"0": decompose(statistics["0"], case.layer.weight)}
    return factorize_model(root, RankPlan({"0": LayerChoice(rank)}), decompositions)


def relative_error(exact: Tensor, approximate: Tensor) -> float:
    return float((exact - approximate).square().sum() / (exact - exact.mean(0)).square().sum())


@given(cases())
def test_truncation_error_is_the_measured_error(case: Case) -> None:
    statistics = collect_statistics(nn.Sequential(case.layer), [case.inputs], ["0"])["0"]
    errors = decompose(statistics, case.layer.weight).truncation_errors()
    exact = outputs_as_rows(case.layer, case.inputs)
    fan_in = case.layer.weight[0].numel()
    out_size = case.layer.weight.shape[0]
    for rank in range(1, (fan_in * out_size - 1) // (fan_in + out_size) + 1):
        measured = relative_error(exact, outputs_as_rows(factorized(case, rank), case.inputs))
        assert measured == pytest.approx(errors[rank], rel=1e-5, abs=1e-10)


@given(cases())
def test_no_plan_of_a_rank_beats_reduced_rank_regression_and_ours_equals_it(case: Case) -> None:
    exact = outputs_as_rows(case.layer, case.inputs)
    rows = inputs_as_rows(case.layer, case.inputs)
    rank = 2
    # The textbook: regress the outputs on the inputs, keep the leading directions of the fitted values.
    centred_rows, centred_out = rows - rows.mean(0), exact - exact.mean(0)
    fitted = centred_rows @ torch.linalg.lstsq(centred_rows, centred_out, driver="gelsd").solution
    directions = torch.linalg.svd(fitted, full_matrices=False).Vh[:rank]
    optimum = relative_error(exact, fitted @ directions.T @ directions + exact.mean(0))
    ours = relative_error(exact, outputs_as_rows(factorized(case, rank), case.inputs))
    assert optimum * 0.9999 - 1e-9 <= ours <= optimum * 1.0001 + 1e-9


@given(cases())
def test_full_rank_reproduces_the_layer(case: Case) -> None:
    statistics = collect_statistics(nn.Sequential(case.layer), [case.inputs], ["0"])["0"]
    decomposition = decompose(statistics, case.layer.weight)
    weight, out_size = case.layer.weight.detach(), case.layer.weight.shape[0]
    bias = None if case.layer.bias is None else case.layer.bias.detach()
    factors = decomposition.factors(weight, bias, out_size)
    again = torch.einsum("or,r...->o...", factors.up, factors.down)
    assert torch.allclose(again, weight, atol=1e-10)
    assert torch.allclose(factors.bias, torch.zeros(out_size).double() if bias is None else bias, atol=1e-9)


@given(cases())
def test_errors_never_grow_with_rank(case: Case) -> None:
    statistics = collect_statistics(nn.Sequential(case.layer), [case.inputs], ["0"])["0"]
    errors = decompose(statistics, case.layer.weight).truncation_errors()
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


@pytest.mark.parametrize("rank", [8, 32, 60])
def test_few_rows_do_no_worse_than_plain_pca_and_better_beyond_their_number(rank: int) -> None:
    """Held-out error with 40 rows of 128 outputs, against the leading directions of the sample alone."""
    ratios = []
    for seed in range(5):
        torch.manual_seed(seed)
        layer = nn.Linear(128, 128)
        mix = torch.randn(128, 128) * torch.logspace(0, -1, 128)
        sample, held_out = torch.randn(40, 128) @ mix, torch.randn(2048, 128) @ mix
        exact = outputs_as_rows(layer, held_out)
        ours = relative_error(exact, outputs_as_rows(factorized(Case(layer, sample), rank), held_out))
        seen = outputs_as_rows(layer, sample)
        mean = seen.mean(0)
        top = torch.linalg.svd(seen - mean, full_matrices=False).Vh[:rank]
        ratios.append(ours / relative_error(exact, (exact - mean) @ top.T @ top + mean))
    assert max(ratios) <= (0.9 if rank > 40 else 1.001)


def test_the_bias_carries_what_the_mean_loses() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, padding=1, bias=False).double()
    inputs = torch.randn(8, 8, 6, 6).double() + 5
    result = factorized(Case(layer, inputs), 2)
    twin = result.get_submodule("0")
    assert isinstance(twin, FactorizedConv2d)
    shift = outputs_as_rows(result, inputs).mean(0) - outputs_as_rows(layer, inputs).mean(0)
    assert float(shift.abs().max()) < 1e-9


def test_a_linear_layer_takes_any_leading_axes() -> None:
    layer = FactorizedLinear(8, 8, latent_features=2)
    x = torch.randn(2, 3, 5, 8)
    expected = F.linear(F.linear(x, layer.module0.weight), layer.module1.weight, layer.module1.bias)
    assert torch.allclose(layer(x), expected)

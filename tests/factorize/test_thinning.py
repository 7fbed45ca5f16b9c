"""Moments of every k-th row of positions."""

from __future__ import annotations

from statistics import mean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import convolutions
from torch import Tensor, nn

from ranksearch.factorize import collect_statistics
from ranksearch.factorize.patch_moments import Taps
from ranksearch.factorize.thinning import FEWEST_ROWS, Thinning


@given(convolutions(9, 7), st.integers(2, 5), st.integers(0, 4))
def test_thinned_inputs_give_the_thinned_outputs(layer: nn.Conv2d, step: int, first: int) -> None:
    maps = torch.randn(3, layer.in_channels, 13, 8).double()
    with torch.no_grad():
        output = layer(maps)
        examples = (step + 0.5) * FEWEST_ROWS / (output.numel() / layer.out_channels)
        thinning = Thinning.from_output(layer, Taps.from_layer(layer), output, examples, 1)
        assert thinning.taps is not None
        height = output.shape[2]
        divisors = [each for each in range(1, step + 1) if height % each == 0]
        assert thinning.step == (divisors[-1] if layer.padding_mode == "zeros" else 1)
        first %= thinning.step
        taps, kept = thinning.taps, thinning.inputs(layer, maps, first)
        again = torch.conv2d(
            taps.with_all_padding(kept), layer.weight, layer.bias, taps.stride, 0, taps.dilation, taps.groups
        )
    kept = thinning.outputs(output, first)
    assert kept.shape[2] == height // thinning.step
    assert torch.allclose(again, kept)


@given(st.integers(1, 100), st.integers(1, 12), st.integers(0, 100))
def test_every_example_is_in_one_part_whatever_the_batches(count: int, step: int, cut: int) -> None:
    thinning, examples = Thinning(step, None), torch.arange(count)

    def kept(batch: Tensor, before: int) -> list[tuple[int, int]]:
        return [(int(example), first) for first, part in thinning.parts(batch, before) for example in part]

    whole = kept(examples, 0)
    assert [example for example, _ in whole] == list(range(count))
    assert kept(examples[:cut], 0) + kept(examples[cut:], min(cut, count)) == whole


@given(st.integers(1, 100), st.integers(1, 20))
def test_every_row_has_its_turn_and_no_side_of_the_maps_is_preferred(step: int, pairs: int) -> None:
    rows = [Thinning(step, None).first_row(turn) for turn in range(6 * step)]
    assert set(rows) == set(range(step))
    assert mean(rows[: 2 * pairs]) == (step - 1) / 2


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(40, 6, 3, padding=1), nn.Conv2d(4, 6, 1)])
def test_a_share_of_the_rows_has_nearly_the_moments_of_all(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    smooth = nn.functional.avg_pool2d(torch.randn(64, layer.in_channels, 64, 64), 5, 1, 2)
    images = torch.relu(smooth + 0.1 * torch.linspace(-1, 1, 64)[:, None])  # rows differ
    model = nn.Sequential(layer)
    few = collect_statistics(model, images.split(8), ["0"])["0"].all
    every = [collect_statistics(model, [part], ["0"])["0"].all for part in images.split(4)]
    assert sum(part.count for part in every) == 64 * 64 * 64
    assert FEWEST_ROWS <= few.count <= 1.5 * FEWEST_ROWS
    mean, covariance = (
        torch.stack([getattr(part, name).double() for part in every]).mean(0) for name in ("mean", "covariance")
    )
    assert (few.mean - mean).norm() < 0.03 * mean.norm()
    assert abs(few.mean.mean() / mean.mean() - 1) < 0.015  # rows at the top and at the bottom are kept alike
    scale = float(covariance.diagonal(dim1=1, dim2=2).mean())
    assert torch.allclose(few.covariance.double(), covariance, atol=0.1 * scale)

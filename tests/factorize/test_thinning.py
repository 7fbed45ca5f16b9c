"""Moments of every k-th row of positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import convolutions
from torch import nn

from ranksearch.factorize import collect_statistics
from ranksearch.factorize.patch_moments import Taps
from ranksearch.factorize.thinning import FEWEST_ROWS, Thinning, convolve


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
        again = convolve(thinning.taps, thinning.inputs(layer, maps, first), layer.weight, layer.bias)
    kept = thinning.outputs(output, first)
    assert kept.shape[2] == height // thinning.step
    assert torch.allclose(again, kept)


@given(st.integers(1, 40), st.integers(1, 6))
def test_every_example_is_in_one_part(count: int, step: int) -> None:
    parts = list(Thinning(step, None).parts(torch.arange(count)))
    assert sorted(torch.cat([part for _, part in parts]).tolist()) == list(range(count))
    assert all(first == int(example) % step for first, part in parts for example in part)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(40, 6, 3, padding=1), nn.Conv2d(4, 6, 1)])
def test_a_share_of_the_rows_has_nearly_the_moments_of_all(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    smooth = nn.functional.avg_pool2d(torch.randn(64, layer.in_channels, 64, 64), 5, 1, 2)
    images = torch.relu(smooth + 0.1 * torch.linspace(-1, 1, 64)[:, None])  # rows differ
    model = nn.Sequential(layer)
    few = collect_statistics(model, images.split(8), ["0"])["0"].all
    every = [collect_statistics(model, [part], ["0"])["0"].all for part in images.split(8)]
    assert sum(part.count for part in every) == 64 * 64 * 64
    assert FEWEST_ROWS <= few.count <= 1.5 * FEWEST_ROWS
    mean, covariance = (
        torch.stack([getattr(part, name).double() for part in every]).mean(0) for name in ("mean", "covariance")
    )
    assert torch.allclose(few.mean, mean, atol=0.03 * float(mean.abs().max()))
    scale = float(covariance.diagonal(dim1=1, dim2=2).mean())
    assert torch.allclose(few.covariance.double(), covariance, atol=0.05 * scale)

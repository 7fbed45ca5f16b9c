"""The moments of patches are those of unfolded patches, for any convolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import convolutions
from torch import Tensor, nn

from ranksearch.factorize import PatchMoments, collect_statistics
from ranksearch.factorize.patch_moments import Taps


def unfolded(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """Every patch as a row, `[groups, N, fan_in]`, found by torch's own convolution of an identity kernel."""
    fan_in = layer.weight[0].numel()
    probe = nn.Conv2d(
        layer.in_channels,
        layer.groups * fan_in,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
    ).double()
    with torch.no_grad():
        probe.weight.copy_(torch.eye(fan_in).repeat(layer.groups, 1).reshape(probe.weight.shape))
        rows = probe(images).movedim(1, -1).reshape(-1, layer.groups, fan_in)
    return rows.transpose(0, 1)


@given(convolutions(5, 6), st.integers(5, 9), st.integers(6, 9))
def test_moments_by_lag_are_those_of_unfolded_patches(layer: nn.Conv2d, height: int, width: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(5, layer.in_channels, height, width).double() + 1
    rows = unfolded(layer, images)
    first, second = PatchMoments(Taps.from_layer(layer)), PatchMoments(Taps.from_layer(layer))
    first.see(images[:2])
    first.see(images[2:3])
    second.see(images[3:])
    both = first + second
    centred = rows - rows.mean(1, keepdim=True)
    assert both.count == rows.shape[1]
    assert torch.allclose(both.mean, rows.mean(1))
    assert torch.allclose(both.covariance, centred.mT @ centred / rows.shape[1])


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (3, 8)])
def test_maps_smaller_than_the_kernel_are_exact_too(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(3, 4, 5, padding=2).double(), torch.randn(20, 3, *size).double()
    moments, rows = PatchMoments(Taps.from_layer(layer)), unfolded(layer, images)[0]
    moments.see(images)
    assert torch.allclose(moments.covariance[0], torch.cov(rows.mT, correction=0))


def test_maps_of_several_sizes_add_up() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1).double()
    batches = [torch.randn(3, 3, *size).double() for size in ((6, 6), (9, 5), (6, 6), (9, 5))]
    rows = torch.cat([unfolded(layer, images)[0] for images in batches])
    for first in range(len(batches) + 1):
        halves = PatchMoments(Taps.from_layer(layer)), PatchMoments(Taps.from_layer(layer))
        for index, images in enumerate(batches):
            halves[index >= first].see(images)
        assert torch.allclose((halves[0] + halves[1]).covariance[0], torch.cov(rows.mT, correction=0))


def test_memory_does_not_grow_with_the_number_of_sizes() -> None:
    moments = PatchMoments(Taps.from_layer(nn.Conv2d(8, 8, 3, padding=1)))
    for size in range(4, 14):
        moments.see(torch.randn(2, 8, size, size + 1))
    assert len(moments.products) + len(moments.folded) <= 29 + 45


@pytest.mark.parametrize("images", [1, 30])
@pytest.mark.parametrize("size", [7, 20])
def test_memory_does_not_grow_with_images_or_their_size(images: int, size: int) -> None:
    moments = PatchMoments(Taps.from_layer(nn.Conv2d(32, 8, 3, padding=1)))
    for _ in range(2):
        moments.see(torch.randn(images, 32, size, size))
    numbers = sum(total.numel() for total in (*moments.products.values(), *moments.folded.values()))
    assert numbers == 29 * 32 * 32
    assert moments.covariance.dtype == torch.float32


@pytest.mark.parametrize("channels", [4, 40])
def test_calibration_gathers_patches_where_kernels_may_be_split(channels: int) -> None:
    """Few numbers to a patch are unfolded in parts, many are multiplied by lag: both are the same statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1)).double()
    images = torch.randn(6, channels, 9, 8).double() + 1
    found = collect_statistics(model, list(images.split(2)), ["0"])["0"]
    rows = unfolded(model[0], images)[0]
    assert found.all.count == len(rows)
    assert torch.allclose(found.mean[0], rows.mean(0))
    assert torch.allclose(found.all.covariance[0], torch.cov(rows.mT, correction=0))

"""Factorized layers are drop-ins that always save multiply-adds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ranksearch.errors import PlanError
from ranksearch.factorize import FactorizedConv2d, FactorizedLinear
from ranksearch.plan import LayerSpec

sizes = st.integers(2, 24)


@given(sizes, sizes, st.integers(1, 3), st.integers(1, 40))
def test_a_latent_size_is_taken_exactly_up_to_the_break_even_rank(
    wide: int, narrow: int, kernel: int, rank: int
) -> None:
    limit = LayerSpec("any", "conv2d", wide, narrow, 1, (kernel, kernel)).break_even_rank
    if rank <= limit:
        layer = FactorizedConv2d(wide, narrow, kernel, rank)
        assert (layer.in_channels, layer.latent_channels, layer.out_channels) == (wide, rank, narrow)
    else:
        with pytest.raises(PlanError, match=f"break-even rank {limit}"):
            FactorizedConv2d(wide, narrow, kernel, rank)


@given(st.integers(4, 64), st.integers(4, 64), st.floats(0.01, 0.45))
def test_a_fraction_is_of_the_smaller_side_and_at_least_one(wide: int, narrow: int, share: float) -> None:
    layer = FactorizedLinear(wide, narrow, latent_features=share)
    assert layer.latent_size == max(1, int(share * min(wide, narrow)))


@pytest.mark.parametrize("size", [0, -1, 1.0, 1.5, 0.0, -0.25, float("nan"), True])
def test_sizes_out_of_range_are_refused(size: float) -> None:
    with pytest.raises(PlanError, match="latent size"):
        FactorizedLinear(16, 16, latent_features=size)


@pytest.mark.parametrize(
    "settings", [{"stride": 2}, {"padding": "same"}, {"dilation": 2}, {"padding_mode": "reflect", "padding": 1}]
)
def test_the_output_has_the_shape_of_the_layer_it_stands_for(settings: dict[str, object]) -> None:
    x = torch.randn(2, 8, 11, 9)
    assert FactorizedConv2d(8, 6, 3, 2, **settings)(x).shape == nn.Conv2d(8, 6, 3, **settings)(x).shape


def test_the_state_dict_has_the_names_that_others_know() -> None:
    assert list(FactorizedConv2d(8, 8, 3).state_dict()) == ["module0.weight", "module1.weight", "module1.bias"]
    assert list(FactorizedLinear(8, 8, bias=False).state_dict()) == ["module0.weight", "module1.weight"]


def test_grouped_convolutions_are_refused() -> None:
    with pytest.raises(PlanError, match="groups=2"):
        FactorizedConv2d(8, 8, 3, 2, groups=2)

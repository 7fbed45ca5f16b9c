"""Expected errors of a trained network's layers are those on images that the solve has not seen."""

from __future__ import annotations

import pytest
import torch
from conftest import CPU
from torch import Tensor, nn

from ranksearch.data.builtin import digits
from ranksearch.data.loaders import draw, endless_batches
from ranksearch.data.splits import length
from ranksearch.factorize import FactorizedConv2d, collect_statistics, decompose_schemes
from ranksearch.factorize.shapes import describe, settings_of
from ranksearch.factorize.solution import truncation_error
from ranksearch.training.loop import train
from ranksearch.training.recipe import Recipe

SHARES = (0.08, 0.25, 0.45, 0.7, 1.0)
# Of three shapes: few ranks, more ranks at a stride, and patches of more than 256 numbers.
LAYERS = {"3": (16, 16, 1), "6": (16, 32, 2), "9": (32, 48, 1)}


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network, images to solve on, and others."""
    splits = digits(image_size=16, validation_share=0.45, test_share=0.05, split_seed=0)
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(splits.input_shape[0], 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    for channels, out, stride in LAYERS.values():
        layers += [nn.Conv2d(channels, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    train(model, endless_batches(splits.train, 64, CPU, seed=0), Recipe(steps=150))
    # Half of either, as the network treats images that it was trained on differently.
    halves = [draw(split, length(split), CPU, seed=5).chunk(2) for split in (splits.train, splits.validation)]
    return model.eval(), *(torch.cat(parts) for parts in zip(*halves, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_errors_are_those_of_refined_factors_on_unseen_images(
    name: str, network: tuple[nn.Module, Tensor, Tensor]
) -> None:
    model, *halves = network
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    errors: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for seen, unseen in (halves, halves[::-1]):  # images differ in how well they are reconstructed
        statistics = collect_statistics(model, seen.split(64), [name])[name]
        with torch.no_grad():
            inputs = nn.Sequential(*list(model.children())[: int(name)])(unseen)
            outputs = layer(inputs)
        for scheme, decomposition in decompose_schemes(layer, statistics).items():
            expected, limit = decomposition.expected_errors(), describe(layer).break_even_rank(scheme)
            for rank in sorted({max(1, round(share * limit)) for share in SHARES}):
                channels = layer.in_channels, layer.out_channels
                twin = FactorizedConv2d(*channels, latent_channels=rank, scheme=scheme, **settings_of(layer))
                twin._set_factors(decomposition.factors(layer, rank))
                with torch.no_grad():
                    measured = truncation_error(outputs, twin(inputs), axis=1)
                errors.setdefault((scheme, rank), []).append((expected[rank], measured))
    assert len(errors) == 4 * len(SHARES)
    for choice, pairs in errors.items():
        expected_mean, measured_mean = torch.tensor(pairs).mean(0).tolist()
        assert expected_mean == pytest.approx(measured_mean, rel=0.05, abs=1e-4), choice

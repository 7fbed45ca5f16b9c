"""A user's own model or data that do not fit end in an error of one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from conftest import CPU
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ranksearch.cost.macs import MacsCost
from ranksearch.data.splits import Splits
from ranksearch.errors import UserError
from ranksearch.search_space.rules import SpaceSettings
from ranksearch.search_space.space import SearchSpace
from ranksearch.study.context import SearchInputs, build_context, build_search_space
from ranksearch.study.settings import CalibrationSettings
from ranksearch.training.recipe import Recipe


class Own(nn.Module):
    """A small network whose ending is up to the test."""

    def __init__(self, end: Callable[[Tensor], object], out: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, out)
        self.end = end

    def forward(self, x: Tensor) -> object:
        return self.end(self.head(self.body(x).mean((2, 3)) + torch.arange(16)))


def described(model: nn.Module, splits: Splits) -> SearchSpace:
    return build_search_space(model.eval(), splits, SpaceSettings(), MacsCost(), CPU)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Own(lambda x: (x, x)), "returns tuple for one image"),
        (Own(lambda x: x, out=7), r"returns \[1, 7\] for one image: return logits of shape \[1, 10\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 10)), r"cannot run on images of shape \[3, 8, 8\] \(RuntimeError"),
    ],
)
def test_models_that_do_not_fit_the_data_are_told_so(model: nn.Module, said: str, splits: Splits) -> None:
    with pytest.raises(UserError, match=said):
        described(model, splits)


def test_tensors_made_in_forward_are_no_obstacle(splits: Splits) -> None:
    assert [layer.spec.name for layer in described(Own(lambda x: x), splits).layers] == ["body.1"]


@pytest.mark.parametrize("images", [torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, 3, 8, 8)])
def test_images_that_no_model_can_use_are_refused(images: Tensor, splits: Splits) -> None:
    with pytest.raises(UserError, match="the validation split"):
        dataclasses.replace(splits, validation=TensorDataset(images, torch.zeros(len(images), dtype=torch.int64)))


class Noisy(TensorDataset):
    """Adds noise from the global generator, as augmentations do."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = super().__getitem__(index)
        return image + torch.randn_like(image), label


def test_calibration_repeats_whatever_was_drawn_before(splits: Splits, trained: nn.Module) -> None:
    noisy = dataclasses.replace(splits, train=Noisy(*splits.train.tensors))
    space = described(trained, noisy)
    settings = CalibrationSettings(images=65, batch_size=64)
    first, second = (
        build_context(SearchInputs(trained, noisy, space, 10**9, Recipe(0), 3, CPU), settings) for _ in range(2)
    )
    assert first.errors == second.errors
    assert [len(batch) for batch in first.calibration] == [64]  # a batch of one is no use to BatchNorm


def test_loss_aware_calibration_weighs_the_same_layers_differently(splits: Splits, trained: nn.Module) -> None:
    space = described(trained, splits)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    plain, aware = (
        build_context(
            SearchInputs(trained, splits, space, 10**9, Recipe(0), 0, CPU), CalibrationSettings(128, 64, loss_aware)
        )
        for loss_aware in (False, True)
    )
    assert plain.errors.keys() == aware.errors.keys()
    assert plain.errors != aware.errors
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())

"""A baseline is trained once, and read when it is whole."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from ranksearch.data.splits import Splits
from ranksearch.errors import DivergedError
from ranksearch.models.cifar import cifar_resnet
from ranksearch.training.baseline import ensure_baseline
from ranksearch.training.recipe import Recipe


def obtain(splits: Splits, cache: Path, seed: int = 0, **made_from: object) -> tuple[nn.Module, int]:
    torch.manual_seed(seed)
    model, steps = cifar_resnet(8, 10), []
    ensure_baseline(
        model,
        splits,
        Recipe(steps=3),
        cache,
        made_from=made_from,
        seed=seed,
        device=torch.device("cpu"),
        on_step=lambda step, loss: steps.append(step),
    )
    return model, len(steps)


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_the_second_time_the_same_weights_are_read(splits: Splits, tmp_path: Path) -> None:
    first, trained = obtain(splits, tmp_path, depth=8)
    second, again = obtain(splits, tmp_path, depth=8)
    assert (trained, again) == (3, 0)
    assert equal(first, second)
    assert not second.training


def test_other_settings_have_a_baseline_of_their_own(splits: Splits, tmp_path: Path) -> None:
    obtain(splits, tmp_path, depth=8)
    assert obtain(splits, tmp_path, depth=9)[1] == 3
    assert obtain(splits, tmp_path, seed=1, depth=8)[1] == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_a_baseline_that_diverged_is_not_kept(splits: Splits, tmp_path: Path) -> None:
    recipe = Recipe(steps=1, learning_rate=1e30, max_gradient_norm=1e30)
    with pytest.raises(DivergedError):
        ensure_baseline(
            cifar_resnet(8, 10),
            splits,
            recipe,
            tmp_path,
            made_from={},
            seed=0,
            device=torch.device("cpu"),
            on_step=lambda step, loss: None,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_trained_anew(splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = obtain(splits, tmp_path, depth=8)
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        second, trained = obtain(splits, tmp_path, depth=8)
    assert trained == 3
    assert "does not fit the network" in caplog.text
    assert equal(first, second)

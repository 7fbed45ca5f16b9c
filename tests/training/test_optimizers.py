"""How learning rates move, and how far a step can take the weights."""

from __future__ import annotations

import pytest
import torch
from conftest import CPU
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ranksearch.data.loaders import endless_batches
from ranksearch.data.splits import Splits
from ranksearch.models.cifar import cifar_resnet
from ranksearch.training.loop import train
from ranksearch.training.optimizers import make_optimizer, make_schedule
from ranksearch.training.recipe import SCHEDULES, Recipe


def rates(name: str, steps: int, warmup: float) -> list[float]:
    """The learning rate of every step, of a highest of 1."""
    optimizer = make_optimizer("sgd", nn.Linear(2, 2), 1.0, 0.9, 0.0)
    schedule = make_schedule(name, optimizer, steps, warmup, 0.9)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@given(st.sampled_from(SCHEDULES), st.integers(4, 60), st.floats(0, 0.5))
def test_rates_rise_to_the_highest_once_and_never_above(name: str, steps: int, warmup: float) -> None:
    found = rates(name, steps, warmup)
    top = found.index(max(found))
    assert 0.9 < max(found) <= 1 + 1e-12
    assert all(0 < rate <= 1 for rate in found)
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert top <= max(2, round(warmup * (steps + 1)) + 1)


@given(st.sampled_from(SCHEDULES), st.integers(20, 60))
def test_all_but_the_constant_rate_end_near_nothing(name: str, steps: int) -> None:
    assert (rates(name, steps, 0.1)[-1] < 0.05) == (name != "constant")


@pytest.mark.parametrize("norm", [0.01, 1.0])
def test_a_plain_step_moves_the_weights_by_no_more_than_the_rate_times_the_clipped_norm(
    norm: float, splits: Splits
) -> None:
    torch.manual_seed(0)
    model = cifar_resnet(8, 10)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    recipe = Recipe(
        steps=1, learning_rate=0.1, momentum=0.0, weight_decay=0.0, max_gradient_norm=norm, schedule="constant"
    )
    train(model, endless_batches(splits.train, 64, CPU, seed=0), recipe)
    moved = sum(float((new.detach() - old).square().sum()) for new, old in zip(model.parameters(), before, strict=True))
    assert 0 < moved**0.5 <= 0.1 * norm * 1.001

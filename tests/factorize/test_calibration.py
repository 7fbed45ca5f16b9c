"""Statistics stream, and nothing else about the model changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ranksearch.errors import PlanError
from ranksearch.factorize import collect_statistics, recalibrate_batchnorm


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 4, 3)
    ).double()


def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(size, 3, 8, 8).double() * 3 + 1 for size in (5, 1, 7)]


def test_streamed_statistics_equal_those_of_all_outputs_at_once() -> None:
    model = network().eval()
    statistics = collect_statistics(model, batches(), ["0", "4"], ["full"])["4"].all
    with torch.no_grad():
        rows = model(torch.cat(batches())).movedim(1, -1).reshape(-1, 4)
    assert statistics.count == len(rows)
    assert torch.allclose(statistics.mean[0], rows.mean(0))
    assert torch.allclose(statistics.covariance[0], torch.cov(rows.T, correction=0))


@pytest.mark.parametrize("schemes", [["full"], ["full", "vertical"]])
@pytest.mark.parametrize("channels", [3, 40])
def test_maps_without_a_batch_are_examples_too(channels: int, schemes: list[str]) -> None:
    class OneByOne(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([super(OneByOne, self).forward(image) for image in x])

    torch.manual_seed(0)
    layer, images = nn.Conv2d(channels, 4, 3).double(), torch.randn(6, channels, 5, 5).double()
    found = [collect_statistics(model(layer), [images], ["0"], schemes)["0"] for model in (OneByOne, nn.Sequential)]
    assert torch.allclose(found[0].all.mean, found[1].all.mean)
    assert torch.allclose(found[0].all.covariance, found[1].all.covariance)


@pytest.mark.parametrize("schemes", [["full"], ["full", "vertical"]])
def test_statistics_are_as_precise_under_autocast(schemes: list[str]) -> None:
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(40, 40, 3)), torch.randn(8, 40, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        low = collect_statistics(model, [images], ["0"], schemes)["0"].all
    high = collect_statistics(model, [images], ["0"], schemes)["0"].all
    # Inputs are what they were; outputs have the rounding of their own computation, and no more.
    tolerance = 1e-5 if "vertical" in schemes else 1e-2
    assert torch.dist(low.covariance, high.covariance) <= tolerance * high.covariance.norm()


def test_a_far_mean_does_not_drown_the_covariance() -> None:
    layer = nn.Linear(4, 4)
    inputs = torch.randn(512, 4)
    near = collect_statistics(nn.Sequential(layer), [inputs], ["0"])["0"].all.covariance
    with torch.no_grad():
        layer.bias.add_(1000.0)
    far = collect_statistics(nn.Sequential(layer), inputs.split(64), ["0"])["0"].all.covariance
    assert torch.allclose(near, far, rtol=1e-3, atol=1e-4)


def test_collecting_leaves_the_model_as_it_was() -> None:
    model = network().train()
    model[3].eval()
    before = copy.deepcopy(model.state_dict())
    collect_statistics(model, batches(), ["0"])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, True, True, False, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_also_when_the_model_fails() -> None:
    model = network()
    with pytest.raises(RuntimeError):
        collect_statistics(model, [torch.randn(1, 5, 8, 8).double()], ["0"])
    assert not any(module._forward_hooks for module in model.modules())


def test_recalibrated_norms_hold_the_statistics_of_what_reaches_them() -> None:
    model = network()
    [first, *_] = batches()
    recalibrate_batchnorm(model, [first])
    with torch.no_grad():
        rows = model[0](first).movedim(1, -1).reshape(-1, 6)
    assert torch.allclose(model[1].running_mean, rows.mean(0))
    assert torch.allclose(model[1].running_var, rows.var(0))


def test_recalibrating_touches_nothing_but_running_statistics() -> None:
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    momentum = model[1].momentum
    recalibrate_batchnorm(model, batches())
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert model[1].momentum == momentum
    assert all(module.training for module in model.modules())


def test_recalibrating_on_nothing_changes_nothing() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    recalibrate_batchnorm(model, [])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("0", "layer '0' is a ReLU, without statistics: name a Conv2d or Linear"),
        ("9", "the model lacks the layer '9': name one that it has"),
    ],
)
def test_layers_without_statistics_are_named(name: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        collect_statistics(nn.Sequential(nn.ReLU()), [torch.randn(2, 3)], [name])

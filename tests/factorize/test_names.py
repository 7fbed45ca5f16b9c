"""A plan for a wrapped network fits the bare one, and the reverse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ranksearch
from ranksearch import LayerChoice, PlanError, RankPlan
from ranksearch.factorize.names import fitted_plan


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(self.stem(x).relu()).mean((2, 3)))
        return logits


class Wrapper(nn.Module):
    """What a training framework asks for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class Inside(nn.Module):
    """A part of a model that is wrapped by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.DataParallel(Net(), device_ids=None)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.backbone(x)
        return logits


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "bare": Net,
    "parallel": lambda: nn.DataParallel(Net()),
    "compiled": lambda: torch.compile(Net()),  # type: ignore[return-value]  # a module
    "one attribute": lambda: Wrapper(Net()),
    "two": lambda: nn.DataParallel(Wrapper(Net())),
    "inside": lambda: Wrapper(nn.DataParallel(Net())),
}
IMAGES = torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("found", WRAPPED)
@pytest.mark.parametrize("used", WRAPPED)
def test_a_plan_fits_however_the_model_is_wrapped(found: str, used: str) -> None:
    plan = ranksearch.find_plan(WRAPPED[found]().eval(), IMAGES, 1.3, progress=False)
    network = ranksearch.apply_plan(plan, WRAPPED[used]().eval(), IMAGES, progress=False)
    bare = ranksearch.apply_plan(
        RankPlan({name.rpartition(".")[2]: choice for name, choice in plan}), Net().eval(), IMAGES, progress=False
    )
    with torch.no_grad():
        assert torch.allclose(network(IMAGES), bare(IMAGES), atol=1e-5)


def test_names_that_fit_are_left_alone_and_others_fail_as_before() -> None:
    plan = RankPlan({"body": LayerChoice(4)})
    assert fitted_plan(plan, Net()) is plan
    other = RankPlan({"layer1.0.conv1": LayerChoice(4)})
    assert fitted_plan(other, Net()) is other
    with pytest.raises(PlanError, match=r"the plan names 'layer1.0.conv1', which the model lacks"):
        ranksearch.apply_plan(other, Net().eval(), IMAGES, progress=False)

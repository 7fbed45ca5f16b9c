"""A network with a shortcut, its plans, and maps whose neighbours resemble each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranksearch.factorize import (
    Decomposition,
    collect_statistics,
    decompose_schemes,
    profile_layers,
    recalibrate_batchnorm,
)
from ranksearch.plan import LayerChoice, RankPlan


def smooth(count: int, channels: int = 6, size: int = 12) -> Tensor:
    """Maps whose channels and neighbours resemble each other."""
    noise = torch.randn(count, channels, size, size)
    mixed = torch.einsum("bchw,cd->bdhw", noise, torch.randn(channels, channels))
    return nn.functional.avg_pool2d(mixed, 3, 1, 1) + 0.2 * noise + 0.5


class Residual(nn.Module):
    """Convolutions with norms and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, 12, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3))
        self.first = nn.Conv2d(12, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 12, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norms[0](self.stem(x)))
        inner = torch.relu(self.norms[1](self.first(x)))
        return torch.relu(x + self.norms[2](self.second(inner)))


def decomposed(model: nn.Module, images: Tensor) -> dict[str, dict[str, Decomposition]]:
    names = [spec.name for spec in profile_layers(model, images[:1]).layers]
    statistics = collect_statistics(model, [images], names)
    return {name: decompose_schemes(model.get_submodule(name), statistics[name]) for name in names}


def residual(count: int = 48) -> tuple[Residual, Tensor]:
    model, images = Residual(), smooth(count)
    recalibrate_batchnorm(model, [images])
    return model.eval(), images


PLANS = {
    "full": RankPlan({name: LayerChoice(4) for name in ("stem", "first", "second")}),
    "vertical": RankPlan({name: LayerChoice(4, "vertical") for name in ("stem", "first", "second")}),
    "pointwise": RankPlan({name: LayerChoice(3, "pointwise") for name in ("stem", "first", "second")}),
    "mixed": RankPlan({"stem": LayerChoice(3), "first": LayerChoice(4, "horizontal")}),
}


@torch.no_grad()
def output_of(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """What a layer gives when the network runs."""
    seen: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2]))
    network(images)
    handle.remove()
    return seen[0]

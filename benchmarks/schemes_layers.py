"""Single layers of a trained network: our factors beside gradient descent, predicted errors beside measured ones."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.factorize import (
    FactorizedConv2d,
    FactorizedLinear,
    LayerStatistics,
    collect_statistics,
    decompose_schemes,
)
from ranksearch.factorize.functional import truncation_error
from ranksearch.factorize.shapes import describe

STEPS, RATES = 250, (3e-3, 1e-2, 3e-2)
PREDICTED = (0.03, 0.07, 0.12, 0.19, 0.28, 0.42, 0.6, 0.78, 0.93)
# Errors below this are of no consequence, and their ratios say nothing.
LEAST = 1e-4


def maps(model: nn.Module, images: Tensor, names: list[str]) -> dict[str, Tensor]:
    """The input of every named layer."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: found.update({name: args[0]}))
        for name in names
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


def factorized(
    layer: nn.Conv2d | nn.Linear, rank: int, statistics: LayerStatistics, scheme: str
) -> FactorizedConv2d | FactorizedLinear:
    """A layer at a rank."""
    if isinstance(layer, nn.Linear):
        return FactorizedLinear.from_linear(layer, rank, statistics=statistics)
    return FactorizedConv2d.from_conv2d(layer, rank, statistics=statistics, scheme=scheme)


def off(layer: nn.Module, twin: nn.Module, inputs: Tensor) -> float:
    """The relative output error."""
    with torch.no_grad():
        return truncation_error(layer(inputs), twin(inputs), axis=1)


def descended(start: FactorizedConv2d, layer: nn.Conv2d, seen: Tensor, fresh: Tensor) -> float:
    """The error on fresh inputs after 250 steps of Adam on all that was seen; the best of three learning rates."""
    with torch.no_grad():
        target = layer(seen)
    best = float("inf")
    for rate in RATES:
        twin = FactorizedConv2d.from_conv2d(layer, start.latent_size, scheme=start.scheme)
        twin.load_state_dict(start.state_dict())
        with torch.no_grad():  # both factors of one size, so that one rate serves both
            sizes = [factor.weight.square().mean().sqrt() for factor in (twin.module0, twin.module1)]
            scale = (sizes[1] / sizes[0]).sqrt()
            twin.module0.weight.mul_(scale)
            twin.module1.weight.div_(scale)
        size = float(twin.module0.weight.detach().square().mean().sqrt())
        optimizer = torch.optim.Adam(twin.parameters(), lr=rate * size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for step in range(STEPS):
            part = slice((step % 4) * 128, (step % 4) * 128 + 128)
            loss = (twin(seen[part]) - target[part]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        best = min(best, off(layer, twin, fresh))
    return best


def measure(model: nn.Module, images: list[Tensor], fresh: Tensor, shares: tuple[float, ...]) -> dict[str, Any]:
    """Compare all layers: predicted errors with measured ones, and those of split kernels with gradient descent's.

    Args:
        model: the trained network.
        images: that it is calibrated with.
        fresh: others to measure on.
        shares: of a layer's MACs.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    statistics = collect_statistics(model, images, names)
    seen, unseen = maps(model, torch.cat(images), names), maps(model, fresh, names)
    ratios, deviations, small = [], [], 0
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        statistic, inputs = statistics[name], unseen[name]
        for scheme, decomposition in decompose_schemes(layer, statistic).items():
            expected, limit = decomposition.expected_errors(), describe(layer).break_even_rank(scheme)
            for share in PREDICTED:
                rank = max(1, round(limit * share))
                measured = off(layer, factorized(layer, rank, statistic, scheme), inputs)
                small += measured <= LEAST
                if measured > LEAST:
                    deviations.append(abs(expected[rank] / measured - 1))
            for share in shares if scheme != "full" else ():
                rank = max(1, int(limit * share))
                twin = factorized(layer, rank, statistic, scheme)
                assert isinstance(layer, nn.Conv2d)
                assert isinstance(twin, FactorizedConv2d)
                if (ours := off(layer, twin, inputs)) > LEAST:
                    ratios.append(ours / descended(twin, layer, seen[name], inputs))
    row = {
        "over_adam_median": median(ratios),
        "over_adam_worst": max(ratios),
        "adam_cases": len(ratios),
        "predicted_off_median": median(deviations),
        "predicted_off_worst": max(deviations),
        "predicted_cases": len(deviations),
        "too_small_to_compare": small,
    }
    print("\nsingle layers of the trained ResNet, errors on held-out images")
    for what, value in row.items():
        print(f"  {what:22} {value:.4g}")
    return row

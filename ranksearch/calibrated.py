"""A network whose layers have been decomposed, once for all plans."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ranksearch.device import give_back_memory
from ranksearch.errors import DataError
from ranksearch.factorize import (
    Decomposition,
    LayerStatistics,
    affordable_images,
    collect_statistics,
    decompose_schemes,
    factorize_model,
    factorize_sequentially,
    recalibrate_batchnorm,
)
from ranksearch.plan import RankPlan
from ranksearch.space import Errors, SearchSpace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibrated:
    """What training images have shown of a network's layers.

    Attributes:
        model: the dense network, in eval mode.
        space: what a plan may choose.
        decompositions: layer name -> scheme -> decomposition, of every layer in the space.
        errors: layer name -> scheme -> the expected error at rank 0, 1, ...
        harms: the same, weighed by what an error is feared to do to the network; see `proxies`.
        calibration: inputs to recalibrate with, each `[B, C, H, W]`.
        comparison: inputs to compare closed-form plans on, which no decomposition has seen.
        sequential: inputs to solve a plan's layers on one after another, `[B, C, H, W]`; None where each is solved by
            itself.
        sensitivities: layer name -> what errors are weighed by; see `collect_sensitivities`.
    """

    model: nn.Module
    space: SearchSpace
    decompositions: Mapping[str, Mapping[str, Decomposition]]
    errors: Errors
    harms: Errors
    calibration: tuple[Tensor, ...]
    comparison: tuple[Tensor, ...]
    sequential: Tensor | None
    sensitivities: Mapping[str, Tensor]

    def build(self, plan: RankPlan, images: int | None = None) -> nn.Module:
        """A plan's network before any fine-tuning, BatchNorm recalibrated, in eval mode.

        Args:
            plan: layers, their schemes and their latent sizes.
            images: that layers are solved on one after another; None for all there are.
        """
        give_back_memory()  # what the last one took in small pieces, for this one takes large ones
        inputs = None if self.sequential is None else self.sequential[:images]
        return build_network(self.model, plan, self.decompositions, self.calibration, inputs, self.sensitivities)


def build_network(
    model: nn.Module,
    plan: RankPlan,
    decompositions: Mapping[str, Mapping[str, Decomposition]],
    calibration: Iterable[Tensor],
    sequential: Tensor | None,
    sensitivities: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """A plan's network, BatchNorm recalibrated, in eval mode.

    Args:
        model: the dense network; is not touched.
        plan: layers, their schemes and their latent sizes.
        decompositions: layer name -> scheme -> decomposition, of every layer in the plan.
        calibration: inputs to recalibrate with, `[B, C, H, W]` each.
        sequential: inputs to solve the layers on one after another; None solves each by itself.
        sensitivities: what output errors are weighed by; None for all alike.
    """
    if sequential is None:
        network = factorize_model(model, plan, decompositions)
    else:
        network = factorize_sequentially(model, plan, decompositions, sequential, sensitivities)
    recalibrate_batchnorm(network, calibration)
    return network.eval()


def sequential_inputs(model: nn.Module, images: Sequence[Tensor], most: int) -> Tensor | None:
    """The first of some images, as many as layers can be solved on one after another; None where that is too few.

    Args:
        model: the dense network.
        images: `[B, C, H, W]` each.
        most: how many at the most; 0 for none.
    """
    count = min(most, affordable_images(model, images[0][:1]))
    return torch.cat(list(images))[:count] if count > 1 else None


def decompose_layer(
    model: nn.Module,
    name: str,
    statistics: LayerStatistics | None,
    sensitivity: Tensor | None,
    schemes: Collection[str],
) -> dict[str, Decomposition]:
    """Decompose one layer of a model by some schemes, see `decompose_schemes`.

    Raises:
        DataError: weights or images are not finite; the layer is named.
    """
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    try:
        return decompose_schemes(layer, statistics, sensitivity, schemes)
    except DataError as error:
        raise DataError(f"'{name}' cannot be decomposed, {error}") from None


def decompose_layers(
    model: nn.Module,
    space: SearchSpace,
    images: Sequence[Tensor],
    comparison: Sequence[Tensor],
    sequential_images: int,
    sensitivities: Mapping[str, Tensor] | None = None,
) -> Calibrated:
    """Decompose every layer of a space by every scheme that it may have.

    Args:
        model: the trained dense network, in eval mode.
        space: the layers.
        images: to decompose on, `[B, C, H, W]` each, on the model's device.
        comparison: others, to compare closed-form plans on.
        sequential_images: of the first, how many layers are solved on one after another, at the most; 0 for none.
        sensitivities: what output errors are weighed by; None for all alike.
    """
    start = time.perf_counter()
    names, felt = [layer.spec.name for layer in space.layers], sensitivities or {}
    statistics = collect_statistics(model, images, names, space.schemes)
    decompositions, errors = {}, {}
    for choices in space.layers:
        name = choices.spec.name
        by_scheme = decompose_layer(model, name, statistics.pop(name), felt.get(name), choices.schemes)
        decompositions[name] = by_scheme
        errors[name] = {scheme: decomposition.expected_errors() for scheme, decomposition in by_scheme.items()}
    log.info(
        "calibration: %d layers, %d decompositions, from %d images in %.1f s",
        len(names),
        sum(map(len, decompositions.values())),
        sum(map(len, images)),
        time.perf_counter() - start,
    )
    return Calibrated(
        model=model,
        space=space,
        decompositions=decompositions,
        errors=errors,
        harms=errors,
        calibration=tuple(images),
        comparison=tuple(comparison),
        sequential=sequential_inputs(model, images, sequential_images),
        sensitivities=felt,
    )

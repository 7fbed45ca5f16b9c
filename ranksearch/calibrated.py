"""A network whose layers have been decomposed, once for all plans."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ranksearch.device import give_back_memory
from ranksearch.factorize import (
    Decomposition,
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
        errors: layer name -> scheme -> the error that is expected at rank 0, 1, ...
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
        if self.sequential is None:
            network = factorize_model(self.model, plan, self.decompositions)
        else:
            inputs = self.sequential[:images]
            network = factorize_sequentially(self.model, plan, self.decompositions, inputs, self.sensitivities)
        recalibrate_batchnorm(network, self.calibration)
        return network


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
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        by_scheme = decompose_schemes(layer, statistics.pop(name), felt.get(name), choices.schemes)
        decompositions[name] = by_scheme
        errors[name] = {scheme: decomposition.expected_errors() for scheme, decomposition in by_scheme.items()}
    log.info(
        "calibration: %d layers, %d ways to factorize them, from %d images in %.1f s",
        len(names),
        sum(map(len, decompositions.values())),
        sum(map(len, images)),
        time.perf_counter() - start,
    )
    in_turn = min(sequential_images, affordable_images(model, images[0][:1]))
    return Calibrated(
        model=model,
        space=space,
        decompositions=decompositions,
        errors=errors,
        harms=errors,
        calibration=tuple(images),
        comparison=tuple(comparison),
        sequential=torch.cat(list(images))[:in_turn] if in_turn > 1 else None,
        sensitivities=felt,
    )

"""A network whose layers have been decomposed, once for all plans."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ranksearch.batches import divergence, predict
from ranksearch.device import give_back_memory
from ranksearch.errors import DataError
from ranksearch.factorize import (
    Decomposition,
    LayerStatistics,
    NormStatistics,
    adapt_batchnorm,
    affordable_images,
    collect_statistics,
    decompose_schemes,
    factorize_model,
    factorize_sequentially,
    inputs_of_norms,
    require_called,
    statistics_of_norms,
    untouched,
)
from ranksearch.plan import RankPlan
from ranksearch.space import Errors, SearchSpace

log = logging.getLogger(__name__)

# Images that what reaches a norm is compared on.
MOVED_ON = 256
# Comparison images that decide how BatchNorm is adapted.
DECIDE_ON = 128
# With fewer images in all, none are kept back to decide by.
FEWEST_TO_DECIDE = 32


@dataclass(frozen=True)
class DenseReference:
    """What the dense network gives on some images, computed once for all plans.

    Attributes:
        calibration: inputs that layers are decomposed on, `[B, ...]` each.
        images: the first of these, as one batch that fits the memory.
        stored: the running statistics that the dense network has, by the norm's name.
        inputs: moments of what reaches its norms for `images`.
        comparison: inputs that plans are compared on, which no estimate and no decomposition has seen.
        predictions: of the dense network on these, `[N, ...]`; see `batches.predict`.
    """

    calibration: tuple[Tensor, ...]
    images: Tensor
    stored: Mapping[str, NormStatistics]
    inputs: Mapping[str, NormStatistics]
    comparison: tuple[Tensor, ...]
    predictions: Tensor

    @staticmethod
    def from_model(model: nn.Module, calibration: Sequence[Tensor], comparison: Sequence[Tensor]) -> DenseReference:
        """Compute it.

        Args:
            model: the dense network; is not touched.
            calibration: inputs, `[B, ...]` each.
            comparison: others; may be none.
        """
        with untouched(model):
            predictions = predict(model, comparison) if comparison else torch.zeros(0)
        stored, inputs, images = statistics_of_norms(model), dict[str, NormStatistics](), calibration[0]
        if stored:
            count = min(MOVED_ON, affordable_images(model, images[:1]))
            images = torch.cat(list(calibration))[: max(count, 2)]
            inputs = inputs_of_norms(model, images)
        return DenseReference(tuple(calibration), images, stored, inputs, tuple(comparison), predictions)

    def adapt(self, network: nn.Module) -> None:
        """Adapt a factorized network's BatchNorm, in place; see `adapt_batchnorm`."""
        if not self.stored:
            return
        decisive = self._first(DECIDE_ON)
        dense = self.predictions[: sum(map(len, decisive))]

        def diverge(factorized: nn.Module) -> float:
            return divergence(predict(factorized.eval(), decisive), dense)

        chosen = diverge if decisive else None
        adapt_batchnorm(network, self.stored, self.inputs, self.images, self.calibration, chosen)

    def _first(self, count: int) -> list[Tensor]:
        """Comparison batches up to a number of examples."""
        found: list[Tensor] = []
        for batch in self.comparison:
            left = count - sum(map(len, found))
            if left > 0:
                found.append(batch[:left])
        return found


@dataclass(frozen=True)
class Calibrated:
    """What training images have shown of a network's layers.

    Attributes:
        model: the dense network, in eval mode.
        space: what a plan may choose.
        decompositions: layer name -> scheme -> decomposition, of every layer in the space.
        errors: layer name -> scheme -> the expected error at rank 0, 1, ...
        harms: the same, weighed by what an error is feared to do to the network; see `proxies`.
        reference: what the dense network gives on the images of calibration and comparison.
        sequential: inputs to solve a plan's layers on one after another, `[B, C, H, W]`; None where each is solved by
            itself.
        sensitivities: layer name -> what errors are weighed by; see `collect_sensitivities`.
    """

    model: nn.Module
    space: SearchSpace
    decompositions: Mapping[str, Mapping[str, Decomposition]]
    errors: Errors
    harms: Errors
    reference: DenseReference
    sequential: Tensor | None
    sensitivities: Mapping[str, Tensor]

    @property
    def calibration(self) -> tuple[Tensor, ...]:
        """Inputs that layers are decomposed on, `[B, ...]` each."""
        return self.reference.calibration

    @property
    def comparison(self) -> tuple[Tensor, ...]:
        """Inputs that plans are compared on, which no decomposition has seen."""
        return self.reference.comparison

    def build(self, plan: RankPlan, images: int | None = None) -> nn.Module:
        """A plan's network before any fine-tuning, BatchNorm adapted, in eval mode.

        Args:
            plan: layers, their schemes and their latent sizes.
            images: that layers are solved on one after another; None for all there are.
        """
        give_back_memory()  # what the last one took in small pieces, for this one takes large ones
        inputs = None if self.sequential is None else self.sequential[:images]
        return build_network(self.model, plan, self.decompositions, self.reference, inputs, self.sensitivities)


def build_network(
    model: nn.Module,
    plan: RankPlan,
    decompositions: Mapping[str, Mapping[str, Decomposition]],
    reference: DenseReference,
    sequential: Tensor | None,
    sensitivities: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """A plan's network, BatchNorm adapted, in eval mode.

    Args:
        model: the dense network; is not touched.
        plan: layers, their schemes and their latent sizes.
        decompositions: layer name -> scheme -> decomposition, of every layer in the plan.
        reference: what the dense network gives.
        sequential: inputs to solve the layers on one after another; None solves each by itself.
        sensitivities: what output errors are weighed by; None for all alike.

    Raises:
        PlanError: the network passes a layer over once it is factorized.
    """
    if sequential is None:
        network = factorize_model(model, plan, decompositions)
    else:
        network = factorize_sequentially(model, plan, decompositions, sequential, sensitivities)
    require_called(network, plan, reference.calibration[0][:1], model)
    reference.adapt(network)
    return network.eval()


def held_back(batches: Sequence[Tensor], fewest: int = FEWEST_TO_DECIDE) -> tuple[list[Tensor], list[Tensor]]:
    """Images to compare on, a quarter of all, and the others; of fewer than some number, none are kept back.

    Args:
        batches: `[B, ...]` each, of one size.
        fewest: images.
    """
    images, size = torch.cat(list(batches)), max(2, *map(len, batches))
    kept = len(images) // 4 if len(images) >= fewest else 0
    comparison = list(torch.split(images[:kept], size)) if kept else []
    return comparison, list(torch.split(images[kept:], size))


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
        reference=DenseReference.from_model(model, images, comparison),
        sequential=sequential_inputs(model, images, sequential_images),
        sensitivities=felt,
    )

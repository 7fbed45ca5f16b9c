"""Decomposed models: a network's layers decomposed once and shared by all plans."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from ranksearch.batches import divergence, predict
from ranksearch.device import trim_heap
from ranksearch.errors import DataError
from ranksearch.factorize.base import Decomposition
from ranksearch.factorize.batchnorm import NormStatistics, adapt_batchnorm, inputs_of_norms, statistics_of_norms
from ranksearch.factorize.calibration import collect_statistics
from ranksearch.factorize.decomposition import decompose_schemes
from ranksearch.factorize.sequential import affordable_images, factorize_sequentially
from ranksearch.factorize.source_model import untouched
from ranksearch.factorize.statistics import LayerStatistics
from ranksearch.factorize.surgery import factorize_model, require_called
from ranksearch.plan import RankPlan
from ranksearch.search_space.space import Errors, SearchSpace

log = logging.getLogger(__name__)

# Images for sequential factorization when comparing plans: a quarter of a trial's, which ranks plans equally well.
COMPARED_ON = 64
# Images that the input moments of normalization layers are estimated on.
MOVED_ON = 256
# Held-out images that decide how BatchNorm is adapted.
DECIDE_ON = 128
# Smallest number of images from which some are held out.
FEWEST_TO_DECIDE = 32

# Layer name -> scheme -> sensitivity of the network to an error of it, in any unit.
Weights = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class DenseReference:
    """The dense network's predictions and normalization statistics, computed once for all plans.

    Attributes:
        calibration: inputs that layers are decomposed on, `[B, ...]` each.
        images: first calibration images, as one batch that fits in memory.
        stored: running statistics of the dense network, by the name of the normalization layer.
        inputs: input moments of these layers on `images`, by name.
        comparison: held-out inputs that plans are compared on, `[B, ...]` each.
        predictions: the dense network's predictions for `comparison`, `[N, ...]`; see `batches.predict`.
    """

    calibration: tuple[Tensor, ...]
    images: Tensor
    stored: Mapping[str, NormStatistics]
    inputs: Mapping[str, NormStatistics]
    comparison: tuple[Tensor, ...]
    predictions: Tensor

    @staticmethod
    def from_model(model: nn.Module, calibration: Sequence[Tensor], comparison: Sequence[Tensor]) -> DenseReference:
        """Compute the reference of a dense network.

        Args:
            model: the dense network; left unchanged.
            calibration: calibration inputs, `[B, ...]` each.
            comparison: held-out inputs, `[B, ...]` each; may be empty.
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
        """Adapt the BatchNorm statistics of a factorized network in place; see `adapt_batchnorm`."""
        if not self.stored:
            return
        decisive = self._first(DECIDE_ON)
        dense = self.predictions[: sum(map(len, decisive))]

        def diverge(factorized: nn.Module) -> float:
            return divergence(predict(factorized.eval(), decisive), dense)

        chosen = diverge if decisive else None
        adapt_batchnorm(network, self.stored, self.inputs, self.images, self.calibration, chosen)

    def _first(self, count: int) -> list[Tensor]:
        """Return the first `count` comparison examples, in batches."""
        batches: list[Tensor] = []
        for batch in self.comparison:
            left = count - sum(map(len, batches))
            if left > 0:
                batches.append(batch[:left])
        return batches


@dataclass(frozen=True)
class DecomposedModel:
    """A dense network with the decompositions and expected errors of its layers.

    Attributes:
        model: the dense network, in eval mode.
        space: the search space.
        decompositions: layer name -> scheme -> decomposition, of every layer in the space.
        errors: layer name -> scheme -> expected error at rank 0, 1, ...
        weighted_errors: `errors` multiplied by layer-sensitivity weights; see `allocation.sensitivity`.
        reference: the dense network's predictions and normalization statistics.
        sequential: inputs for sequential factorization, `[B, C, H, W]`; None solves each layer independently.
        sensitivities: layer name -> output sensitivity that errors are weighted by; see `collect_sensitivities`.
        seed: random seed.
    """

    model: nn.Module
    space: SearchSpace
    decompositions: Mapping[str, Mapping[str, Decomposition]]
    errors: Errors
    weighted_errors: Errors
    reference: DenseReference
    sequential: Tensor | None
    sensitivities: Mapping[str, Tensor]
    seed: int

    @property
    def calibration(self) -> tuple[Tensor, ...]:
        """Inputs that layers are decomposed on, `[B, ...]` each."""
        return self.reference.calibration

    @property
    def comparison(self) -> tuple[Tensor, ...]:
        """Held-out inputs that plans are compared on, `[B, ...]` each."""
        return self.reference.comparison

    def weighted(self, weights: Weights) -> Self:
        """Return the same model with its errors weighted for allocation."""
        weighted_errors = {
            name: {scheme: [weights[name][scheme] * error for error in curve] for scheme, curve in curves.items()}
            for name, curves in self.errors.items()
        }
        return replace(self, weighted_errors=weighted_errors)

    def build(self, plan: RankPlan, images: int | None = None) -> nn.Module:
        """Build a plan's network before fine-tuning, with adapted BatchNorm statistics, in eval mode.

        Args:
            plan: scheme and latent size of each factorized layer.
            images: maximum number of images for sequential factorization; None for all available.
        """
        trim_heap()  # the previous build fragments the heap, and this one needs large blocks
        inputs = None if self.sequential is None else self.sequential[:images]
        return build_network(self.model, plan, self.decompositions, self.reference, inputs, self.sensitivities)


@runtime_checkable
class Proxy(Protocol):
    """Estimates the sensitivity of the network to errors of each layer and scheme."""

    def weights(self, model: DecomposedModel) -> Weights:
        """Return a weight for every scheme of every layer in the space of a decomposed model."""
        ...


def build_network(
    model: nn.Module,
    plan: RankPlan,
    decompositions: Mapping[str, Mapping[str, Decomposition]],
    reference: DenseReference,
    sequential: Tensor | None,
    sensitivities: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Build a plan's network, with adapted BatchNorm statistics, in eval mode.

    Args:
        model: the dense network; left unchanged.
        plan: scheme and latent size of each factorized layer.
        decompositions: layer name -> scheme -> decomposition, of every layer in the plan.
        reference: the dense network's predictions and normalization statistics.
        sequential: inputs for sequential factorization, `[B, C, H, W]`; None solves each layer independently.
        sensitivities: layer name -> sensitivity that output errors are weighted by; None for uniform weights.

    Raises:
        PlanError: the network bypasses a layer once it is factorized.
    """
    if sequential is None:
        network = factorize_model(model, plan, decompositions)
    else:
        network = factorize_sequentially(model, plan, decompositions, sequential, sensitivities)
    require_called(network, plan, reference.calibration[0][:1], model)
    reference.adapt(network)
    return network.eval()


def hold_out(batches: Sequence[Tensor], fewest: int = FEWEST_TO_DECIDE) -> tuple[list[Tensor], list[Tensor]]:
    """Split images into a held-out quarter and the rest, as batches.

    Args:
        batches: batches of images of equal size, `[B, ...]` each.
        fewest: minimum number of images in total; below it, none are held out.
    """
    images, size = torch.cat(list(batches)), max(2, *map(len, batches))
    kept = len(images) // 4 if len(images) >= fewest else 0
    comparison = list(torch.split(images[:kept], size)) if kept else []
    return comparison, list(torch.split(images[kept:], size))


def sequential_inputs(model: nn.Module, images: Sequence[Tensor], most: int) -> Tensor | None:
    """Return the first images as one batch for sequential factorization; None if the limits allow fewer than 2.

    Args:
        model: the dense network.
        images: batches of images, `[B, C, H, W]` each.
        most: maximum number of images; 0 for none.
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
    """Decompose one layer of a model by the given schemes; see `decompose_schemes`.

    Raises:
        DataError: weights or images are not finite; the message names the layer.
    """
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    try:
        return decompose_schemes(layer, statistics, sensitivity, schemes)
    except DataError as error:
        raise DataError(f"'{name}' cannot be decomposed, {error}") from None


def decompose_model(
    model: nn.Module,
    space: SearchSpace,
    images: Sequence[Tensor],
    comparison: Sequence[Tensor],
    *,
    sequential_images: int,
    sensitivities: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> DecomposedModel:
    """Decompose every layer of a space by each of its schemes.

    Args:
        model: the trained dense network, in eval mode.
        space: the search space.
        images: calibration images, `[B, C, H, W]` each, on the model's device.
        comparison: held-out images to compare closed-form plans on.
        sequential_images: maximum number of images for sequential factorization; 0 for none.
        sensitivities: layer name -> sensitivity that output errors are weighted by; None for uniform weights.
        seed: random seed.
    """
    start = time.perf_counter()
    names, sensitivities = [layer.spec.name for layer in space.layers], sensitivities or {}
    statistics = collect_statistics(model, images, names, space.schemes)
    decompositions, errors = {}, {}
    for name, layer in zip(names, space.layers, strict=True):
        by_scheme = decompose_layer(model, name, statistics.pop(name), sensitivities.get(name), layer.schemes)
        decompositions[name] = by_scheme
        errors[name] = {scheme: decomposition.expected_errors() for scheme, decomposition in by_scheme.items()}
    counts, seconds = (sum(map(len, decompositions.values())), sum(map(len, images))), time.perf_counter() - start
    log.info("calibration: %d layers, %d decompositions, from %d images in %.1f s", len(names), *counts, seconds)
    reference = DenseReference.from_model(model, images, comparison)
    inputs = sequential_inputs(model, images, sequential_images)
    return DecomposedModel(model, space, decompositions, errors, errors, reference, inputs, sensitivities, seed)

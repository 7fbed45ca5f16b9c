"""Decomposed models: a network's layers decomposed once and shared by all plans."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from ranksearch.allocation.effort import EFFORTS, Effort
from ranksearch.batches import Inputs, first_examples, join
from ranksearch.device import trim_heap
from ranksearch.errors import DataError
from ranksearch.factorize.base import Decomposition
from ranksearch.factorize.batchnorm import NormStatistics, adapt_batchnorm, move_in_turn, statistics_of_norms
from ranksearch.factorize.calibration import collect_statistics
from ranksearch.factorize.decomposition import decompose_schemes
from ranksearch.factorize.exposure import exposed
from ranksearch.factorize.sequential import (
    DenseActivations,
    affordable_images,
    factorize_sequentially,
    record_activations,
    recording,
)
from ranksearch.factorize.source_model import untouched
from ranksearch.factorize.statistics import LayerStatistics
from ranksearch.factorize.surgery import Solved, factorize_model, factorize_roughly, require_called
from ranksearch.plan import RankPlan
from ranksearch.predictions import divergence, predict
from ranksearch.progress import Tick, unseen
from ranksearch.search_space.space import Errors, SearchSpace

log = logging.getLogger(__name__)

# Images that BatchNorm is corrected on when plans are compared, where their maps are small, and where they are large.
COMPARED_ON, FEW_LARGE = 128, 32
# Images that the input moments of normalization layers are estimated on.
MOVED_ON = 256
# Held-out images that decide how BatchNorm is adapted, where maps are small, and where they are large.
DECIDE_ON, DECIDE_ON_LARGE = 128, 16
# Smallest number of images from which some are held out.
FEWEST_TO_DECIDE = 32

# Layer name -> scheme -> sensitivity of the network to an error of it, in any unit.
Weights = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class DenseReference:
    """The dense network's predictions and normalization statistics, computed once for all plans.

    Attributes:
        calibration: examples that layers are decomposed on.
        stored: running statistics of the dense network, by the name of the normalization layer.
        comparison: held-out examples that plans are compared on.
        predictions: the dense network's predictions for `comparison`, `[N, ...]`; see `batches.predict`.
    """

    calibration: tuple[Inputs, ...]
    stored: Mapping[str, NormStatistics]
    comparison: tuple[Inputs, ...]
    predictions: Tensor

    @staticmethod
    def from_model(model: nn.Module, calibration: Sequence[Inputs], comparison: Sequence[Inputs]) -> DenseReference:
        """Compute the reference of a dense network.

        Args:
            model: the dense network; left unchanged.
            calibration: calibration examples.
            comparison: held-out examples; may be empty.
        """
        with untouched(model):
            predictions = predict(model, comparison) if comparison else torch.zeros(0)
        return DenseReference(tuple(calibration), statistics_of_norms(model), tuple(comparison), predictions)

    @cached_property
    def _called(self) -> set[str]:
        """Layers that have run in factorized networks."""
        return set()

    def require_called(self, network: nn.Module, plan: RankPlan, model: nn.Module) -> None:
        """Raise unless a network runs the plan's layers; see `surgery.require_called`.

        Whether the code around a layer runs what replaces it does not depend on the plan: each is looked at once.

        Args:
            network: the factorized network.
            plan: its plan.
            model: the dense network.
        """
        if not plan.layers.keys() <= self._called:
            require_called(network, plan, self.calibration[0][:1], model)
            self._called.update(plan.layers)

    def move(self, network: nn.Module, activations: DenseActivations) -> None:
        """Correct the BatchNorm statistics of a network in place for the change of their inputs; see `move_in_turn`."""
        if self.stored:
            move_in_turn(network.eval(), self.stored, activations.norms, activations.batch)

    def adapt(self, network: nn.Module, activations: DenseActivations) -> None:
        """Adapt the BatchNorm statistics of a factorized network in place; see `adapt_batchnorm`.

        Args:
            network: the factorized network, its norms corrected for the change of their inputs.
            activations: of the dense network, on the images that they were corrected on.
        """
        if not self.stored:
            return
        most = deciding(len(activations.batch), sum(map(len, self.calibration)))
        decisive = first_examples(self.comparison, most)
        dense = self.predictions[: sum(map(len, decisive))]

        def diverge(factorized: nn.Module) -> float:
            return divergence(predict(factorized.eval(), decisive), dense)

        batches = activations.batch.split(max(2, *map(len, self.calibration)))
        adapt_batchnorm(network, self.stored, batches, diverge if decisive else None)


def deciding(solved_on: int, calibration: int) -> int:
    """Return the number of held-out images that decide how BatchNorm is adapted.

    Args:
        solved_on: number of images that layers are solved on, fewer than there are where maps are large.
        calibration: number of calibration images.
    """
    return DECIDE_ON if solved_on >= min(COMPARED_ON, calibration) else DECIDE_ON_LARGE


@dataclass(frozen=True)
class SolvingImages:
    """Images that a plan's network is solved on, with the dense network's activations, recorded once for all plans.

    Attributes:
        model: the dense network.
        batch: the examples, as one batch.
        layers: names of the layers that plans may factorize; without any, layers are not solved in turn.
    """

    model: nn.Module
    batch: Inputs
    layers: tuple[str, ...]

    @cached_property
    def _recorded(self) -> dict[int, DenseActivations]:
        return {}

    def activations(self, count: int | None = None) -> DenseActivations:
        """Return the dense network's activations for the first images, or all."""
        count = min(len(self.batch), count or len(self.batch))
        if count not in self._recorded:
            self._recorded[count] = record_activations(self.model, self.batch[:count], self.layers)
        return self._recorded[count]

    def pass_over(self, batches: Sequence[Inputs]) -> Iterator[Inputs]:
        """Yield all examples for one pass of the dense network, which records its activations for these, the first.

        Args:
            batches: the batches that these examples are the first of.
        """
        with recording(self.model, self.layers) as recorded:
            yield self.batch
        self._recorded[len(self.batch)] = recorded(self.batch)
        yield from join(batches)[len(self.batch) :].split(max(map(len, batches)))

    @staticmethod
    def from_batches(
        model: nn.Module, batches: Sequence[Inputs], layers: Iterable[str], sequential_images: int
    ) -> SolvingImages:
        """Return the first examples as one batch, fewer if their maps are large.

        Args:
            model: the dense network.
            batches: calibration examples.
            layers: names of the layers that plans may factorize.
            sequential_images: maximum number of images to solve layers in turn on; 0 for none.
        """
        affordable = affordable_images(model, batches[0][:1])
        count = min(sequential_images, affordable)
        if count > 1:
            return SolvingImages(model, join(first_examples(batches, count)), tuple(layers))
        return SolvingImages(model, join(first_examples(batches, max(2, min(MOVED_ON, affordable)))), ())


@dataclass(frozen=True)
class DecomposedModel:
    """A dense network with the decompositions and expected errors of its layers.

    Attributes:
        model: the dense network, in eval mode, with the layers of the space as modules; see `exposed`.
        space: the search space.
        decompositions: layer name -> scheme -> decomposition, of every layer in the space.
        errors: layer name -> scheme -> expected error at rank 0, 1, ...
        weighted_errors: `errors` multiplied by layer-sensitivity weights; see `allocation.sensitivity`.
        reference: the dense network's predictions and normalization statistics.
        solving: images that plans' networks are solved on.
        comparing: images that their BatchNorm is corrected on when they are compared.
        sensitivities: layer name -> output sensitivity that errors are weighted by; see `collect_sensitivities`.
        seed: random seed.
        effort: how plans are compared.
    """

    model: nn.Module
    space: SearchSpace
    decompositions: Mapping[str, Mapping[str, Decomposition]]
    errors: Errors
    weighted_errors: Errors
    reference: DenseReference
    solving: SolvingImages
    comparing: SolvingImages
    sensitivities: Mapping[str, Tensor]
    seed: int
    effort: Effort

    @property
    def calibration(self) -> tuple[Inputs, ...]:
        """Examples that layers are decomposed on."""
        return self.reference.calibration

    @property
    def comparison(self) -> tuple[Inputs, ...]:
        """Held-out examples that plans are compared on."""
        return self.reference.comparison

    def weighted(self, weights: Weights) -> Self:
        """Return the same model with its errors weighted for allocation."""
        weighted_errors = {
            name: {scheme: [weights[name][scheme] * error for error in curve] for scheme, curve in curves.items()}
            for name, curves in self.errors.items()
        }
        return replace(self, weighted_errors=weighted_errors)

    def build(self, plan: RankPlan, images: int | None = None, *, tick: Tick = unseen) -> nn.Module:
        """Build a plan's network before fine-tuning, with adapted BatchNorm statistics, in eval mode.

        Args:
            plan: scheme and latent size of each factorized layer.
            images: maximum number of images for sequential factorization; None for all available.
            tick: is called for every layer.
        """
        trim_heap()  # the previous build fragments the heap, and this one needs large blocks
        activations = self.solving.activations(images)
        layers = self.model, plan, self.decompositions, self.reference, activations
        return build_network(*layers, self.sensitivities, tick=tick)

    @property
    def affords_solving(self) -> bool:
        """Whether layers are solved in turn, and maps are so small that this takes little more than a sketch."""
        return bool(self.solving.layers) and len(self.solving.batch) >= min(COMPARED_ON, self.examples)

    @property
    def examples(self) -> int:
        """Number of calibration examples."""
        return sum(map(len, self.calibration))

    def solve(self, plan: RankPlan, solved: Solved, images: int | None = None) -> nn.Module:
        """Build a plan's network with layers solved in turn, to compare it with others.

        Args:
            plan: scheme and latent size of each factorized layer.
            solved: factors of other plans; extended by those of this one.
            images: maximum number of images to solve on; None for all available.
        """
        layers = self.model, plan, self.decompositions, self.reference, self.solving.activations(images)
        return solve_network(*layers, self.sensitivities, solved)

    def sketch(self, plan: RankPlan, solved: Solved) -> nn.Module:
        """Build a plan's network to compare it with others, with layers solved independently and roughly.

        Args:
            plan: scheme and latent size of each factorized layer.
            solved: factors of other plans; extended by those of this one.
        """
        network = factorize_roughly(self.model, plan, self.decompositions, solved)
        self.reference.require_called(network, plan, self.model)
        self.reference.move(network, self.comparing.activations())
        return network.eval()


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
    activations: DenseActivations,
    sensitivities: Mapping[str, Tensor] | None = None,
    *,
    tick: Tick = unseen,
) -> nn.Module:
    """Build a plan's network, with adapted BatchNorm statistics, in eval mode.

    Args:
        model: the dense network; left unchanged.
        plan: scheme and latent size of each factorized layer.
        decompositions: layer name -> scheme -> decomposition, of every layer in the plan.
        reference: the dense network's predictions and normalization statistics.
        activations: of the dense network; without layers, each layer is solved independently.
        sensitivities: layer name -> sensitivity that output errors are weighted by; None for uniform weights.
        tick: is called for every layer.

    Raises:
        PlanError: the network bypasses a layer once it is factorized.
    """
    network = solve_network(model, plan, decompositions, reference, activations, sensitivities, tick=tick)
    tick("BatchNorm", 0, 1)
    reference.adapt(network, activations)
    tick("BatchNorm", 1, 1)
    return network


def solve_network(
    model: nn.Module,
    plan: RankPlan,
    decompositions: Mapping[str, Mapping[str, Decomposition]],
    reference: DenseReference,
    activations: DenseActivations,
    sensitivities: Mapping[str, Tensor] | None = None,
    solved: Solved | None = None,
    *,
    tick: Tick = unseen,
) -> nn.Module:
    """Build a plan's network, BatchNorm statistics corrected for the change of their inputs, in eval mode.

    Args:
        model: the dense network; left unchanged.
        plan: scheme and latent size of each factorized layer.
        decompositions: layer name -> scheme -> decomposition, of every layer in the plan.
        reference: the dense network's normalization statistics.
        activations: of the dense network; without layers, each layer is solved independently.
        sensitivities: layer name -> sensitivity that output errors are weighted by; None for uniform weights.
        solved: factors from plans that begin alike; see `factorize_sequentially`.
        tick: is called for every layer.

    Raises:
        PlanError: the network bypasses a layer once it is factorized.
    """
    tick("solving layers", 0, len(plan))
    if activations.layers:
        network = factorize_sequentially(model, plan, decompositions, activations, sensitivities, solved, tick=tick)
    else:
        network = factorize_model(model, plan, decompositions)
        tick("solving layers", len(plan), len(plan))
    reference.require_called(network, plan, model)
    if not activations.layers:
        reference.move(network, activations)
    return network.eval()


def hold_out(batches: Sequence[Inputs], fewest: int = FEWEST_TO_DECIDE) -> tuple[list[Inputs], list[Inputs]]:
    """Split examples into a held-out quarter and the rest, as batches.

    Args:
        batches: batches of examples of equal shape.
        fewest: minimum number of examples in total; below it, none are held out.
    """
    whole, size = join(batches), max(2, *map(len, batches))
    kept = len(whole) // 4 if len(whole) >= fewest else 0
    return whole[:kept].split(size), whole[kept:].split(size)


def decompose_layer(
    model: nn.Module,
    name: str,
    statistics: LayerStatistics | None,
    sensitivity: Tensor | None,
    schemes: Collection[str],
    *,
    all_ranks: bool = False,
) -> dict[str, Decomposition]:
    """Decompose one layer of a model by the given schemes; see `decompose_schemes`.

    Raises:
        DataError: weights or images are not finite; the message names the layer.
    """
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    try:
        return decompose_schemes(layer, statistics, sensitivity, schemes, all_ranks=all_ranks)
    except DataError as error:
        raise DataError(f"'{name}' cannot be decomposed, {error}") from None


def counted(batches: Iterable[Inputs], examples: int, tick: Tick) -> Iterator[Inputs]:
    """Yield batches, and report how many of all examples have been read."""
    tick("statistics", done := 0, examples)
    for batch in batches:
        yield batch
        done += len(batch)
        tick("statistics", done, examples)


def decompose_model(
    model: nn.Module,
    space: SearchSpace,
    batches: Sequence[Inputs],
    comparison: Sequence[Inputs],
    *,
    sequential_images: int,
    sensitivities: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    effort: Effort = EFFORTS["default"],
    tick: Tick = unseen,
) -> DecomposedModel:
    """Decompose every layer of a space by each of its schemes.

    Args:
        model: the trained dense network, in eval mode.
        space: the search space.
        batches: calibration examples.
        comparison: held-out examples to compare closed-form plans on.
        sequential_images: maximum number of images for sequential factorization; 0 for none.
        sensitivities: layer name -> sensitivity that output errors are weighted by; None for uniform weights.
        seed: random seed.
        effort: how errors are computed and plans compared.
        tick: is called for every batch and layer.
    """
    start = time.perf_counter()
    names, sensitivities = [layer.spec.name for layer in space.layers], sensitivities or {}
    model = exposed(model, names)
    solving = SolvingImages.from_batches(model, batches, names, sequential_images)
    count = COMPARED_ON if len(solving.batch) >= COMPARED_ON else min(FEW_LARGE, len(solving.batch))
    comparing = SolvingImages(model, join(first_examples(batches, count)), ())
    passed = comparing.pass_over(batches) if comparison else batches
    examples = sum(map(len, batches))
    statistics = collect_statistics(model, counted(passed, examples, tick), names, space.schemes, examples=examples)
    decompositions, errors = {}, {}
    tick("error curves", 0, len(names))
    for done, (name, layer) in enumerate(zip(names, space.layers, strict=True), 1):
        by_scheme = decompose_layer(
            model, name, statistics.pop(name), sensitivities.get(name), layer.schemes, all_ranks=effort.whole
        )
        decompositions[name] = by_scheme
        errors[name] = {scheme: decomposition.expected_errors() for scheme, decomposition in by_scheme.items()}
        for decomposition in by_scheme.values():
            decomposition.forget()
        tick("error curves", done, len(names))
    made, seconds = sum(map(len, decompositions.values())), time.perf_counter() - start
    log.info("calibration: %d layers, %d decompositions, from %d images in %.1f s", len(names), made, examples, seconds)
    return DecomposedModel(
        model=model,
        space=space,
        decompositions=decompositions,
        errors=errors,
        weighted_errors=errors,
        reference=DenseReference.from_model(model, batches, comparison),
        solving=solving,
        comparing=comparing,
        sensitivities=sensitivities,
        seed=seed,
        effort=effort,
    )

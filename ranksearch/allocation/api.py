"""Find a closed-form plan for a model from unlabeled images, and apply a plan; needs no configuration or study."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.allocation.closed_form import closed_form
from ranksearch.allocation.decomposed_model import (
    DecomposedModel,
    DenseReference,
    SolvingImages,
    build_network,
    counted,
    deciding,
    decompose_layer,
    decompose_model,
    hold_out,
)
from ranksearch.allocation.effort import Level, effort_of
from ranksearch.allocation.progress_bar import shown
from ranksearch.batches import Call, Inputs, Predictions, channels_last, collect_inputs, first_examples
from ranksearch.cost.base import NetworkCost
from ranksearch.cost.macs import MacsCost
from ranksearch.factorize.base import Decomposition
from ranksearch.factorize.calibration import collect_statistics
from ranksearch.factorize.exposure import exposed
from ranksearch.factorize.names import fitted_plan
from ranksearch.factorize.sequential import scarce_layers
from ranksearch.factorize.source_model import require_ready, untouched, unwrap
from ranksearch.factorize.surgery import factorized_like
from ranksearch.factorize.trace import profile_layers
from ranksearch.plan import LayerDetails, PlanDetails, RankPlan
from ranksearch.predictions import require_running
from ranksearch.progress import Tick
from ranksearch.results.study_files import read_plan_file
from ranksearch.search_space.constraint import Constraint
from ranksearch.search_space.rules import SpaceSettings, build_space

log = logging.getLogger(__name__)

FEWEST_IMAGES = 8


@dataclass(frozen=True)
class _Examples:
    """Examples as they are given, and how the model runs on them; see `find_plan`."""

    batches: Iterable[Any]
    call: Call | None
    predictions: Predictions | None

    def prepare(self, model: nn.Module, fewest: int, purpose: str, most: int | None) -> tuple[list[Inputs], bool]:
        """Read the examples, run the model on one, and choose the memory format that it is fastest on.

        Returns:
            The examples, and whether what the model returns for them can be compared.
        """
        inputs = collect_inputs(
            model, self.batches, fewest, purpose, most, call=self.call, predictions=self.predictions
        )
        require_ready(model)
        with untouched(model):
            comparable = require_running(model, inputs[0][:1])
            return channels_last(model, inputs), comparable


@dataclass(frozen=True)
class Compressed:
    """A compressed network.

    Attributes:
        plan: scheme and latent size of each factorized layer.
        network: the factorized network with adapted BatchNorm statistics, in eval mode, ready for fine-tuning.
    """

    plan: RankPlan
    network: nn.Module


def compress(
    model: nn.Module,
    batches: Iterable[Any],
    speedup: float,
    space: SpaceSettings | None = None,
    sequential_images: int | None = None,
    *,
    call: Call | None = None,
    predictions: Predictions | None = None,
    effort: Level = "default",
    progress: bool = True,
) -> Compressed:
    """Find the closed-form plan for a speedup in MACs and apply it; the layers are calibrated once for both.

    Args:
        model: see `find_plan`.
        batches: see `find_plan`.
        speedup: minimum ratio of dense MACs to the plan's MACs.
        space: see `find_plan`.
        sequential_images: see `apply_plan`.
        call: see `find_plan`.
        predictions: see `find_plan`.
        effort: how much accuracy is traded for time; see `Effort`.
        progress: show a progress bar on a terminal, or log a line per stage elsewhere.

    Returns:
        The plan, and the network that `apply_plan` makes of it.

    Raises:
        UserError: see `find_plan`.
    """
    with shown("compress", progress) as tick, without_gradients():
        examples = _Examples(batches, call, predictions)
        layers, budget = _decompose(model, examples, speedup, space, sequential_images, effort, tick)
        [plan] = closed_form(layers, [budget], tick=tick)
        return Compressed(_detailed(plan, layers), layers.build(plan, tick=tick))


def find_plan(
    model: nn.Module,
    batches: Iterable[Any],
    speedup: float,
    space: SpaceSettings | None = None,
    sequential_images: int | None = None,
    *,
    call: Call | None = None,
    predictions: Predictions | None = None,
    effort: Level = "default",
    progress: bool = True,
) -> RankPlan:
    """Find the closed-form plan for a speedup in MACs; `apply_plan` turns it into a network, `compress` does both.

    Args:
        model: the trained network, in any mode; left unchanged.
        batches: batches of examples, as a `DataLoader` yields them; read once, only as far as the effort needs. A few
            hundred examples, of which a quarter is held out to compare plans on. Each batch is a tensor `[B, ...]`
            (images, signals, token ids), a tuple that begins with one, a mapping, or a list of images of any size.
        speedup: minimum ratio of dense MACs to the plan's MACs.
        space: rules for the options of each layer; None leaves stem and classifier dense, as `conf/space/default.yaml`.
        sequential_images: see `apply_plan`; only the effort ``"thorough"`` compares plans by networks that are solved
            in turn.
        call: runs the model on a batch, ``call(model, batch)``. By default it is given the tensor, or of a tuple or
            mapping what its forward takes but labels; see `read_batch`.
        predictions: returns what plans are compared by, `[B, ...]`, from what the model returns: logits `[B, C]` by
            their divergence, anything else by its squared error. By default the first tensor of floats, see
            `extract_predictions`; plans of detectors, which return a dict per image, are not compared.
        effort: how much accuracy is traded for time; see `Effort`.
        progress: show a progress bar on a terminal, or log a line per stage elsewhere.

    Raises:
        UserError: there are too few images, images or weights are not finite, no plan reaches the speedup, the effort
            is unknown, or the model cannot be copied or run layer by layer.
    """
    with shown("find_plan", progress) as tick, without_gradients():
        examples = _Examples(batches, call, predictions)
        layers, budget = _decompose(model, examples, speedup, space, sequential_images, effort, tick)
        return _detailed(closed_form(layers, [budget], tick=tick)[0], layers)


def apply_plan(
    plan: RankPlan | str | Path,
    model: nn.Module,
    batches: Iterable[Any],
    sequential_images: int | None = None,
    *,
    call: Call | None = None,
    predictions: Predictions | None = None,
    effort: Level = "default",
    progress: bool = True,
) -> nn.Module:
    """Factorize a trained model by a plan, calibrating the factors on images.

    Args:
        plan: the plan, or the output folder of a search.
        model: a trained model of the architecture that the plan was made for, bare or wrapped, in any mode; left
            unchanged.
        batches: calibration examples, see `find_plan`; a few hundred. Of 32 or more, a quarter is held out to decide
            how BatchNorm is adapted.
        sequential_images: maximum number of images for sequential factorization, where each layer is solved on the
            outputs of the factorized layers before it; fewer if feature maps are large; 0 solves layers independently;
            None leaves it to the effort.
        call: see `find_plan`.
        predictions: see `find_plan`.
        effort: how much accuracy is traded for time; see `Effort`.
        progress: show a progress bar on a terminal, or log a line per stage elsewhere.

    Returns:
        The factorized network with adapted BatchNorm statistics, in eval mode, ready for fine-tuning.

    Raises:
        PlanError: the plan does not fit the model, or the folder contains no plan.
        DataError: there are no images, or images or weights are not finite.
        UserError: the effort is unknown, or the model cannot be copied or run layer by layer.
    """
    if not isinstance(plan, RankPlan):
        plan = RankPlan.from_json(read_plan_file(Path(plan))["layers"])
    plan = fitted_plan(plan, unwrap(model))
    level, model = effort_of(effort), exposed(model, plan.layers)
    factorized_like(model, plan)  # fails early if the plan does not fit, before any image is read
    with shown("apply_plan", progress) as tick, without_gradients():
        inputs, comparable = _Examples(batches, call, predictions).prepare(model, 1, "solve on", level.images)
        comparison, calibration = hold_out(inputs) if comparable else ([], inputs)
        most = level.sequential_images if sequential_images is None else sequential_images
        solving = SolvingImages.from_batches(model, calibration, plan.layers, most)
        decisive = first_examples(comparison, deciding(len(solving.batch), sum(map(len, calibration))))
        reference = DenseReference.from_model(model, calibration, decisive)
        decompositions = _OnDemand(model, plan, calibration)
        alone = list(plan.layers)
        if solving.layers:
            alone = scarce_layers(model, calibration[0][:1], plan.layers, len(solving.batch))
        if alone:  # else only the images that layers are solved on need to pass
            passed = counted(solving.pass_over(calibration), sum(map(len, calibration)), tick)
            decompositions.collect(alone, passed)
        return build_network(model, plan, decompositions, reference, solving.activations(), tick=tick)


@contextmanager
def without_gradients() -> Iterator[None]:
    """Compute without gradients, but with tensors that may have some later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _decompose(
    model: nn.Module,
    examples: _Examples,
    speedup: float,
    space: SpaceSettings | None,
    sequential_images: int | None,
    effort: Level,
    tick: Tick,
) -> tuple[DecomposedModel, int]:
    """Return a decomposed model, and the budget of a speedup in its space; see `find_plan`."""
    level, model = effort_of(effort), exposed(model)
    inputs, comparable = examples.prepare(model, FEWEST_IMAGES, "plan on", level.images)
    if not comparable:
        level = replace(level, compare="no")
        log.info(
            "the model returns one dict per example: plans are not compared on examples, unless predictions= is given"
        )
    comparison, calibration = ([], inputs) if level.compare == "no" else hold_out(inputs, FEWEST_IMAGES)
    example = inputs[0][:1]
    profile = profile_layers(model, example)
    cost = NetworkCost(MacsCost(), profile.macs, {spec.name: spec for spec in profile.layers})
    searched = build_space(space or SpaceSettings(), profile, cost)
    budget = Constraint(speedup).budget(searched)
    restricted = searched.restricted(level.schemes)
    if budget >= restricted.cost.total(restricted.cheapest):  # else only other schemes reach the speedup
        searched = restricted
    most = level.sequential_images if sequential_images is None else sequential_images
    layers = decompose_model(model, searched, calibration, comparison, sequential_images=most, effort=level, tick=tick)
    return layers, budget


def _detailed(plan: RankPlan, model: DecomposedModel) -> RankPlan:
    """Return a plan with its MACs and expected errors."""
    layers = {}
    for name, choice in plan:
        spec, error = model.space.cost.layers[name], model.errors[name][choice.scheme][choice.latent_size]
        layers[name] = LayerDetails(spec.dense_macs, spec.macs_at(choice.latent_size, choice.scheme), error)
    return replace(plan, details=PlanDetails(layers, model.space.cost.dense, model.space.cost.total(plan)))


class _OnDemand(Mapping[str, Mapping[str, Decomposition]]):
    """Decompositions of a plan's layers for their inputs in the dense network, of those that are asked for.

    Args:
        model: the dense network.
        plan: its layers and their schemes.
        batches: calibration examples.
    """

    def __init__(self, model: nn.Module, plan: RankPlan, batches: Sequence[Inputs]) -> None:
        self.model, self.plan, self.batches = model, plan, batches
        self.made: dict[str, Mapping[str, Decomposition]] = {}

    def collect(self, names: Collection[str], passed: Iterable[Inputs]) -> None:
        """Decompose some layers of the plan, in one pass over the calibration images."""
        schemes = {self.plan.layers[name].scheme for name in names}
        examples = sum(map(len, self.batches))
        statistics = collect_statistics(self.model, passed, names, schemes, examples=examples)
        for name in names:
            scheme = self.plan.layers[name].scheme
            self.made[name] = decompose_layer(self.model, name, statistics.pop(name, None), None, [scheme])

    def __getitem__(self, name: str) -> Mapping[str, Decomposition]:
        if name not in self.plan.layers:
            raise KeyError(name)
        if name not in self.made:
            self.collect([name], self.batches)
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.plan.layers)

    def __len__(self) -> int:
        return len(self.plan.layers)

"""The context of a search: everything that stays the same from trial to trial."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ranksearch.allocation.decomposed_model import DecomposedModel, Proxy, decompose_model
from ranksearch.batches import read_batch
from ranksearch.cost.base import CostModel, MeasuredCost, NetworkCost
from ranksearch.cost.macs import MacsCost, count_params
from ranksearch.data.loaders import batches, draw, endless_batches
from ranksearch.data.splits import Batch, Examples, Splits, length
from ranksearch.errors import UserError, first_line
from ranksearch.factorize.fisher import collect_sensitivities
from ranksearch.factorize.trace import meta_example, profile_layers
from ranksearch.progress import Tick, unseen
from ranksearch.results.metadata import StudyMetadata
from ranksearch.results.trials import Evaluation
from ranksearch.search_space.rules import SpaceSettings, build_space
from ranksearch.search_space.space import SearchSpace
from ranksearch.study.settings import CalibrationSettings
from ranksearch.tasks.classification import require_logits
from ranksearch.training.loop import evaluate, resolve_autocast
from ranksearch.training.recipe import FineTuner, Recipe

log = logging.getLogger(__name__)

# Images that are evaluated at once: fewer if they are large, because their maps are larger still.
EVALUATION_BATCH = 256
NUMBERS_OF_A_BATCH = 2**23


@dataclass(frozen=True)
class SearchInputs:
    """What a search starts from, before anything is trained.

    Attributes:
        model: the dense network, on ``device``.
        splits: the data.
        space: what a trial may choose.
        budget: the highest cost that the constraint allows.
        fine_tuner: fine-tunes the network of a trial.
        seed: seed of weights and batches; every trial trains on the same batches, so that only plans differ.
        device: where everything runs.
        proxy: weights the errors of layers for allocation; None weights all alike.
    """

    model: nn.Module
    splits: Splits
    space: SearchSpace
    budget: int
    fine_tuner: FineTuner
    seed: int
    device: torch.device
    proxy: Proxy | None = None

    @property
    def macs(self) -> NetworkCost:
        """Multiply-accumulates of any plan, whatever the cost of the space counts."""
        cost = self.space.cost
        if type(cost.model) is MacsCost:
            return cost
        return NetworkCost(MacsCost(), MacsCost().network(self.model, self.splits.input_shape), cost.layers)


@dataclass(frozen=True)
class SearchContext(DecomposedModel):
    """Everything that stays the same from trial to trial.

    Attributes:
        splits: the data.
        macs: multiply-accumulates of any plan, whatever the cost of the space counts.
        baseline: the dense network on the validation split.
        params: parameter count of the dense network.
        budget: the highest cost that the constraint allows.
        fine_tuner: fine-tunes the network of a trial.
        device: where everything runs.
    """

    splits: Splits
    macs: NetworkCost
    baseline: Evaluation
    params: int
    budget: int
    fine_tuner: FineTuner
    device: torch.device

    def speedup(self, cost: int) -> float:
        """Return the dense cost over a cost, both in the unit of the space."""
        return self.space.cost.dense / cost

    def validation(self) -> Iterator[Batch]:
        """Iterate over the validation split, which plans are chosen by."""
        return _evaluation_batches(self.splits, self.splits.validation, self.device)

    def test(self) -> Iterator[Batch]:
        """Iterate over the test split, which is only reported on."""
        return _evaluation_batches(self.splits, self.splits.test, self.device)

    def training_batches(self, batch_size: int) -> Iterator[Batch]:
        """Iterate over the training split without end, in the order of the seed."""
        splits = self.splits
        return endless_batches(splits.train, batch_size, self.device, self.seed, splits.workers, splits.augment)

    def describe(self, *, command: str, model: str, dataset: str, speedup: float, trials: int) -> StudyMetadata:
        """Make the metadata of the study that searches this; see `StudyMetadata` for the arguments."""
        return StudyMetadata(
            command=command,
            model=model,
            dataset=dataset,
            input_shape=tuple(self.splits.input_shape),
            layers=tuple(layer.spec for layer in self.space.layers),
            accuracy=self.baseline.accuracy,
            cost=self.space.cost.dense,
            macs=self.macs.dense,
            params=self.params,
            unit=self.space.cost.model.unit,
            speedup=speedup,
            budget=self.budget,
            fine_tune_steps=self.fine_tuner.steps,
            seed=self.seed,
            trials=trials,
        )


def _evaluation_batches(splits: Splits, split: Examples, device: torch.device) -> Iterator[Batch]:
    affordable = NUMBERS_OF_A_BATCH // math.prod(splits.input_shape)
    return batches(split, max(1, min(EVALUATION_BATCH, affordable)), device, splits.workers)


def build_search_space(
    model: nn.Module,
    splits: Splits,
    settings: SpaceSettings,
    cost_model: CostModel | MeasuredCost,
    device: torch.device,
) -> SearchSpace:
    """Check that the model runs on the data, find its layers, price them and apply the rules; nothing is trained.

    Args:
        model: the dense network, in eval mode, on ``device``; left unchanged.
        splits: the data.
        settings: rules of the space.
        cost_model: counts or measures costs.
        device: device of the model.

    Raises:
        UserError: the model cannot run on the images, or the rules do not fit it.
    """
    shape = splits.input_shape
    try:
        with torch.no_grad():
            output = model(torch.zeros(1, *shape, device=device))
        profile = profile_layers(model, meta_example(model, (1, *shape)))
        macs = MacsCost().network(model, shape)
    except Exception as error:  # anything that a user's forward raises
        reason = f"{type(error).__name__}: {first_line(error)}"
        message = f"the model cannot run on images of shape {list(shape)} ({reason}): fix the model or the data set"
        raise UserError(message) from error
    require_logits(output, splits.num_classes)
    log.info("model: %.2f M MACs, %.3f M params", macs / 1e6, count_params(model) / 1e6)
    if isinstance(cost_model, MeasuredCost):
        cost_model = cost_model.measure(model, profile.layers, shape, device)
    dense = cost_model.network(model, shape)
    cost = NetworkCost(cost_model, dense, {spec.name: spec for spec in profile.layers})
    space = build_space(settings, profile, cost)
    log.info("space: %d layers searched, %d left dense", len(space.layers), len(space.left))
    for reason in dict.fromkeys(layer.reason for layer in space.left.values()):
        names = [name for name, layer in space.left.items() if layer.reason == reason]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        share = sum(space.left[name].share for name in names)
        log.info("space: '%s'%s left dense, %.1f %% of the MACs: %s", names[0], more, 100 * share, reason)
    return space


def build_context(inputs: SearchInputs, settings: CalibrationSettings, *, tick: Tick = unseen) -> SearchContext:
    """Evaluate the dense network and decompose every layer of the space, once for all trials.

    Args:
        inputs: with the trained dense network, in eval mode; the test split is not read.
        settings: which training images statistics are estimated from.
        tick: is called for every batch and layer.
    """
    model, splits, seed, device = inputs.model, inputs.splits, inputs.seed, inputs.device
    fine_tuner = _with_autocast(inputs)
    torch.manual_seed(seed)  # of random augmentation
    held_out = min(settings.comparison_images, length(splits.train) // 4)
    drawn = draw(splits.train, settings.images + held_out, device, seed, splits.workers)
    images = read_batch(model, drawn)
    calibration, comparison = (part.split(settings.batch_size) for part in (images[held_out:], images[:held_out]))
    if len(calibration) > 1 and len(calibration[-1]) < settings.batch_size:
        calibration = calibration[
            :-1
        ]  # BatchNorm would weight a few images like a full batch, and cannot use a single one
    names = [layer.spec.name for layer in inputs.space.layers]
    sensitivities = collect_sensitivities(model, calibration, names, seed) if settings.loss_aware else None
    most = settings.sequential_images
    decomposed = decompose_model(
        model,
        inputs.space,
        calibration,
        comparison,
        sequential_images=most,
        sensitivities=sensitivities,
        seed=seed,
        tick=tick,
    )
    context = SearchContext(
        **vars(decomposed),
        splits=splits,
        macs=inputs.macs,
        baseline=evaluate(model, _evaluation_batches(splits, splits.validation, device)),
        params=count_params(model),
        budget=inputs.budget,
        fine_tuner=fine_tuner,
        device=device,
    )
    log.info("baseline: %.2f %% accuracy on the validation split", 100 * context.baseline.accuracy)
    return context if inputs.proxy is None else context.weighted(inputs.proxy.weights(context))


def _with_autocast(inputs: SearchInputs) -> FineTuner:
    """Return the fine-tuner with the precision that is faster on the device."""
    fine_tuner, splits, device = inputs.fine_tuner, inputs.splits, inputs.device
    if not isinstance(fine_tuner, Recipe) or not fine_tuner.steps:
        return fine_tuner
    size = fine_tuner.batch_size
    endless = endless_batches(splits.train, size, device, inputs.seed, splits.workers, splits.augment)
    resolved = resolve_autocast(fine_tuner, inputs.model, endless, device)
    log.info("fine-tuning: in %s", "bfloat16" if resolved.autocast == "bfloat16" else "float32")
    return resolved

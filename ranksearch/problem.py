"""What is searched: the dense network, the data, the space, and what calibration found out about every layer."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ranksearch.calibrated import Calibrated, decompose_layers
from ranksearch.cost import CostModel, MacsCost, MeasuredCost, NetworkCost, count_params
from ranksearch.datasets import Batch, Examples, Splits, batches, draw, length
from ranksearch.errors import SettingError, UserError, first_line
from ranksearch.factorize import collect_sensitivities, profile_layers
from ranksearch.fine_tuning import FineTuning
from ranksearch.rules import SpaceSettings, build_space
from ranksearch.space import SearchSpace
from ranksearch.training import Evaluation, evaluate

log = logging.getLogger(__name__)


# Images that are evaluated at once: fewer of large ones, whose maps are larger still.
EVALUATION_BATCH = 256
NUMBERS_OF_A_BATCH = 2**23


@dataclass(frozen=True)
class CalibrationSettings:
    """The training images that statistics are estimated from.

    Attributes:
        images: how many.
        batch_size: images of a batch.
        loss_aware: weigh output errors by how much the loss feels them; costs a backward pass over the images.
        comparison_images: how many more, which closed-form plans are compared on; at most a quarter of all there are.
        sequential_images: of the first, how many a plan's layers are solved on once more, one after another, each for
            what the layers before it leave it; fewer where their maps are large; 0 leaves that out.
    """

    images: int = 512
    batch_size: int = 64
    loss_aware: bool = False
    comparison_images: int = 512
    sequential_images: int = 256

    def __post_init__(self) -> None:
        if self.sequential_images < 0 or self.sequential_images == 1:
            what, size = "sequential_images", self.sequential_images
            raise SettingError(what, size, "is too few: use 2 or more, or 0 to solve every layer by itself")
        for what in ("images", "comparison_images", "batch_size"):
            if getattr(self, what) < 2:
                raise SettingError(what, getattr(self, what), "is too few: use 2 or more")


@dataclass(frozen=True)
class Problem(Calibrated):
    """Everything that stays the same from trial to trial.

    Attributes:
        splits: the data.
        macs: multiply-accumulates of any plan, whatever the space's cost counts.
        baseline: the dense network on the validation split.
        params: of the dense network.
        budget: the highest cost that the constraint allows.
        fine_tuning: of a trial.
        seed: of the batches; every trial sees the same ones, so that plans differ by nothing else.
        device: where everything runs.
    """

    splits: Splits
    macs: NetworkCost
    baseline: Evaluation
    params: int
    budget: int
    fine_tuning: FineTuning
    seed: int
    device: torch.device

    def speedup(self, cost: int) -> float:
        """Dense cost over a cost, both in the space's unit."""
        return self.space.cost.dense / cost

    def validation(self) -> Iterator[Batch]:
        """The batches to choose by."""
        return _batches_to_measure_on(self.splits, self.splits.validation, self.device)

    def test(self) -> Iterator[Batch]:
        """The batches to report on."""
        return _batches_to_measure_on(self.splits, self.splits.test, self.device)


def _batches_to_measure_on(splits: Splits, split: Examples, device: torch.device) -> Iterator[Batch]:
    affordable = NUMBERS_OF_A_BATCH // math.prod(splits.input_shape)
    return batches(split, max(1, min(EVALUATION_BATCH, affordable)), device, splits.workers)


def describe_space(
    model: nn.Module,
    splits: Splits,
    settings: SpaceSettings,
    cost_model: CostModel | MeasuredCost,
    device: torch.device,
) -> SearchSpace:
    """See that the model runs on the data, find its layers, price them and apply the rules; nothing is trained.

    Args:
        model: the dense network, in eval mode, on ``device``; is not touched.
        splits: the data.
        settings: the rules.
        cost_model: that counts, or that is measured first.
        device: where it runs.

    Raises:
        UserError: the model cannot run on the images, or the rules do not fit it.
    """
    shape = splits.input_shape
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, *shape, device=device))
        profile = profile_layers(model, torch.empty(1, *shape))
        macs = MacsCost().network(model, shape)
    except Exception as error:  # whatever someone's own forward raises
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"the model cannot run on images of shape {list(shape)} ({reason}): mend one of them"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, splits.num_classes):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        expected = [1, splits.num_classes]
        raise UserError(f"the model answers one image with {found}: return logits of shape {expected}")
    log.info("model: %.2f M MACs, %.3f M params", macs / 1e6, count_params(model) / 1e6)
    if isinstance(cost_model, MeasuredCost):
        cost_model = cost_model.measure(model, profile.layers, shape, device)
    dense = cost_model.network(model, shape)
    cost = NetworkCost(cost_model, dense, {spec.name: spec for spec in profile.layers})
    space = build_space(settings, profile, cost)
    log.info("space: %d layers searched, %d left dense", len(space.layers), len(space.left))
    for reason in dict.fromkeys(space.left.values()):
        names = [name for name, why in space.left.items() if why == reason]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        log.info("space: '%s'%s left dense: %s", names[0], more, reason)
    return space


def calibrate(
    model: nn.Module,
    splits: Splits,
    space: SearchSpace,
    settings: CalibrationSettings,
    budget: int,
    fine_tuning: FineTuning,
    seed: int,
    device: torch.device,
) -> Problem:
    """Measure the dense network and decompose every layer of the space, once for all trials.

    Args:
        model: the trained dense network, in eval mode, on ``device``.
        splits: the data; the test split is not read.
        space: the layers.
        settings: which training images.
        budget: highest cost of a plan.
        fine_tuning: of a trial.
        seed: of the trials' batches.
        device: where everything runs.
    """
    torch.manual_seed(seed)  # of random augmentation
    unseen = min(settings.comparison_images, length(splits.train) // 4)
    drawn = draw(splits.train, settings.images + unseen, device, seed, splits.workers)
    images, comparison = (torch.split(part, settings.batch_size) for part in (drawn[unseen:], drawn[:unseen]))
    if len(images) > 1 and len(images[-1]) < settings.batch_size:
        images = images[:-1]  # BatchNorm would weigh a few images like a full batch, and cannot use a single one
    names = [layer.spec.name for layer in space.layers]
    sensitivities = collect_sensitivities(model, images, names, seed) if settings.loss_aware else {}
    layers = decompose_layers(model, space, images, comparison, settings.sequential_images, sensitivities)
    problem = Problem(
        **vars(layers),
        splits=splits,
        macs=_in_macs(model, space, splits.input_shape),
        baseline=evaluate(model, _batches_to_measure_on(splits, splits.validation, device)),
        params=count_params(model),
        budget=budget,
        fine_tuning=fine_tuning,
        seed=seed,
        device=device,
    )
    log.info("baseline: %.2f %% accuracy on the validation split", 100 * problem.baseline.accuracy)
    return problem


def _in_macs(model: nn.Module, space: SearchSpace, input_shape: Sequence[int]) -> NetworkCost:
    counted = MacsCost()
    if type(space.cost.model) is MacsCost:
        return space.cost
    return NetworkCost(counted, counted.network(model, input_shape), space.cost.layers)

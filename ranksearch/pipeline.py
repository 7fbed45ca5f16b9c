"""From a model, data and settings to a problem that can be searched. No Hydra, no Optuna."""

from __future__ import annotations

import logging
import time

import torch
from torch import nn

from ranksearch.config import CalibrationSettings
from ranksearch.cost import CostModel, NetworkCost, count_params
from ranksearch.datasets import Splits, batches
from ranksearch.errors import SettingError
from ranksearch.factorize import collect_statistics, decompose, profile_layers
from ranksearch.space import SearchSpace, SpaceSettings, build_space
from ranksearch.training import Recipe, evaluate
from ranksearch.trial import EVALUATION_BATCH, Problem

log = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """Read a device's name; ``auto`` is the first GPU, or else the CPU.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(
            "device", name, f"cannot be used ({reason}): use auto, cpu, or a device of this machine"
        ) from None
    return device


def describe_space(model: nn.Module, splits: Splits, settings: SpaceSettings, cost_model: CostModel) -> SearchSpace:
    """Find the model's layers and apply the rules; nothing is trained and no image but one is read.

    Raises:
        UserError: the rules do not fit the model.
    """
    shape = splits.input_shape
    profile = profile_layers(model, torch.empty(1, *shape))
    dense = cost_model.network(model, shape)
    cost = NetworkCost(cost_model, dense, {spec.name: spec for spec in profile.layers})
    names = [*cost.layers, *profile.skipped]
    space = build_space(settings, profile.layers, names, cost)
    searched = {layer.spec.name for layer in space.layers}
    log.info(
        "model: %.2f M MACs, %.3f M params; %d layers searched, %d kept dense by the space, %d cannot be factorized",
        dense / 1e6,
        count_params(model) / 1e6,
        len(searched),
        len(cost.layers) - len(searched),
        len(profile.skipped),
    )
    return space


def calibrate(
    model: nn.Module,
    splits: Splits,
    space: SearchSpace,
    settings: CalibrationSettings,
    budget: int,
    recipe: Recipe,
    seed: int,
    device: torch.device,
) -> Problem:
    """Measure the dense model and decompose every layer of the space, once for all trials.

    Args:
        model: the trained dense model, in eval mode, on ``device``.
        splits: the data; the test split is not read.
        space: the layers.
        settings: which training images.
        budget: highest cost of a plan.
        recipe: a trial's fine-tuning.
        seed: of the trials' batches.
        device: where everything runs.
    """
    start = time.perf_counter()
    images = tuple(
        inputs
        for inputs, _ in batches(splits.train, settings.batch_size, device, splits.workers, limit=settings.images)
    )
    names = [layer.spec.name for layer in space.layers]
    statistics = collect_statistics(model, images, names)
    decompositions = {
        name: decompose(statistics[name], model.get_submodule(name).get_parameter("weight")) for name in names
    }
    log.info(
        "calibration: %d layers from %d images in %.1f s",
        len(names),
        sum(map(len, images)),
        time.perf_counter() - start,
    )
    problem = Problem(
        model=model,
        splits=splits,
        space=space,
        decompositions=decompositions,
        calibration=images,
        baseline=evaluate(model, batches(splits.validation, EVALUATION_BATCH, device, splits.workers)),
        params=count_params(model),
        budget=budget,
        recipe=recipe,
        seed=seed,
        device=device,
    )
    log.info("baseline: %.2f %% accuracy on the validation split", 100 * problem.baseline.accuracy)
    return problem

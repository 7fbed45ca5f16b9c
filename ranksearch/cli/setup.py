"""A run set up in one pass: device, data, model, space, each built and checked once, before anything is written."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from optuna import Study
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from torch import nn

from ranksearch.allocation.decomposed_model import Proxy
from ranksearch.cli.config import RunConfig
from ranksearch.cli.instantiate import build, open_existing_storage
from ranksearch.cli.overwrite_guard import made, require_own_artifacts
from ranksearch.cli.run_context import Launch, RunContext
from ranksearch.cost.base import CostModel, MeasuredCost
from ranksearch.data.labels import checked
from ranksearch.data.splits import Splits, held_on
from ranksearch.device import choose_device, describe_device
from ranksearch.errors import SettingError
from ranksearch.models.checkpoint import read_checkpoint
from ranksearch.models.pretrained import DenseModel, Pretrained, is_published, published
from ranksearch.results.units import format_device
from ranksearch.runtimes.base import Runtime
from ranksearch.samplers.base import PlanSampler
from ranksearch.search_space.rules import SpaceSettings
from ranksearch.storage.factory import require_studies
from ranksearch.study.context import SearchInputs, build_search_space
from ranksearch.study.create import check_pruner, check_sampler, open_study
from ranksearch.study.preflight import check_round_trip
from ranksearch.training.recipe import FineTuner

log = logging.getLogger(__name__)

# What makes two trials comparable: a study holds trials of one value of each.
COMPARED = ("model", "dataset", "space", "cost", "constraint", "proxy", "fine_tune", "baseline", "calibration", "seed")


def set_up(config: RunConfig, launch: Launch) -> RunContext:
    """Build every object and make every check, so that whatever the user got wrong is reported here."""
    require_own_artifacts(config)
    device = choose_device(config.device, config.worker)
    log.info("device: %s (%s)", device, format_device(describe_device(device)))
    runtime = cast(Runtime, build("runtime", config.runtime, Runtime))
    fine_tuner = config.fine_tune
    if isinstance(fine_tuner, Mapping):  # one of the user's own, in place of a recipe
        fine_tuner = build("fine_tune", fine_tuner, FineTuner)
    splits = held_on(build_splits(config), device)
    dense = build_dense_model(config, splits)
    model = dense.network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # not in its stubs
    cost_model = build("cost", config.cost, (CostModel, MeasuredCost))
    space = build_search_space(model, splits, space_settings(config), cost_model, device)
    try:
        budget = config.constraint.budget(space)
    except SettingError as error:
        raise error.inside("constraint") from None
    check_round_trip(model, space.cheapest, dense.builder, torch.empty(1, *splits.input_shape))
    proxy = cast(Proxy, build("proxy", config.proxy, Proxy))
    inputs = SearchInputs(model, splits, space, budget, fine_tuner, config.seed, device, proxy)
    return RunContext(config, launch, _compared(config, launch.resolved, dense), dense, runtime, inputs)


def _compared(config: RunConfig, resolved: Mapping[str, Any], dense: DenseModel) -> dict[str, Any]:
    """Select the settings that make two trials comparable."""
    compared = {key: resolved[key] for key in COMPARED} | {"objective": config.study.objective}
    for group, elsewhere in (("dataset", ("root", "workers")), ("cost", ("cache",))):  # which change no figure
        compared[group] = {key: value for key, value in compared[group].items() if key not in elsewhere}
    if dense.pretrained.checksum is not None:  # the content of the file counts, not its path
        compared["model"] = {**compared["model"], "checkpoint": dense.pretrained.checksum}
    return compared


def build_splits(config: RunConfig) -> Splits:
    """Build the splits; what the data set leaves open is set as the model's weights want it."""
    settings = {key: value for key, value in config.dataset.items() if key != "name"}
    weights, model = published(config.model.builder), config.model
    if model.input_size is not None:
        if "image_size" not in settings:
            advice = "needs a data set with an image_size: leave it null"
            raise SettingError("model.input_size", model.input_size, advice)
        settings["image_size"] = model.input_size
    for key, value in (weights.images if weights else {}).items():
        if key in settings and settings[key] is None:
            settings[key] = value
    smallest, size = model.smallest_input, settings.get("image_size")
    if model.input_size is None and smallest and isinstance(size, int) and size < smallest:
        log.info("dataset: images enlarged from %d to %d pixels for the model", size, smallest)
        settings["image_size"] = smallest
    splits = checked(cast(Splits, build("dataset", settings, Splits)))
    classes = model.num_classes
    if classes is not None and classes < splits.num_classes:
        limit = f"is below the {splits.num_classes} classes of the data set: raise it, or leave it null"
        raise SettingError("model.num_classes", classes, limit)
    return splits if classes is None else replace(splits, num_classes=classes)


def build_dense_model(config: RunConfig, splits: Splits) -> DenseModel:
    """Build the dense network, with published weights or those of a checkpoint."""
    arguments, checkpoint = dict(config.model.builder), config.model.checkpoint
    weights = published(arguments)
    if checkpoint is not None and weights is not None:
        advice = "cannot be combined with model.builder.weights: a network has one set of weights, so remove one"
        raise SettingError("model.checkpoint", checkpoint, advice)
    torch.manual_seed(config.seed)
    network = build("model.builder", arguments, nn.Module, num_classes=splits.num_classes)
    builder = {**arguments, "num_classes": splits.num_classes}
    pretrained = Pretrained()
    if is_published(builder):
        builder["weights"] = None
    if checkpoint is not None:
        new = read_checkpoint(checkpoint, network)
        pretrained = Pretrained(str(checkpoint), not new, sha256(Path(checkpoint).read_bytes()).hexdigest())
    elif weights is not None:
        pretrained = Pretrained(arguments["weights"], weights.num_classes == splits.num_classes)
    return DenseModel(network, builder, pretrained)


def space_settings(config: RunConfig) -> SpaceSettings:
    """Return the rules of the space: the configuration's come before those of the model."""
    return replace(config.space, rules=[*config.space.rules, *config.model.rules])


def build_sampler(config: RunConfig, trials: int) -> BaseSampler:
    """Build the sampler, seeded for a run of a study that has a number of trials."""
    seed = config.seed if config.sampler.get("seed") is None else config.sampler["seed"]
    # A new seed for every run, or the same plans would be drawn again.
    sampler = build("sampler", config.sampler, BaseSampler, seed=seed + trials)
    if isinstance(sampler, PlanSampler):  # its draws differ by the number of the trial
        sampler = build("sampler", config.sampler, BaseSampler, seed=seed)
    return cast(BaseSampler, sampler)


def open_run_study(run: RunContext) -> tuple[Study, BaseStorage, BaseSampler]:
    """Make the folder of a run, and its study or continue it, with a sampler and a pruner that can serve it."""
    folder = run.launch.folder
    with nullcontext() if folder is None else made(folder):
        return _open_study(run)


def _open_study(run: RunContext) -> tuple[Study, BaseStorage, BaseSampler]:
    config, inputs, objective = run.config, run.inputs, run.config.study.objective
    # Checked before the storage is made, so that a sampler that cannot serve leaves no trace.
    pruner = NopPruner() if config.pruner.optuna is None else build("pruner.optuna", config.pruner.optuna, BasePruner)
    check_pruner(pruner, config.pruner.rung_steps(inputs.fine_tuner.steps), objective)
    check_sampler(build_sampler(config, trials=0), inputs.space, inputs.budget, objective)
    if config.mode == "finalize":
        storage = open_existing_storage(config, purpose="finalize a trial of")
        require_studies(storage, config.study.names, purpose="finalize a trial of")
    else:
        storage = cast(BaseStorage, build("storage", config.storage, BaseStorage))
    study = open_study(config.study.name, storage, run.compared, objective, inputs.space.cost.model.unit)
    study.pruner = pruner
    return study, storage, build_sampler(config, trials=len(study.trials))

"""A run made ready: every object built and every check made, before anything is trained or written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from optuna import Study
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from ranksearch.building import build, build_data, build_fine_tuning, build_model, build_sampler, rules_of
from ranksearch.config import RunConfig
from ranksearch.cost import CostModel, MeasuredCost
from ranksearch.datasets import held_on
from ranksearch.device import choose_device, device_in_words
from ranksearch.errors import SettingError, UserError
from ranksearch.job import Job
from ranksearch.problem import describe_space
from ranksearch.proxies import Proxy
from ranksearch.rehearsal import rehearse
from ranksearch.study import check_sampler, open_study, require_studies
from ranksearch.values import check_value

log = logging.getLogger(__name__)

# What makes two trials comparable: a study holds trials of one value of each.
COMPARED = (
    "model",
    "dataset",
    "space",
    "cost",
    "constraint",
    "proxy",
    "fine_tune",
    "baseline",
    "calibration",
    "seed",
    "objective",
)


def prepare(config: RunConfig, plain: Mapping[str, Any], settings: dict[str, Any], command: str) -> Job:
    """Build every object and make every check; whatever the person got wrong shows here.

    Args:
        config: of the run.
        plain: the same as plain JSON values.
        settings: the same with interpolations left as they were written.
        command: that this run was started with.

    Raises:
        UserError: something that the person can mend.
    """
    device = choose_device(config.device, config.worker)
    log.info("device: %s (%s)", device, device_in_words(device))
    fine_tuning = build_fine_tuning(config.fine_tune)
    splits = held_on(build_data(config), device)
    model, builder, pretrained = build_model(config, splits)
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # not in its stubs
    cost_model = build("cost", config.cost, (CostModel, MeasuredCost))
    space = describe_space(model, splits, rules_of(config), cost_model, device)
    try:
        budget = config.constraint.budget(space)
    except SettingError as error:
        raise error.inside("constraint") from None
    rehearse(model, space.cheapest, builder, torch.empty(1, *splits.input_shape))
    compared = {key: plain[key] for key in COMPARED}
    for group, elsewhere in (("dataset", ("root", "workers")), ("cost", ("cache",))):  # which change no figure
        compared[group] = {key: value for key, value in compared[group].items() if key not in elsewhere}
    if pretrained.checksum is not None:  # what is in the file counts, not where it lies
        compared["model"] = {**compared["model"], "checkpoint": pretrained.checksum}
    return Job(
        config,
        settings,
        compared,
        device,
        splits,
        model,
        builder,
        pretrained,
        space,
        budget,
        build("proxy", config.proxy, Proxy),
        fine_tuning,
        command,
    )


def open_known_storage(config: RunConfig, to: str) -> BaseStorage:
    """The storage of studies that are there already; where there is none, none is made.

    Args:
        config: of the run.
        to: what the studies are wanted for, for the error.

    Raises:
        UserError: there is none, or it cannot be opened.
    """
    ours = str(config.storage.get("_target_")).startswith("ranksearch.storage.")
    if "path" in config.storage:
        check_value("storage.path", str, config.storage["path"])
    path = Path(config.storage.get("path", "/"))
    if ours and not path.exists():
        name = ", ".join(config.study.names)
        raise UserError(f"there is no study '{name}' to {to} in {path}: name its storage, or run task=search first")
    return cast(BaseStorage, build("storage", config.storage, BaseStorage))


def open_job_study(job: Job) -> tuple[Study, BaseSampler]:
    """Make a job's study or continue it, with a sampler and a pruner that can serve it.

    Raises:
        UserError: they cannot, the study is of other settings, or there is none to finalize a trial of.
    """
    config = job.config
    # Seen to before the storage is made, so that a sampler that cannot serve leaves no trace.
    pruner = build("pruner", config.pruner, BasePruner)
    rungs = config.pruning.steps(job.fine_tuning.steps)
    check_sampler(build_sampler(config, trials=0), pruner, rungs, job.space, job.budget, config.objective)
    if config.task == "finalize":
        storage = open_known_storage(config, to="finalize a trial of")
        require_studies(storage, config.study.names, to="finalize a trial of")
    else:
        storage = cast(BaseStorage, build("storage", config.storage, BaseStorage))
    study = open_study(config.study.name, storage, job.compared, config.objective, job.space.cost.model.unit)
    study.pruner = pruner
    return study, build_sampler(config, trials=len(study.trials))

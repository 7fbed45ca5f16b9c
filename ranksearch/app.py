"""Hydra in, objects out: the command line. The only home of Hydra and OmegaConf."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import sys
from contextlib import suppress
from difflib import get_close_matches
from errno import EACCES, ENOSPC, EPERM, EROFS
from pathlib import Path
from traceback import walk_tb
from typing import Any, cast

import hydra
import optuna
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from optuna import Study
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from ranksearch.afterwards import run_dashboard, run_export, run_report
from ranksearch.building import build, build_data, build_fine_tuning, build_model, build_sampler, rules_of
from ranksearch.config import RunConfig, Schemas
from ranksearch.cost import CostModel, MeasuredCost
from ranksearch.datasets import held_on
from ranksearch.device import choose_device, device_in_words
from ranksearch.errors import SettingError, UserError, first_line, is_full_disk
from ranksearch.job import Job, run_finalize, run_profile, run_search
from ranksearch.problem import describe_space
from ranksearch.proxies import Proxy
from ranksearch.schema import freeze
from ranksearch.search import study_folder
from ranksearch.storage import failures_told, holds_password
from ranksearch.study import check_sampler, open_study
from ranksearch.sweep import JobOutcome, write_outcome
from ranksearch.terminal import watched

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
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
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def main() -> None:
    """Run the command line; ends the process with 0, 1, 2 or 130 as README.md says."""
    # Hydra then hands its errors on, and they can be told in one line each.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.raiseExceptions = False  # a log that cannot be written is no reason to fill the terminal
    sys.path.insert(0, os.getcwd())  # one's own model and data, whichever way ranksearch is started
    register_schemas()
    command = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(_run)
    try:
        command()
    except KeyboardInterrupt:
        sys.exit(130)
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_complain(_explain(error)))
    except OSError as error:
        ours = any(frame.f_code is _run.__code__ for frame, _ in walk_tb(error.__traceback__))
        if error.filename and (not ours or error.errno in (EACCES, EPERM, EROFS, ENOSPC)):
            advice = "choose another folder with outputs=..."
            sys.exit(_complain(f"{error.filename} cannot be written ({error.strerror}): {advice}"))
        raise


def register_schemas() -> None:
    """Tell Hydra the types of all keys, which the first entries of the defaults lists in `conf/` name."""
    ConfigStore.instance().store("schema", Schemas.RunConfig)
    ConfigStore.instance().store("recipe", Schemas.Recipe, group="fine_tune")
    OmegaConf.register_new_resolver("study_folder", study_folder, replace=True)


def _complain(message: str) -> int:
    print(f"ranksearch: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _explain(error: Exception) -> str:
    """Say in one line what Hydra found wrong, and what would be right."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice} does not exist: use one of {', '.join(error.options)}"
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        what = " ".join((cause.msg or str(cause)).split("\n")[0].split())
        key = cause.full_key or ""
        known = [str(name) for name in cause.parent_node] if isinstance(cause.parent_node, DictConfig) else []
        near = get_close_matches(key.rpartition(".")[2], known, n=3) or known
        if what.startswith("Key "):
            return f"'{key}' is not a key of the configuration: use {', '.join(near)}"
        return f"{str(error).removeprefix('Error merging override ')}: {what}; give a value of that type"
    first, _, missing = str(error).splitlines()[0].partition("Missing mandatory value: ")
    if missing:
        return f"{missing} is not set: add {missing}=... to the command"
    return f"{first}: see python -m ranksearch --help"


def _run(cfg: DictConfig) -> None:
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        _run_job(cfg)
        return
    try:
        _perform(cfg)
    except UserError as error:
        sys.exit(_complain(str(error)))
    except Exception as error:
        if not is_full_disk(error):
            raise
        sys.exit(_complain(f"the disk of {cfg.outputs} is full, what finished is kept: make room and run this again"))


def _run_job(cfg: DictConfig) -> None:
    """Run one job of a sweep, and leave word of how it ended: the others go on, whatever happens to it."""
    hydra_config, status, reason = HydraConfig.get(), 0, None
    try:
        _perform(cfg)
    except UserError as error:
        reason = str(error)
        status = _complain(reason)
    except Exception as error:
        log.exception("job %s failed", hydra_config.job.num)
        status, reason = 1, f"{type(error).__name__}: {first_line(error)}"
    study = str(cfg.study.name) if not OmegaConf.missing_keys(cfg) else ""
    folder = str(Path(cfg.outputs) / study)
    outcome = JobOutcome(int(hydra_config.job.num), _overrides(), study, folder, status, reason)
    write_outcome(Path(hydra_config.runtime.output_dir), outcome)


def _perform(cfg: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    try:
        plain, config = _read(cfg)
        if config.quiet:
            _silence()
        if config.task == "export":
            run_export(config)
            return
        looks = {"report": (run_report, "report on"), "dashboard": (run_dashboard, "look at")}
        if config.task in looks:
            look, to = looks[config.task]
            with failures_told():
                look(config, _open_storage(config, to))
            return
        job = _prepare(cfg, plain, config)
        search = _open_study(job) if config.task in ("search", "finalize") else None
    except UserError:
        if hydra_config.mode == RunMode.RUN:
            _forget_run(Path(hydra_config.runtime.output_dir), Path(cfg.outputs))
        raise
    try:
        # The jobs of a sweep may share a terminal, which one alone can write to in place.
        live = hydra_config.mode == RunMode.RUN and not config.quiet
        with failures_told(), watched(live) as progress:
            if search is None:
                run_profile(job, progress)
            elif config.task == "finalize":
                run_finalize(job, progress, search[0])
            else:
                run_search(job, progress, *search)
    except KeyboardInterrupt:
        log.warning("interrupted: everything finished is kept; run the same command again to go on")
        raise


def _silence() -> None:
    """Leave the terminal to errors; the log file has everything."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)


def _forget_run(folder: Path, outputs: Path) -> None:
    """Take away what Hydra wrote for a run that could not begin, and the folders that it made for that."""
    shutil.rmtree(folder, ignore_errors=True)
    for empty in (*folder.resolve().parents, outputs.resolve()):
        if Path.cwd().is_relative_to(empty):
            continue
        with suppress(OSError):  # not empty, so it holds something else
            empty.rmdir()


def _read(cfg: DictConfig) -> tuple[dict[str, Any], RunConfig]:
    """Resolve and check the configuration, as plain values and frozen ones."""
    written = cast(dict[str, Any], OmegaConf.to_container(cfg.storage, resolve=False)).get("url")
    if written is not None and holds_password(str(written)):
        advice = "put the address into RANKSEARCH_STORAGE, and take storage.url out"
        raise UserError(f"storage.url holds a password, which would be written down with the configuration: {advice}")
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(f"{missing[0]} is not set: add {missing[0]}=... to the command")
        plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    except InterpolationResolutionError as error:
        unset = re.search(r"Environment variable '(\w+)' not found", str(error))
        reason = f"{unset[1]} is not set in the environment: export {unset[1]}=..." if unset else str(error.msg)
        raise UserError(f"{error.full_key} cannot be read: {reason}") from None
    return plain, freeze(RunConfig, plain)


def _prepare(cfg: DictConfig, plain: dict[str, Any], config: RunConfig) -> Job:
    """Build every object and make every check; whatever the person got wrong shows here."""
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    if HydraConfig.get().verbose is False:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # ranksearch tells of trials in its own words
    device = choose_device(config.device, config.worker)
    log.info("device: %s (%s)", device, device_in_words(device))
    fine_tuning = build_fine_tuning(config.fine_tune)
    splits = held_on(build_data(config), device)
    model, recipe, pretrained = build_model(config, splits)
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # not in its stubs
    cost_model = build("cost", config.cost, (CostModel, MeasuredCost))
    space = describe_space(model, splits, rules_of(config), cost_model, device)
    try:
        budget = config.constraint.budget(space)
    except SettingError as error:
        raise error.inside("constraint") from None
    compared = {key: plain[key] for key in COMPARED}
    for group, elsewhere in (("dataset", ("root", "workers")), ("cost", ("cache",))):  # which change no figure
        compared[group] = {key: value for key, value in compared[group].items() if key not in elsewhere}
    if pretrained.checksum is not None:  # what is in the file counts, not where it lies
        compared["model"] = {**compared["model"], "checkpoint": pretrained.checksum}
    # Unresolved, for what stands behind ${oc.env:...} belongs in no file.
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    proxy = build("proxy", config.proxy, Proxy)
    searched = space, budget, proxy, fine_tuning
    return Job(config, settings, compared, device, splits, model, recipe, pretrained, *searched, command=_command())


def _command() -> str:
    """What starts this very run again, one job alone where it is one of a sweep."""
    hydra_config = HydraConfig.get()
    own = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    folders = [word for path in own for word in ("--config-dir", path)]
    return shlex.join(["python", "-m", "ranksearch", *folders, *_overrides()])


def _overrides() -> list[str]:
    """As the person wrote them: what stands behind ${oc.env:...} belongs in no file."""
    return cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))


def _open_storage(config: RunConfig, to: str) -> BaseStorage:
    """The storage of studies that are there already; where there is none, none is made."""
    ours = str(config.storage.get("_target_")).startswith("ranksearch.storage.")
    path = Path(config.storage.get("path", "/"))
    if ours and not path.exists():
        name = ", ".join(config.study.names)
        raise UserError(f"there is no study '{name}' to {to} in {path}: name its storage, or run task=search first")
    return cast(BaseStorage, build("storage", config.storage, BaseStorage))


def _open_study(job: Job) -> tuple[Study, BaseSampler]:
    """Make the study or continue it, with a sampler and a pruner that can serve it."""
    config = job.config
    # Seen to before the storage is made, so that a sampler that cannot serve leaves no trace.
    pruner = build("pruner", config.pruner, BasePruner)
    rungs = config.pruning.steps(job.fine_tuning.steps)
    check_sampler(build_sampler(config, trials=0), pruner, rungs, job.space, job.budget, config.objective)
    if config.task == "finalize":
        storage = _open_storage(config, to="finalize a trial of")
        if config.study.name not in optuna.get_all_study_names(storage):
            raise UserError(
                f"there is no study '{config.study.name}' to finalize a trial of in this storage: name the right one, "
                "or run task=search first"
            )
    else:
        storage = cast(BaseStorage, build("storage", config.storage, BaseStorage))
    study = open_study(config.study.name, storage, job.compared, config.objective, job.space.cost.model.unit)
    study.pruner = pruner
    return study, build_sampler(config, trials=len(study.trials))

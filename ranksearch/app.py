"""Hydra in, objects out: the command line."""

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

from ranksearch.afterwards import run_dashboard, run_export, run_report
from ranksearch.config import RunConfig, Schemas
from ranksearch.errors import UserError, first_line, is_full_disk
from ranksearch.preparing import open_job_study, open_known_storage, prepare
from ranksearch.schema import freeze
from ranksearch.storage import failures_told, holds_password
from ranksearch.study import study_folder
from ranksearch.sweep import JobOutcome, write_outcome
from ranksearch.tasks import run_finalize, run_profile, run_search
from ranksearch.terminal import watched

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
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
        return (
            f"{str(error).removeprefix('Error merging override ')} cannot be used ({what}): give a value of that type"
        )
    first, _, missing = first_line(error).partition("Missing mandatory value: ")
    if missing:
        return f"{missing} is not set: add {missing}=... to the command"
    return f"the command cannot be read ({first}): see python -m ranksearch --help"


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
                look(config, open_known_storage(config, to))
            return
        _hush_optuna()
        # Unresolved, for what stands behind ${oc.env:...} belongs in no file.
        settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
        job = prepare(config, plain, settings, _command())
        search = open_job_study(job) if config.task in ("search", "finalize") else None
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
        reason = f"{unset[1]} is not set in the environment" if unset else first_line(error)
        remedy = f"export {unset[1]}=..." if unset else "mend the interpolation"
        raise UserError(f"{error.full_key} cannot be read ({reason}): {remedy}") from None
    return plain, freeze(RunConfig, plain)


def _hush_optuna() -> None:
    """Let Optuna speak through our log, and of trials not at all, which ranksearch tells of in its own words."""
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    if HydraConfig.get().verbose is False:
        optuna.logging.set_verbosity(optuna.logging.ERROR)


def _command() -> str:
    """What starts this very run again, one job alone where it is one of a sweep."""
    hydra_config = HydraConfig.get()
    own = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    folders = [word for path in own for word in ("--config-dir", path)]
    return shlex.join(["python", "-m", "ranksearch", *folders, *_overrides()])


def _overrides() -> list[str]:
    """As the person wrote them: what stands behind ${oc.env:...} belongs in no file."""
    return cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))

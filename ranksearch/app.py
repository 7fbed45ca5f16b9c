"""Hydra in, objects out: the command line. The only home of Hydra and OmegaConf."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import hydra
import optuna
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ranksearch.config import RunConfig
from ranksearch.datasets import Splits
from ranksearch.errors import SettingError, UserError
from ranksearch.job import Job, run
from ranksearch.problem import choose_device, describe_space
from ranksearch.schema import freeze, mergeable
from ranksearch.search import open_study

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
# What makes two trials comparable: a study holds trials of one value of each.
COMPARED = ("model", "dataset", "space", "cost", "constraint", "fine_tune", "baseline", "calibration", "seed")
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def main() -> None:
    """Run the command line; ends the process with 0, 1, 2 or 130 as README.md says."""
    # Hydra then hands its errors on, and they can be told in one line each.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.path.insert(0, os.getcwd())  # one's own model and data, whichever way ranksearch is started
    ConfigStore.instance().store("schema", mergeable(RunConfig))
    command = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(_run)
    try:
        command()
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        sys.exit(_complain(str(error)))
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(_complain(_explain(error)))
    except OSError as error:
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError) and error.filename:
            sys.exit(
                _complain(
                    f"{error.filename} cannot be written ({error.strerror}): choose another folder with outputs=..."
                )
            )
        raise


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
    return f"{str(error).splitlines()[0]}: see python -m ranksearch --help"


def _run(cfg: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    try:
        try:
            job = _prepare(cfg)
        except UserError:
            _forget_run(Path(hydra_config.runtime.output_dir), Path(cfg.outputs).absolute())
            raise
        run(job)
    except UserError as error:
        if hydra_config.mode == RunMode.RUN:
            sys.exit(_complain(str(error)))
        raise  # a sweep first runs its other jobs, and Hydra says which one this was
    except KeyboardInterrupt:
        log.warning("interrupted: everything finished is kept; run the same command again to go on")
        raise


def _forget_run(folder: Path, outputs: Path) -> None:
    """Take away what Hydra wrote for a run that could not begin."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in folder.parents:
        if outputs not in (parent, *parent.parents):
            return
        try:
            parent.rmdir()
        except OSError:
            return


def _prepare(cfg: DictConfig) -> Job:
    """Build every object and make every check; whatever the person got wrong shows here."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} is not set: add {missing[0]}=... to the command")
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    config: RunConfig = freeze(RunConfig, plain)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # ranksearch tells of trials in its own words
    device = choose_device(config.device)
    splits = _build_data(config)
    model, recipe = _build_model(config, splits)
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # not in its stubs
    space = describe_space(model, splits, config.space, _build("cost", config.cost))
    try:
        budget = config.constraint.budget(space)
    except SettingError as error:
        raise error.inside("constraint") from None
    _build("sampler", config.sampler)  # before the storage is made: a sampler that cannot be built leaves no trace
    study = open_study(config.study.name, _build("storage", config.storage), {key: plain[key] for key in COMPARED})
    # Another seed for every run and worker, or they would draw the same plans again.
    seed = config.seed + 1000 * config.worker + len(study.trials)
    proposer = _build("sampler", config.sampler, seed=seed)
    return Job(config, plain, device, splits, model, recipe, space, budget, study, proposer)


def _build(group: str, settings: Mapping[str, Any], **extra: Any) -> Any:
    """Call the ``_target_`` of a group."""
    try:
        return hydra.utils.instantiate(settings, **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise SettingError.inside(cause, group) if isinstance(cause, SettingError) else cause from None
        if str(error).startswith("Error locating"):
            advice = "cannot be imported: check the spelling, and that it is on the Python path"
            raise SettingError(f"{group}._target_", settings.get("_target_"), advice) from None
        raise UserError(f"{group}: {settings.get('_target_')} failed ({cause!r}): check its settings") from error


def _build_data(config: RunConfig) -> Splits:
    settings = dict(config.dataset)
    smallest = config.model.get("smallest_input")
    if smallest and settings.get("image_size", smallest) < smallest:
        log.info("dataset: images enlarged from %d to %d pixels for the model", settings["image_size"], smallest)
        settings["image_size"] = smallest
    settings.pop("name", None)
    splits = _build("dataset", settings)
    if not isinstance(splits, Splits):
        returned = f"returns {type(splits).__name__}: return ranksearch.datasets.Splits"
        raise SettingError("dataset._target_", settings["_target_"], returned)
    return splits


def _build_model(config: RunConfig, splits: Splits) -> tuple[nn.Module, dict[str, Any]]:
    """Build the dense model, and say how to build it again without its weights."""
    own = ("name", "smallest_input")
    arguments = {key: value for key, value in config.model.items() if key not in own}
    torch.manual_seed(config.seed)
    model = _build("model", arguments, num_classes=splits.num_classes)
    if not isinstance(model, nn.Module):
        returned = f"returns {type(model).__name__}: return a torch.nn.Module"
        raise SettingError("model._target_", arguments["_target_"], returned)
    recipe = {**arguments, "num_classes": splits.num_classes}
    if str(arguments["_target_"]).startswith("ranksearch.") and "weights" in recipe:
        recipe["weights"] = None
    return model, recipe

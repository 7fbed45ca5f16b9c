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
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ranksearch.artifacts import write_front, write_trials
from ranksearch.baseline import train_or_read
from ranksearch.config import RunConfig
from ranksearch.datasets import Splits
from ranksearch.errors import SettingError, UserError
from ranksearch.finalize import Finalized, finalize
from ranksearch.models import weights_fit
from ranksearch.pipeline import calibrate, choose_device, describe_space
from ranksearch.progress import progress
from ranksearch.records import finished, front, pick, read_trials
from ranksearch.report import format_table, summary_rows, write_report
from ranksearch.schema import freeze, mergeable
from ranksearch.search import open_study, run_search
from ranksearch.trial import Problem

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
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
    try:
        _search(cfg)
    except UserError:
        _forget_run(Path(HydraConfig.get().runtime.output_dir), Path(cfg.outputs).absolute())
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


def _search(cfg: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} is not set: add {missing[0]}=... to the command")
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    config: RunConfig = freeze(RunConfig, plain)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    device = choose_device(config.device)
    splits = _build_data(config)
    model, recipe = _build_model(config, splits)
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # not in torch's stubs
    space = describe_space(model, splits, config.space, _build("cost", config.cost))
    budget = config.constraint.budget(space)
    storage = _build("storage", config.storage)
    compared = ("model", "dataset", "space", "cost", "constraint", "fine_tune", "baseline", "calibration", "seed")
    study = open_study(config.study.name, storage, {key: plain[key] for key in compared})
    proposer = _build("sampler", config.sampler, seed=config.seed + 1000 * config.worker + len(study.trials))

    _prepare_baseline(config, model, splits, recipe, device)
    problem = calibrate(model, splits, space, config.calibration, budget, config.fine_tune, config.seed, device)
    folder = Path(config.outputs) / config.study.name
    finalized: Finalized | None = None
    try:
        done = finished(study)
        log.info("study '%s': %d of %d trials finished", config.study.name, done, config.study.n_trials)
        with progress("search", config.study.n_trials, done) as shown:
            run_search(study, problem, config.study, proposer, shown.trial)
        points = front(read_trials(study))
        if points:
            finalized = finalize(problem, config.study.name, pick(points), config.finalize, recipe, folder / "best")
        else:
            log.warning("no trial completed, so there is nothing to finalize: see trials.csv for the reasons")
    except KeyboardInterrupt:
        log.warning("interrupted: every finished trial is kept; run the same command again to go on")
        raise
    finally:
        _write(folder, config, plain, problem, study, finalized)


def _build(group: str, settings: Mapping[str, Any], **extra: Any) -> Any:
    """Call the ``_target_`` of a group."""
    try:
        return hydra.utils.instantiate(settings, **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise SettingError.inside(cause, group) if isinstance(cause, SettingError) else cause from None
        if str(error).startswith("Error locating"):
            raise SettingError(
                f"{group}._target_", settings.get("_target_"), "cannot be imported: check the spelling"
            ) from None
        raise


def _build_data(config: RunConfig) -> Splits:
    settings = dict(config.dataset)
    smallest = config.model.get("smallest_input")
    if smallest and settings.get("image_size", smallest) < smallest:
        log.info("dataset: images enlarged from %d to %d pixels for the model", settings["image_size"], smallest)
        settings["image_size"] = smallest
    settings.pop("name", None)
    splits = _build("dataset", settings)
    assert isinstance(splits, Splits)
    return splits


def _build_model(config: RunConfig, splits: Splits) -> tuple[nn.Module, dict[str, Any]]:
    """Build the dense model, and say how to build it again without its weights."""
    own = ("name", "smallest_input")
    arguments = {key: value for key, value in config.model.items() if key not in own}
    torch.manual_seed(config.seed)
    model = _build("model", arguments, num_classes=splits.num_classes)
    recipe = {**arguments, "num_classes": splits.num_classes}
    if "weights" in recipe:
        recipe["weights"] = None
    return model, recipe


def _prepare_baseline(
    config: RunConfig, model: nn.Module, splits: Splits, recipe: Mapping[str, Any], device: torch.device
) -> None:
    settings, weights = config.baseline, config.model.get("weights")
    ready = weights is not None and weights_fit(config.model["architecture"], weights, splits.num_classes)
    if settings.train == "never" or (settings.train == "auto" and ready):
        log.info("baseline: the model's own weights (%s)", weights or "as its builder sets them")
        return
    name = f"{config.model['name']} on {config.dataset['name']}"
    if weights is None:
        log.info("baseline: no pretrained weights asked for, so %s is trained from scratch", name)
    else:
        log.info("baseline: %s made for other classes, so %s is trained on from there", weights, name)
    made_from = {
        "model": dict(config.model),
        "dataset": dict(config.dataset),
        "baseline": vars(settings),
        "shape": list(splits.input_shape),
        "seed": config.seed,
    }
    with progress("baseline", settings.steps) as shown:
        train_or_read(
            model, splits, settings, made_from, Path(config.outputs) / "cache", config.seed, device, shown.step
        )


def _write(
    folder: Path,
    config: RunConfig,
    plain: Mapping[str, Any],
    problem: Problem,
    study: optuna.Study,
    finalized: Finalized | None,
) -> None:
    """Write the artifacts, and say what they hold and where they are."""
    records = read_trials(study)
    points = front(records)
    write_trials(folder / "trials.csv", records)
    write_front(folder / "front.json", config.study.name, problem, points)
    notes = {
        "trials": f"accuracy on the validation split after {config.fine_tune.steps} fine-tuning steps, seed {config.seed}",
        "picked plan": f"accuracy on the test split after {config.finalize.steps} fine-tuning steps, seed {config.seed}",
        "cost": f"{problem.space.cost.model.unit} of one image of shape {list(problem.splits.input_shape)}",
        "constraint": f"speedup of at least {config.constraint.speedup:g}",
    }
    write_report(folder / "report.html", config.study.name, problem, records, points, finalized, plain, notes)
    log.info("%s", format_table(summary_rows(problem, points, finalized)))
    names = ["trials.csv", "front.json", "report.html", *(["best/"] if finalized else [])]
    log.info("written to %s: %s", folder, ", ".join(names))

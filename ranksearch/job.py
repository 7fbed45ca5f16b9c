"""A whole run: baseline, calibration, search, finalize, artifacts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optuna import Study
from optuna.samplers import BaseSampler
from torch import nn

from ranksearch.artifacts import write_artifacts
from ranksearch.baseline import train_or_read
from ranksearch.config import RunConfig
from ranksearch.datasets import Splits
from ranksearch.errors import DivergedError, UserError
from ranksearch.finalize import Finalized, finalize
from ranksearch.models import weights_fit
from ranksearch.problem import calibrate
from ranksearch.progress import progress
from ranksearch.records import finished, front, pick, read_trials
from ranksearch.search import run_search
from ranksearch.space import SearchSpace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Everything that is known before anything is trained.

    Attributes:
        config: of the run.
        settings: the same as plain JSON values.
        device: where it runs.
        splits: the data.
        model: the dense network, on ``device``, not yet trained unless its builder did.
        recipe: how to build it again without its weights: ``_target_`` and its arguments.
        space: what a trial may choose.
        budget: the highest cost of a feasible plan.
        study: that keeps the trials.
        proposer: the sampler.
    """

    config: RunConfig
    settings: dict[str, Any]
    device: torch.device
    splits: Splits
    model: nn.Module
    recipe: dict[str, Any]
    space: SearchSpace
    budget: int
    study: Study
    proposer: BaseSampler


def run(job: Job) -> None:
    """Do it all, and write what came of it, also when it ends early.

    Raises:
        UserError: the training of the baseline or of the picked plan diverged.
        KeyboardInterrupt: the person asked to stop; everything finished is kept.
    """
    config, study = job.config, job.study
    _train_baseline(job)
    problem = calibrate(
        job.model,
        job.splits,
        job.space,
        config.calibration,
        job.budget,
        config.fine_tune,
        config.seed,
        job.device,
    )
    folder = Path(config.outputs) / config.study.name
    finalized: Finalized | None = None
    try:
        done = finished(study)
        log.info("study '%s': %d of %d trials finished", config.study.name, done, config.study.n_trials)
        with progress("search", config.study.n_trials, done) as shown:
            run_search(study, problem, config.study, job.proposer, shown.trial)
        points = front(read_trials(study))
        if points:
            finalized = finalize(problem, config.study.name, pick(points), config.finalize, job.recipe, folder / "best")
        else:
            log.warning("no trial completed, so there is nothing to finalize: see trials.csv for the reasons")
    except DivergedError as error:
        raise UserError(f"finalizing failed ({error}), all trials are kept: lower fine_tune.learning_rate") from None
    finally:
        table = write_artifacts(folder, config, job.settings, problem, read_trials(study), finalized)
        log.info("%s", table)
        names = ["trials.csv", "front.json", "report.html", *(["best/"] if finalized else [])]
        log.info("written to %s: %s", folder, ", ".join(names))


def _train_baseline(job: Job) -> None:
    """Give the dense model the weights that everything is compared with."""
    config, classes = job.config, job.splits.num_classes
    settings, weights = config.baseline, config.model.get("weights")
    architecture = config.model.get("architecture")
    ready = weights is not None and (architecture is None or weights_fit(architecture, weights, classes))
    if settings.train == "never" or (settings.train == "auto" and ready):
        log.info("baseline: the model's own weights (%s)", weights or "as its builder sets them")
        return
    name = f"{config.model['name']} on {config.dataset['name']}"
    if weights is None:
        log.info("baseline: no pretrained weights asked for, so %s is trained from scratch", name)
    else:
        log.info("baseline: %s was made for other classes, so %s is trained on from there", weights, name)
    made_from = {
        "model": dict(config.model),
        "dataset": dict(config.dataset),
        "baseline": vars(settings),
        "shape": list(job.splits.input_shape),
        "seed": config.seed,
    }
    cache = Path(config.outputs) / "cache"
    with progress("baseline", settings.steps) as shown:
        try:
            train_or_read(job.model, job.splits, settings, made_from, cache, config.seed, job.device, shown.step)
        except DivergedError as error:
            raise UserError(f"training the baseline failed ({error}): lower baseline.learning_rate") from None

"""What every task begins with: a trained dense network, and what calibration finds out about its layers."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from ranksearch.baseline import train_or_read
from ranksearch.datasets import endless_batches
from ranksearch.errors import DivergedError, UserError, first_line
from ranksearch.fine_tuning import FineTuning
from ranksearch.job import Job
from ranksearch.loading import is_trusted
from ranksearch.problem import Problem, calibrate
from ranksearch.progress import Progress
from ranksearch.proxies import weighed
from ranksearch.training import Recipe, settle_autocast

log = logging.getLogger(__name__)


def calibrated_problem(job: Job, progress: Progress) -> Problem:
    """Train or read the baseline, and calibrate.

    Raises:
        UserError: the training of the baseline diverged, or the memory does not suffice.
        KeyboardInterrupt: the person asked to stop.
    """
    config = job.config
    try:
        _train_baseline(job, progress)
        progress.stage("calibration")
        return calibrate(
            job.model,
            job.splits,
            job.space,
            config.calibration,
            job.budget,
            _settled(job),
            config.seed,
            job.device,
        )
    except DivergedError as error:
        raise UserError(
            f"the baseline failed ({error.reason}): lower baseline.learning_rate, or mend its weights"
        ) from None
    except torch.OutOfMemoryError as error:
        reason = first_line(error)
        raise UserError(
            f"out of memory before the first trial ({reason}): lower calibration.batch_size or baseline.batch_size"
        ) from None


def weigh(job: Job, problem: Problem) -> Problem:
    """The problem with errors weighed by what they are feared to do."""
    return replace(problem, harms=weighed(problem.errors, job.proxy.weights(problem)))


def _settled(job: Job) -> FineTuning:
    """The trials' fine-tuning, with what depends on the device decided."""
    fine_tuning = job.fine_tuning
    if not isinstance(fine_tuning, Recipe) or not fine_tuning.steps:
        return fine_tuning
    splits = job.splits
    some = endless_batches(
        splits.train, fine_tuning.batch_size, job.device, job.config.seed, splits.workers, splits.augment
    )
    settled = settle_autocast(fine_tuning, job.model, some, job.device)
    log.info("fine-tuning: in %s", "bfloat16" if settled.autocast == "bfloat16" else "float32")
    return settled


def _train_baseline(job: Job, progress: Progress) -> None:
    """Give the dense network the weights that everything is compared with."""
    config, settings = job.config, job.config.baseline
    name = f"{config.model['name']} on {config.dataset['name']}"
    weights, fit = job.pretrained.source, job.pretrained.fit
    if settings.train == "never" or (settings.train == "auto" and fit):
        log.info("baseline: the weights that the model comes with (%s)", weights or "from its builder")
        return
    if weights is None:
        log.info("baseline: no pretrained weights asked for, so %s is trained from scratch", name)
        if not is_trusted(str(job.builder["_target_"])):
            log.info("baseline: baseline.train=never would keep the weights that its builder sets")
    elif fit:
        log.info("baseline: %s is trained on from %s, as baseline.train=always asks", name, weights)
    else:
        log.info(
            "baseline: %s has other classes, so the last layer is new and %s is trained on from there", weights, name
        )
    made_from = {
        "model": job.compared["model"],
        "dataset": job.compared["dataset"],
        "shape": list(job.splits.input_shape),
    }
    cache = Path(config.outputs) / "cache"
    progress.stage("baseline", settings.steps, settings.batch_size)
    train_or_read(job.model, job.splits, settings, made_from, cache, config.seed, job.device, progress.step)

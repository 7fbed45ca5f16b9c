"""Stages that several modes share: the baseline and calibration, and the end of a study."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from optuna import Study
from optuna.storages import BaseStorage

from ranksearch.cli.progress import Progress
from ranksearch.cli.run_context import RunContext
from ranksearch.errors import DivergedError, UserError, first_line
from ranksearch.files import write_json
from ranksearch.report.artifacts import write_artifacts
from ranksearch.report.dashboard import DashboardPage
from ranksearch.results.attributes import SETTINGS
from ranksearch.results.metadata import StudyMetadata, find_metadata
from ranksearch.results.pareto import pareto_front
from ranksearch.results.study_files import PLAN_FILE, RUN_FILE, is_trusted
from ranksearch.results.trials import count_finished, read_trials
from ranksearch.study.context import SearchContext, build_context
from ranksearch.study.finalize import finalize
from ranksearch.study.provenance import run_record
from ranksearch.study.select_trial import select_trial
from ranksearch.training.baseline import ensure_baseline, read_baseline

log = logging.getLogger(__name__)
BEST_LOCK = "best.lock"


def calibrated_context(run: RunContext, progress: Progress, *, weighted: bool = True) -> SearchContext:
    """Train or read the baseline, and calibrate; only allocation needs errors that the proxy has weighted."""
    inputs = run.inputs if weighted else replace(run.inputs, proxy=None)
    try:
        with _within_memory():
            _train_baseline(run, progress)
            return build_context(inputs, run.config.calibration, tick=progress.tick)
    except DivergedError as error:
        advice = "lower baseline.learning_rate, or fix its weights"
        raise UserError(f"the baseline failed ({error.reason}): {advice}") from None


def context_without_training(run: RunContext, progress: Progress) -> SearchContext | None:
    """Calibrate with the weights that there are; None if the baseline would have to be trained first."""
    config, inputs = run.config, run.inputs
    if not _is_trained(run) and not read_baseline(
        inputs.model,
        inputs.splits,
        config.baseline,
        run.outputs / "cache",
        made_from=_made_from(run),
        seed=config.seed,
    ):
        return None
    with _within_memory():
        return build_context(inputs, run.config.calibration, tick=progress.tick)


@contextmanager
def _within_memory() -> Iterator[None]:
    """Raise a user error where memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = "lower calibration.batch_size or baseline.batch_size"
        raise UserError(f"out of memory before the first trial ({first_line(error)}): {advice}") from None


def _is_trained(run: RunContext) -> bool:
    """Return whether the dense network keeps the weights that it came with."""
    train = run.config.baseline.train
    return train == "never" or (train == "auto" and run.dense.pretrained.fit)


def _made_from(run: RunContext) -> dict[str, Any]:
    """Return what the baseline's weights depend on, beside recipe and seed."""
    data = {key: run.compared[key] for key in ("model", "dataset")}
    return data | {"shape": list(run.inputs.splits.input_shape)}


def _train_baseline(run: RunContext, progress: Progress) -> None:
    """Give the dense network the weights that every plan is compared with."""
    config, settings = run.config, run.config.baseline
    name = f"{config.model.name} on {config.dataset['name']}"
    weights, fit = run.dense.pretrained.source, run.dense.pretrained.fit
    if _is_trained(run):
        log.info("baseline: using the weights of the model (%s)", weights or "from its builder")
        return
    if weights is None:
        log.info("baseline: no pretrained weights requested, so %s is trained from scratch", name)
        if not is_trusted(str(run.dense.builder["_target_"])):
            log.info("baseline: baseline.train=never would keep the weights that its builder sets")
    elif fit:
        log.info("baseline: %s is trained further from %s, because of baseline.train=always", name, weights)
    else:
        log.info("baseline: %s has other classes, so its last layer is new and %s is trained", weights, name)
    progress.stage("baseline", settings.steps, settings.batch_size)
    model, splits, device, cache = run.inputs.model, run.inputs.splits, run.inputs.device, run.outputs / "cache"
    seed = config.seed
    ensure_baseline(
        model, splits, settings, cache, made_from=_made_from(run), seed=seed, device=device, on_step=progress.step
    )


def describe_study(run: RunContext, context: SearchContext) -> StudyMetadata:
    """Make the metadata of a run's study."""
    config = run.config
    return context.describe(
        command=run.launch.command,
        model=config.model.name,
        dataset=str(config.dataset["name"]),
        speedup=config.constraint.speedup,
        trials=config.study.n_trials,
    )


def write_run_record(run: RunContext, context: SearchContext) -> None:
    """Record the settings, versions, data and device of the run in the study's folder."""
    record = run_record(run.launch.settings, run.compared, context.splits, context.device, run.config.seed)
    write_json(run.folder / RUN_FILE, record)


def pick_and_finalize(run: RunContext, progress: Progress, context: SearchContext, study: Study) -> None:
    """Pick a trial and finalize it."""
    config, records = run.config, read_trials(study)
    if not pareto_front(records):
        reasons = [record.reason for record in records if record.reason]
        last, done = f" (the last: {reasons[-1]})" if reasons else "", count_finished(study.trials)
        advice = "see trials.csv, fix the cause, choose another study.name"
        raise UserError(f"none of {done} trials completed{last}: {advice}")
    picked = select_trial(records, config.pick, context.baseline.accuracy)
    progress.stage("finalize", config.finalize.total_steps, context.fine_tuner.batch_size)
    try:
        finalize(
            context,
            picked,
            config.finalize,
            run.folder / "best",
            study=config.study.name,
            runtime=run.runtime,
            builder=run.dense.builder,
            compared=study.user_attrs[SETTINGS],  # as they were written when the study was made
            on_step=progress.step,
        )
    except DivergedError as error:
        advice = "lower finalize.learning_rate"
        raise UserError(f"finalizing failed ({error.reason}), all trials are kept: {advice}") from None


def write_results(run: RunContext, context: SearchContext, study: Study, storage: BaseStorage) -> None:
    """Write the artifacts of a study, and log where they are."""
    records, folder, name = read_trials(study), run.folder, run.config.study.name
    # The metadata of the search, not of a run that only finalizes.
    metadata = find_metadata(storage, name) or describe_study(run, context)
    DashboardPage(study, metadata, folder, run.outputs).refresh()
    log.info("%s", write_artifacts(folder, name, metadata, records))
    best = ", best/" if (folder / "best" / PLAN_FILE).exists() else ""
    log.info("written to %s: trials.csv, front.json, report.html, run.json%s", folder, best)

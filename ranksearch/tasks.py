"""A whole run, task by task: a profile, or search, finalize and artifacts."""

from __future__ import annotations

import logging
from pathlib import Path

from optuna import Study
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler

from ranksearch.artifacts import write_artifacts
from ranksearch.errors import DivergedError, UserError
from ranksearch.facts import StudyFacts, keep_facts, kept_facts
from ranksearch.files import write_json
from ranksearch.finalize import finalize
from ranksearch.front import front
from ranksearch.groundwork import calibrated_problem, weigh
from ranksearch.job import Job
from ranksearch.loading import PLAN_FILE, load_call
from ranksearch.locks import alone, first
from ranksearch.picking import pick
from ranksearch.problem import Problem
from ranksearch.profile import READING, describe_choices, display_front, display_layers, profile_problem, write_profile
from ranksearch.progress import Progress
from ranksearch.provenance import RUN_FILE, run_record
from ranksearch.records import TrialRecord, finished, read_trials
from ranksearch.review.dashboard import DashboardPage
from ranksearch.search import queue_closed_form, run_trials
from ranksearch.storage.stale import wait_for_others
from ranksearch.summary import format_table

log = logging.getLogger(__name__)

BEST_LOCK = "best.lock"


def run_profile(job: Job, progress: Progress) -> None:
    """Train or read the baseline, calibrate, and say what every layer costs and what the closed form makes of it.

    Raises:
        UserError: the training of the baseline diverged.
        KeyboardInterrupt: the person asked to stop.
    """
    problem = weigh(job, calibrated_problem(job, progress))
    profile = profile_problem(problem, job.config.latency)
    write_profile(job.folder, profile)
    log.info("%s", format_table(display_layers(profile)))
    log.info("%s", READING)
    for line in describe_choices(problem.space):
        log.info("space: %s", line)
    log.info("the front that the closed form predicts, without fine-tuning:")
    log.info("%s", format_table(display_front(profile)))
    log.info("written to %s: profile.csv, predicted_front.csv", job.folder)


def run_search(job: Job, progress: Progress, study: Study, sampler: BaseSampler) -> None:
    """Do it all, and write what came of it, also when it ends early.

    Args:
        job: what is searched.
        progress: is told how far it is.
        study: that keeps the trials.
        sampler: the sampler.

    Raises:
        UserError: the training of the baseline or of the picked plan diverged, or no trial completed.
        KeyboardInterrupt: the person asked to stop; everything finished is kept.
    """
    problem = weigh(job, calibrated_problem(job, progress))
    _record(job, problem)
    try:
        _run_trials(job, progress, problem, study, sampler)
    except StorageInternalError:  # whose trials cannot be read either
        raise
    except BaseException:
        _write(job, problem, study)
        raise
    with first(job.folder / BEST_LOCK) as ours:
        if not ours:
            log.info("all trials are done, and another process sees to the end of the study: leaving")
            return
        try:
            wait_for_others(study)
            _finish(job, progress, problem, study)
        finally:
            _write(job, problem, study)
    log.info("load it with %s", load_call(job.folder / "best"))


def run_finalize(job: Job, progress: Progress, study: Study) -> None:
    """Pick a trial of a study, fine-tune it for long, and write what came of it.

    Args:
        job: what was searched.
        progress: is told how far it is.
        study: that keeps the trials.

    Raises:
        UserError: there is no trial as asked for, or the fine-tuning diverged.
        KeyboardInterrupt: the person asked to stop; the fine-tuning goes on from its last checkpoint.
    """
    problem = calibrated_problem(job, progress)
    _record(job, problem)
    with alone(job.folder / BEST_LOCK, "finalizes a trial of this study"):
        _finish(job, progress, problem, study)
        _write(job, problem, study)
    log.info("load it with %s", load_call(job.folder / "best"))


def _finish(job: Job, progress: Progress, problem: Problem, study: Study) -> None:
    """Pick a trial and finalize it."""
    config, records = job.config, read_trials(study)
    if not front(records):
        raise UserError(_why_none_completed(study))
    picked = pick(records, config.pick, problem.baseline.accuracy)
    try:
        progress.stage("finalize", config.finalize.all_steps, problem.fine_tuning.batch_size)
        finalize(
            problem,
            config.study.name,
            picked,
            config.finalize,
            config.latency,
            job.builder,
            job.compared,
            job.folder / "best",
            progress.step,
        )
    except DivergedError as error:
        raise UserError(
            f"finalizing failed ({error.reason}), all trials are kept: lower finalize.learning_rate"
        ) from None


def _write(job: Job, problem: Problem, study: Study) -> None:
    """Write the artifacts and tell of them."""
    records, folder, name = read_trials(study), job.folder, job.config.study.name
    facts = kept_facts(study) or _facts(job, problem)  # what made the study, not what finalizes a trial of it
    DashboardPage(study, facts, folder, Path(job.config.outputs)).refresh()
    log.info("%s", write_artifacts(folder, name, facts, records))
    best = ", best/" if (folder / "best" / PLAN_FILE).exists() else ""
    log.info("written to %s: trials.csv, front.json, report.html, run.json%s", folder, best)


def _facts(job: Job, problem: Problem) -> StudyFacts:
    config = job.config
    names = str(config.model["name"]), str(config.dataset["name"])
    asked, trials = config.constraint.speedup, config.study.n_trials
    return StudyFacts.of(problem, job.command, *names, speedup=asked, trials=trials)


def _record(job: Job, problem: Problem) -> None:
    """Write down what this run is made with, for whoever looks at the study from now on."""
    record = run_record(job.settings, job.compared, problem.splits, problem.device, job.config.seed)
    write_json(job.folder / RUN_FILE, record)


def _run_trials(job: Job, progress: Progress, problem: Problem, study: Study, sampler: BaseSampler) -> None:
    settings = job.config.study
    facts = _facts(job, problem)
    keep_facts(study, facts)
    progress.stage("closed form")
    with alone(job.folder / "closed_form.lock", "finds the plans of the closed form"):
        queue_closed_form(study, problem, settings)
    records, done = read_trials(study), finished(study.trials)
    log.info("study '%s': %d of %d trials finished", settings.name, done, settings.n_trials)
    page = DashboardPage(study, facts, job.folder, Path(job.config.outputs))
    page.refresh()

    def tell(record: TrialRecord) -> None:
        known = read_trials(study)
        progress.trial(record, known)
        page.refresh_if_due(known)

    progress.trials(facts, records, problem.fine_tuning.batch_size, job.config.finalize.all_steps)
    run_trials(study, problem, settings, sampler, tell, job.config.pruning, page.trial)


def _why_none_completed(study: Study) -> str:
    reasons = [record.reason for record in read_trials(study) if record.reason]
    last = f" (the last: {reasons[-1]})" if reasons else ""
    done = finished(study.trials)
    return f"none of {done} trials completed{last}: see trials.csv, mend the cause, take another study.name"

"""``mode=search``: a study's trials, then its best trial finalized, and a report."""

import logging

from optuna import Study
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from ranksearch.cli.config import RunConfig
from ranksearch.cli.progress import Progress
from ranksearch.cli.run_context import Launch, RunContext, Work
from ranksearch.cli.setup import open_run_study, set_up
from ranksearch.cli.stages import (
    BEST_LOCK,
    calibrated_context,
    describe_study,
    pick_and_finalize,
    write_results,
    write_run_record,
)
from ranksearch.locks import exclusive, try_exclusive
from ranksearch.report.dashboard import DashboardPage
from ranksearch.results.metadata import write_metadata
from ranksearch.results.study_files import load_call
from ranksearch.results.trials import TrialRecord, count_finished, read_trials
from ranksearch.storage.stale_trials import wait_for_running_trials
from ranksearch.study.context import SearchContext
from ranksearch.study.loop import enqueue_closed_form, run_trials

log = logging.getLogger(__name__)


def prepare(config: RunConfig, launch: Launch) -> Work:
    """Set the run up and open its study; the work runs its trials and finalizes the picked one."""
    run = set_up(config, launch)
    study, storage, sampler = open_run_study(run)

    def work() -> None:
        with launch.progress() as progress:
            _search(run, progress, study, storage, sampler)

    return work


def _search(run: RunContext, progress: Progress, study: Study, storage: BaseStorage, sampler: BaseSampler) -> None:
    """Run the whole search, and write its results even if it ends early."""
    context = calibrated_context(run, progress)
    write_run_record(run, context)
    try:
        _run_trials(run, progress, context, study, storage, sampler)
    except StorageInternalError:  # the trials cannot be read either
        raise
    except BaseException:
        write_results(run, context, study, storage)
        raise
    with try_exclusive(run.folder / BEST_LOCK) as acquired:
        if not acquired:
            log.info("all trials are finished, and another process is finalizing the study: exiting")
            return
        try:
            wait_for_running_trials(study, storage)
            pick_and_finalize(run, progress, context, study)
        finally:
            write_results(run, context, study, storage)
    log.info("load it with %s", load_call(run.folder / "best"))


def _run_trials(
    run: RunContext,
    progress: Progress,
    context: SearchContext,
    study: Study,
    storage: BaseStorage,
    sampler: BaseSampler,
) -> None:
    config, settings, metadata = run.config, run.config.study, describe_study(run, context)
    write_metadata(storage, settings.name, metadata)
    progress.stage("closed form")
    with exclusive(run.folder / "closed_form.lock", "computes the plans of the closed form"):
        enqueue_closed_form(study, storage, context, settings)
    records = read_trials(study)
    log.info("study '%s': %d of %d trials finished", settings.name, count_finished(study.trials), settings.n_trials)
    page = DashboardPage(study, metadata, run.folder, run.outputs)
    page.refresh()

    def on_trial(record: TrialRecord) -> None:
        trials = read_trials(study)
        progress.trial(record, trials)
        page.refresh_if_due(trials)

    progress.trials(metadata, records, context.fine_tuner.batch_size, config.finalize.total_steps)
    run_trials(study, context, settings, sampler, on_trial, pruning=config.pruner, on_result=page.trial)

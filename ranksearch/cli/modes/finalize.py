"""``mode=finalize``: a trial of a study picked, fine-tuned for long, and written to `best/`."""

import logging

from ranksearch.cli.config import RunConfig
from ranksearch.cli.run_context import Launch, Work
from ranksearch.cli.setup import open_run_study, set_up
from ranksearch.cli.stages import BEST_LOCK, calibrated_context, pick_and_finalize, write_results, write_run_record
from ranksearch.locks import exclusive
from ranksearch.results.study_files import load_call

log = logging.getLogger(__name__)


def prepare(config: RunConfig, launch: Launch) -> Work:
    """Set the run up and open its study; the work finalizes a trial of it."""
    run = set_up(config, launch)
    study, storage, _ = open_run_study(run)

    def work() -> None:
        with launch.progress() as progress:
            context = calibrated_context(run, progress, weighted=False)
            write_run_record(run, context)
            with exclusive(run.folder / BEST_LOCK, "finalizes a trial of this study"):
                pick_and_finalize(run, progress, context, study)
                write_results(run, context, study, storage)
            log.info("load it with %s", load_call(run.folder / "best"))

    return work

"""``mode=report``: the report of a study as it is now, or of several compared. It loads no torch."""

import logging
from pathlib import Path

import optuna

from ranksearch.cli.config import RunConfig
from ranksearch.cli.instantiate import open_existing_storage
from ranksearch.cli.overwrite_guard import require_own_artifacts
from ranksearch.cli.run_context import Launch, Work
from ranksearch.report.artifacts import write_artifacts
from ranksearch.report.comparison import comparison_rows, write_comparison
from ranksearch.report.dashboard import DashboardPage
from ranksearch.report.tables import format_table
from ranksearch.results.metadata import read_metadata
from ranksearch.results.pareto import pareto_front
from ranksearch.results.study_files import front_content
from ranksearch.results.trials import read_trials
from ranksearch.storage.factory import require_studies, storage_errors
from ranksearch.study.settings import study_folder

log = logging.getLogger(__name__)


def prepare(config: RunConfig, launch: Launch) -> Work:
    """Read one study or several; the work writes the report of one, or compares several."""
    require_own_artifacts(config)
    names, outputs = config.study.names, Path(config.outputs)
    with storage_errors():
        storage = open_existing_storage(config, "report on")
        require_studies(storage, names, "report on")
        studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
        contents = [(study, read_metadata(storage, study.study_name), read_trials(study)) for study in studies]

    def compare() -> None:
        fronts = {
            study.study_name: front_content(study.study_name, metadata, pareto_front(records))
            for study, metadata, records in contents
        }
        folder = outputs / study_folder(names)
        write_comparison(folder / "comparison.html", "ranksearch: " + ", ".join(names), fronts)
        log.info("%s", format_table(comparison_rows(fronts)))
        log.info("written to %s: comparison.html, fronts.svg, fronts.png", folder)

    def report() -> None:
        [(study, metadata, records)] = contents
        folder = outputs / study.study_name
        DashboardPage(study, metadata, folder, outputs).refresh()
        log.info("%s", write_artifacts(folder, study.study_name, metadata, records))
        log.info("written to %s: trials.csv, front.json, report.html", folder)

    return compare if len(contents) > 1 else report

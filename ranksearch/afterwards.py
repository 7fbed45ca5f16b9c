"""The tasks on what searches left behind: export, the report of a study, several compared, the dashboard."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from ranksearch.artifacts import front_content, write_artifacts
from ranksearch.config import NOT_OF_THE_BUILDER, RunConfig
from ranksearch.errors import UserError
from ranksearch.export import export
from ranksearch.facts import read_facts
from ranksearch.front import front
from ranksearch.loading import input_shape_of, is_trusted, load, read_plan_file
from ranksearch.records import read_trials
from ranksearch.review.comparison import comparison_rows, write_comparison
from ranksearch.review.dashboard import DashboardPage
from ranksearch.review.serving import dashboard
from ranksearch.study import require_studies, study_folder
from ranksearch.summary import format_table

log = logging.getLogger(__name__)


def prepare_export(config: RunConfig) -> Callable[[], None]:
    """Read the network that a search ended with; what is given back writes it in another format.

    Raises:
        UserError: there is none, it is damaged, or its builder is not trusted.
    """
    best = Path(config.outputs) / config.study.name / "best"
    entries = read_plan_file(best)
    # A builder that this very configuration names is as trusted as the configuration.
    own = {key: value for key, value in config.model.items() if key not in (*NOT_OF_THE_BUILDER, "weights")}
    built = {key: value for key, value in entries["model"].items() if key not in ("num_classes", "weights")}
    target = str(entries["model"].get("_target_"))
    if own != built and not is_trusted(target):
        raise UserError(f"{best} holds a network of {target} with other settings: give those of its search to model")
    shape = input_shape_of(entries, best)
    network = load(best, trust=own == built)

    def work() -> None:
        export(network, shape, best / "export", config.format)

    return work


def prepare_report(config: RunConfig, storage: BaseStorage) -> Callable[[], None]:
    """Read a study, or several; what is given back writes the report of one, or compares several.

    Raises:
        UserError: there is no such study, or it says too little of itself.
    """
    names, outputs = config.study.names, Path(config.outputs)
    require_studies(storage, names, to="report on")
    studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
    known = [(study, read_facts(study), read_trials(study)) for study in studies]

    def compare() -> None:
        fronts = {
            study.study_name: front_content(study.study_name, facts, front(records)) for study, facts, records in known
        }
        folder = outputs / study_folder(names)
        write_comparison(folder / "comparison.html", "ranksearch: " + ", ".join(names), fronts)
        log.info("%s", format_table(comparison_rows(fronts)))
        log.info("written to %s: comparison.html, fronts.svg, fronts.png", folder)

    def report() -> None:
        [(study, facts, records)] = known
        folder = outputs / study.study_name
        DashboardPage(study, facts, folder, outputs).refresh()
        log.info("%s", write_artifacts(folder, study.study_name, facts, records))
        log.info("written to %s: trials.csv, front.json, report.html", folder)

    return compare if len(known) > 1 else report


def prepare_dashboard(config: RunConfig, storage: BaseStorage, stack: ExitStack) -> Callable[[], None]:
    """Bind the port of Optuna's dashboard; what is given back serves it until the person stops it.

    Args:
        config: of the run.
        storage: of the studies.
        stack: that closes the server.

    Raises:
        UserError: the port is taken.
    """
    address, server = stack.enter_context(dashboard(storage, Path(config.outputs), config.dashboard))

    def work() -> None:
        log.info("the dashboard is at %s (Ctrl-C ends it)", address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("the dashboard is closed")

    return work

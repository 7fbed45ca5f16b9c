"""Output files of a study: `trials.csv`, `front.json`, `report.html` and figures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ranksearch.files import write_csv, write_json
from ranksearch.report.html_report import write_report
from ranksearch.report.static_figures import write_static_figures
from ranksearch.report.tables import format_table, summary_rows
from ranksearch.results.final import read_final_result
from ranksearch.results.metadata import StudyMetadata
from ranksearch.results.pareto import pareto_front
from ranksearch.results.study_files import front_content, load_call, read_run
from ranksearch.results.trials import STAGES, TrialRecord

COLUMNS = (
    *("trial", "state", "validation_accuracy", "cost", "cost_unit", "speedup", "macs", "params", "seconds"),
    *("validation_accuracy_before_fine_tuning", "validation_loss", "fine_tune_steps", "seed"),
    *("closed_form", "reason", "plan"),
    *(f"seconds_{stage}" for stage in STAGES),
)


def write_trials(path: Path, metadata: StudyMetadata, records: Sequence[TrialRecord]) -> None:
    """Write one row per trial that has started; cells without a value stay empty."""
    write_csv(path, COLUMNS, [_row(metadata, record) for record in records if record.state != "WAITING"])


def _row(metadata: StudyMetadata, record: TrialRecord) -> dict[str, Any]:
    row: dict[str, Any] = {"trial": record.number, "state": record.state, "reason": record.reason}
    row |= {"seconds": round(record.seconds, 3), "closed_form": int(record.closed_form)}
    if (result := record.result) is None:
        return row
    return row | {
        "validation_accuracy": result.accuracy,
        "cost_unit": metadata.unit,
        "validation_accuracy_before_fine_tuning": result.accuracy_before,
        "validation_loss": result.loss,
        "fine_tune_steps": metadata.fine_tune_steps,
        "seed": metadata.seed,
        "plan": json.dumps(result.plan.to_json()),
        **{key: getattr(result, key) for key in ("cost", "speedup", "macs", "params")},
        **{f"seconds_{stage}": round(result.seconds.get(stage, 0.0), 3) for stage in STAGES},
    }


def write_artifacts(folder: Path, study: str, metadata: StudyMetadata, records: Sequence[TrialRecord]) -> str:
    """Write `trials.csv`, `front.json`, `report.html` and `pictures/` to a study's folder.

    Args:
        folder: folder of the study, which may hold `best/` and `run.json`.
        study: name of the study.
        metadata: metadata of the study.
        records: all its trials.

    Returns:
        The summary table, formatted for a terminal.
    """
    points, best = pareto_front(records), folder / "best"
    write_trials(folder / "trials.csv", metadata, records)
    write_json(folder / "front.json", front_content(study, metadata, points))
    final = read_final_result(best, study, records)
    call = None if final is None else load_call(best)
    write_report(folder / "report.html", study, metadata, records, final, call, read_run(folder))
    write_static_figures(folder / "pictures", metadata, records, final)
    return format_table(summary_rows(metadata, points, final))

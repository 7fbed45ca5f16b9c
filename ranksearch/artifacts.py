"""What a study leaves behind to be read: `trials.csv`, `front.json`, `report.html` and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ranksearch.facts import StudyFacts
from ranksearch.files import write_csv, write_json
from ranksearch.finalized import read_finalized
from ranksearch.front import FrontPoint, front
from ranksearch.loading import load_call
from ranksearch.pictures import write_pictures
from ranksearch.provenance import read_run
from ranksearch.records import TrialRecord
from ranksearch.review.report import write_report
from ranksearch.summary import format_table, summary_rows
from ranksearch.trial import STAGES

FRONT_FORMAT = "ranksearch.front/1"
COLUMNS = (
    "trial",
    "state",
    "validation_accuracy",
    "cost",
    "cost_unit",
    "speedup",
    "macs",
    "params",
    "seconds",
    "validation_accuracy_before_fine_tuning",
    "validation_loss",
    "fine_tune_steps",
    "seed",
    "closed_form",
    "reason",
    "plan",
    *(f"seconds_{stage}" for stage in STAGES),
)


def write_trials(path: Path, facts: StudyFacts, records: Sequence[TrialRecord]) -> None:
    """Write a row per trial, empty where there is nothing to say."""
    rows = []
    for record in records:
        if record.state == "WAITING":
            continue
        row: dict[str, Any] = {
            "trial": record.number,
            "state": record.state,
            "seconds": round(record.seconds, 3),
            "closed_form": int(record.closed_form),
            "reason": record.reason,
        }
        if (result := record.result) is not None:
            row |= {
                "validation_accuracy": result.accuracy,
                "cost": result.cost,
                "cost_unit": facts.unit,
                "speedup": result.speedup,
                "macs": result.macs,
                "params": result.params,
                "validation_accuracy_before_fine_tuning": result.accuracy_before,
                "validation_loss": result.loss,
                "fine_tune_steps": facts.fine_tune_steps,
                "seed": facts.seed,
                "plan": json.dumps(result.plan.to_json()),
                **{f"seconds_{stage}": round(result.seconds.get(stage, 0.0), 3) for stage in STAGES},
            }
        rows.append(row)
    write_csv(path, COLUMNS, rows)


def front_content(study: str, facts: StudyFacts, points: Sequence[FrontPoint]) -> dict[str, Any]:
    """The front by rising cost, and how its figures were measured: what `front.json` holds."""
    entries = [
        {
            "trial": point.number,
            "accuracy": point.result.accuracy,
            "accuracy_before_fine_tuning": point.result.accuracy_before,
            "cost": point.result.cost,
            "speedup": point.result.speedup,
            "macs": point.result.macs,
            "params": point.result.params,
            "plan": point.result.plan.to_json(),
        }
        for point in points
    ]
    measured = {
        "split": "validation",
        "fine_tune_steps": facts.fine_tune_steps,
        "seed": facts.seed,
        "cost_unit": facts.unit,
        "input_shape": list(facts.input_shape),
    }
    dense = {"accuracy": facts.accuracy, "cost": facts.cost, "macs": facts.macs, "params": facts.params}
    return {"format": FRONT_FORMAT, "study": study, "measured": measured, "dense": dense, "points": entries}


def write_artifacts(folder: Path, study: str, facts: StudyFacts, records: Sequence[TrialRecord]) -> str:
    """Write `trials.csv`, `front.json`, `report.html` and `pictures/`, from the study, and from what else is there.

    Args:
        folder: of the study, which may hold `best/` and `run.json`.
        study: its name.
        facts: of the study.
        records: all its trials.

    Returns:
        The short table for the terminal.
    """
    points, best = front(records), folder / "best"
    write_trials(folder / "trials.csv", facts, records)
    write_json(folder / "front.json", front_content(study, facts, points))
    finalized = read_finalized(best, study, records)
    call = None if finalized is None else load_call(best)
    write_report(folder / "report.html", study, facts, records, finalized, call, read_run(folder))
    write_pictures(folder / "pictures", facts, records, finalized)
    return format_table(summary_rows(facts, points, finalized))

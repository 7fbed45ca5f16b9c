"""What a run leaves behind: `trials.csv`, `front.json`, `report.html` and `run.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ranksearch.config import RunConfig
from ranksearch.files import write_csv, write_json
from ranksearch.finalize import Finalized
from ranksearch.problem import Problem
from ranksearch.provenance import run_record
from ranksearch.records import FrontPoint, TrialRecord, front
from ranksearch.report import format_table, summary_rows, write_report
from ranksearch.trial import STAGES

FRONT_FORMAT = "ranksearch.front/1"
COLUMNS = (
    "number",
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


def write_trials(path: Path, problem: Problem, records: Sequence[TrialRecord]) -> None:
    """Write a row per trial, empty where there is nothing to say."""
    rows = []
    for record in records:
        if record.state == "WAITING":
            continue
        row: dict[str, Any] = {
            "number": record.number,
            "state": record.state,
            "seconds": round(record.seconds, 3),
            "closed_form": int(record.closed_form),
            "reason": record.reason,
        }
        if (result := record.result) is not None:
            row |= {
                "validation_accuracy": result.accuracy,
                "cost": result.cost,
                "cost_unit": problem.space.cost.model.unit,
                "speedup": result.speedup,
                "macs": result.macs,
                "params": result.params,
                "validation_accuracy_before_fine_tuning": result.accuracy_before,
                "validation_loss": result.loss,
                "fine_tune_steps": problem.recipe.steps,
                "seed": problem.seed,
                "plan": json.dumps(result.plan.to_json()),
                **{f"seconds_{stage}": round(result.seconds.get(stage, 0.0), 3) for stage in STAGES},
            }
        rows.append(row)
    write_csv(path, COLUMNS, rows)


def write_front(path: Path, study: str, problem: Problem, points: Sequence[FrontPoint]) -> None:
    """Write the front by rising cost, and how its figures were measured."""
    dense = {
        "accuracy": problem.baseline.accuracy,
        "cost": problem.space.cost.dense,
        "macs": problem.macs.dense,
        "params": problem.params,
    }
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
        "fine_tune_steps": problem.recipe.steps,
        "seed": problem.seed,
        "cost": problem.space.cost.model.unit,
        "input_shape": list(problem.splits.input_shape),
    }
    write_json(path, {"format": FRONT_FORMAT, "study": study, "measured": measured, "dense": dense, "points": entries})


def write_artifacts(
    folder: Path,
    config: RunConfig,
    settings: Mapping[str, Any],
    compared: Mapping[str, Any],
    load_call: str,
    problem: Problem,
    records: Sequence[TrialRecord],
    finalized: Finalized | None,
) -> str:
    """Write `trials.csv`, `front.json`, `report.html` and `run.json`.

    Args:
        folder: of the study.
        config: of the run.
        settings: the same as plain JSON values.
        compared: of these, what makes trials comparable.
        load_call: what loads the picked network.
        problem: that was searched.
        records: all trials.
        finalized: the picked plan's end, if it came to that.

    Returns:
        The short table for the terminal.
    """
    points, name = front(records), config.study.name
    write_trials(folder / "trials.csv", problem, records)
    record = run_record(settings, compared, problem.splits, problem.device, config.seed)
    write_json(folder / "run.json", record)
    write_front(folder / "front.json", name, problem, points)
    tuned = f"{problem.recipe.steps} fine-tuning steps, seed {config.seed}"
    seeds = ", ".join(str(tuned.seed) for tuned in finalized.tuned) if finalized else str(config.seed)
    longer = f"{config.finalize.steps} fine-tuning steps, seed {seeds}"
    notes = {
        "trials": f"accuracy on the validation split after {tuned}",
        "picked plan": f"accuracy on the test split after {longer}",
        "MACs": f"of one image of shape {list(problem.splits.input_shape)}",
        "constraint": f"speedup of at least {config.constraint.speedup:g} in {problem.space.cost.scale.name}",
    }
    write_report(folder / "report.html", name, problem, records, points, finalized, load_call, settings, notes)
    return format_table(summary_rows(problem, points, finalized))

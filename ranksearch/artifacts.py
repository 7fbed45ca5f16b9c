"""`trials.csv` and `front.json`: the study as files that anything can read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from ranksearch.files import write_json, write_text
from ranksearch.records import FrontPoint, TrialRecord
from ranksearch.trial import Problem

FRONT_FORMAT = "ranksearch.front/1"
COLUMNS = (
    "number",
    "state",
    "accuracy",
    "macs",
    "params",
    "speedup",
    "seconds",
    "accuracy_before_fine_tuning",
    "loss",
    "closed_form",
    "reason",
    "plan",
)


def write_trials(path: Path, records: Sequence[TrialRecord]) -> None:
    """Write a row per trial; accuracies and losses are those of the validation split."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        if record.state == "WAITING":
            continue
        result = record.result
        scores = ["", "", "", ""] if result is None else [result.accuracy, result.macs, result.params, result.speedup]
        before = "" if result is None else result.accuracy_before
        loss = "" if result is None else result.loss
        plan = "" if result is None else json.dumps(result.plan.to_json())
        head = [record.number, record.state, *scores, round(record.seconds, 3)]
        writer.writerow([*head, before, loss, int(record.closed_form), record.reason, plan])
    write_text(path, text.getvalue())


def write_front(path: Path, study: str, problem: Problem, points: Sequence[FrontPoint]) -> None:
    """Write the front by rising MACs; accuracies are those of the validation split."""
    dense = {"accuracy": problem.baseline.accuracy, "macs": problem.space.cost.dense, "params": problem.params}
    entries = [
        {
            "trial": point.number,
            "accuracy": point.result.accuracy,
            "macs": point.result.macs,
            "params": point.result.params,
            "speedup": point.result.speedup,
            "plan": point.result.plan.to_json(),
        }
        for point in points
    ]
    write_json(path, {"format": FRONT_FORMAT, "study": study, "dense": dense, "points": entries})

"""A sweep's studies side by side: `sweep.csv` and `sweep.html`, from what each of its jobs left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ranksearch.errors import DamagedError
from ranksearch.files import read_json, write_csv, write_json
from ranksearch.review.comparison import best_said, write_comparison
from ranksearch.review.plans import SPEEDUPS
from ranksearch.values import from_record

OUTCOME = "job.json"
KEPT = ("trial", "speedup", "cost", "macs", "params")
COLUMNS = (
    "job",
    "overrides",
    "study",
    "status",
    "reason",
    "trial",
    "validation_accuracy",
    "speedup",
    "cost",
    "cost_unit",
    "macs",
    "params",
    "dense_validation_accuracy",
)


@dataclass(frozen=True)
class JobOutcome:
    """How a job of a sweep ended.

    Attributes:
        number: of the job, from 0.
        overrides: as given on the command line.
        study: that it worked on.
        folder: of the study's artifacts.
        status: that the job would have ended a process with.
        reason: why it failed; None where it did not.
    """

    number: int
    overrides: list[str]
    study: str
    folder: str
    status: int = 0
    reason: str | None = None

    def front(self) -> Mapping[str, Any] | None:
        """The study's `front.json`; None where there is none."""
        return read_front(Path(self.folder))


def read_front(folder: Path) -> Mapping[str, Any] | None:
    """What a study's `front.json` holds; None where there is none that can be read."""
    try:
        found = read_json(folder / "front.json")
        measured, dense, points = found["measured"], found["dense"], found["points"]
        numbers = [dense[name] for name in ("accuracy", "cost", "macs", "params")]
        numbers += [point[name] for point in points for name in (*KEPT, "accuracy")]
        whole = isinstance(measured["cost_unit"], str) and all(isinstance(number, int | float) for number in numbers)
    except (FileNotFoundError, DamagedError, KeyError, TypeError):
        return None
    return found if whole and dense["cost"] > 0 else None


def write_outcome(folder: Path, outcome: JobOutcome) -> None:
    """Leave word of how a job ended.

    Args:
        folder: of the job.
        outcome: of the job.
    """
    write_json(folder / OUTCOME, asdict(outcome))


def read_outcomes(folder: Path) -> list[JobOutcome]:
    """How the jobs of a sweep ended, by number; one that left no word was killed.

    Args:
        folder: of the sweep, which holds a folder for each job.
    """
    outcomes: list[JobOutcome] = []
    jobs = {path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()}
    for job in sorted(jobs | {path.parent for path in folder.rglob(OUTCOME)}):
        try:
            outcomes.append(from_record(JobOutcome, read_json(job / OUTCOME)))
        except (FileNotFoundError, DamagedError):
            number = int(job.name) if job.name.isdigit() else len(outcomes)
            outcomes.append(JobOutcome(number, [], "", "", 1, "it was killed, or its machine is gone"))
    return sorted(outcomes, key=lambda outcome: outcome.number)


def apart(outcomes: Sequence[JobOutcome]) -> list[str]:
    """What sets each job apart: its overrides but those that all have."""
    everywhere = set.intersection(*(set(outcome.overrides) for outcome in outcomes)) if len(outcomes) > 1 else set()
    return [" ".join(word for word in outcome.overrides if word not in everywhere) for outcome in outcomes]


def write_sweep(folder: Path, outcomes: Sequence[JobOutcome]) -> list[tuple[str, ...]]:
    """Write `sweep.csv` and `sweep.html`.

    Args:
        folder: of the sweep.
        outcomes: of its jobs.

    Returns:
        A header and a row per job, for a terminal.
    """
    cells: list[Mapping[str, Any]] = []
    fronts: dict[str, Mapping[str, Any]] = {}  # several jobs may have worked on one study
    rows = [("job", "study", "dense", *(f"at {speedup:g}x" for speedup in SPEEDUPS), "settings")]
    for outcome, settings in zip(outcomes, apart(outcomes), strict=True):
        front = outcome.front()
        cells += _csv_rows(outcome, settings, front)
        if front is not None and not outcome.reason:  # one of an earlier run may still lie there
            fronts.setdefault(outcome.study, front)
        rows.append(_row(outcome, settings, front))
    write_csv(folder / "sweep.csv", COLUMNS, cells)
    failed = [outcome for outcome in outcomes if outcome.reason]
    why = [("job", "reason"), *((str(job.number), job.reason or "") for job in failed)] if failed else []
    said = f"{len(outcomes)} jobs, {len(failed)} of them failed."
    write_comparison(folder / "sweep.html", "ranksearch: sweep", fronts, said, rows, why)
    return rows


def _csv_rows(outcome: JobOutcome, settings: str, front: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    known = {
        "job": outcome.number,
        "overrides": settings,
        "study": outcome.study,
        "status": "failed" if outcome.reason else "done",
        "reason": outcome.reason,
    }
    if front is None or outcome.reason:
        return [known]
    dense = {"dense_validation_accuracy": front["dense"]["accuracy"], "cost_unit": front["measured"]["cost_unit"]}
    return [
        {**known, **dense, "validation_accuracy": point["accuracy"], **{key: point[key] for key in KEPT}}
        for point in front["points"]
    ]


def _row(outcome: JobOutcome, settings: str, front: Mapping[str, Any] | None) -> tuple[str, ...]:
    if front is None or outcome.reason:
        return (
            str(outcome.number),
            outcome.study,
            "failed" if outcome.reason else "-",
            *[""] * len(SPEEDUPS),
            settings,
        )
    best = [best_said(front, speedup) for speedup in SPEEDUPS]
    return (str(outcome.number), outcome.study, f"{front['dense']['accuracy']:.2%}", *best, settings)

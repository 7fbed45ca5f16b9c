"""Comparison of a sweep's studies, `sweep.csv` and `sweep.html`, from the outcomes that its jobs wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ranksearch.errors import DamagedError
from ranksearch.files import read_json, write_csv, write_json
from ranksearch.report.comparison import format_best, write_comparison
from ranksearch.report.plan_text import SPEEDUPS
from ranksearch.results.study_files import POINT_FIGURES, read_front
from ranksearch.validation import from_record

OUTCOME = "job.json"
COLUMNS = (
    *("job", "overrides", "study", "status", "reason"),
    *("trial", "validation_accuracy", "speedup", "cost", "cost_unit", "macs", "params", "dense_validation_accuracy"),
)


@dataclass(frozen=True)
class JobOutcome:
    """Outcome of a job of a sweep.

    Attributes:
        number: number of the job, from 0.
        overrides: overrides of the job, as given on the command line.
        study: name of the study.
        folder: folder of the study's artifacts.
        status: exit status that a process of the job alone would have had.
        reason: reason of the failure; None if the job succeeded.
    """

    number: int
    overrides: list[str]
    study: str
    folder: str
    status: int = 0
    reason: str | None = None

    def front(self) -> Mapping[str, Any] | None:
        """Read the study's `front.json`; None if it is missing or damaged."""
        return read_front(Path(self.folder))


def write_outcome(folder: Path, outcome: JobOutcome) -> None:
    """Write the outcome of a job to the job's folder."""
    write_json(folder / OUTCOME, asdict(outcome))


def read_outcomes(folder: Path) -> list[JobOutcome]:
    """Read the outcomes of the jobs of a sweep's folder, by number; a job without one counts as killed."""
    outcomes: list[JobOutcome] = []
    jobs = {path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()}
    for job in sorted(jobs | {path.parent for path in folder.rglob(OUTCOME)}):
        try:
            outcomes.append(from_record(JobOutcome, read_json(job / OUTCOME)))
        except (FileNotFoundError, DamagedError):
            number = int(job.name) if job.name.isdigit() else len(outcomes)
            outcomes.append(JobOutcome(number, [], "", "", 1, "it was killed, or its machine failed"))
    return sorted(outcomes, key=lambda outcome: outcome.number)


def apart(outcomes: Sequence[JobOutcome]) -> list[str]:
    """Return each job's overrides, without those that all jobs have in common."""
    everywhere = set.intersection(*(set(outcome.overrides) for outcome in outcomes)) if len(outcomes) > 1 else set()
    return [" ".join(word for word in outcome.overrides if word not in everywhere) for outcome in outcomes]


def write_sweep(folder: Path, outcomes: Sequence[JobOutcome]) -> list[tuple[str, ...]]:
    """Write `sweep.csv` and `sweep.html`, and return a header and a row per job, for a terminal."""
    cells: list[Mapping[str, Any]] = []
    fronts: dict[str, Mapping[str, Any]] = {}  # several jobs may have worked on one study
    rows = [("job", "study", "dense", *(f"at {speedup:g}x" for speedup in SPEEDUPS), "settings")]
    for outcome, settings in zip(outcomes, apart(outcomes), strict=True):
        front = outcome.front()
        cells += _csv_rows(outcome, settings, front)
        if front is not None and not outcome.reason:  # a failed job's folder may hold the front of an earlier run
            fronts.setdefault(outcome.study, front)
        rows.append(_row(outcome, settings, front))
    write_csv(folder / "sweep.csv", COLUMNS, cells)
    failed = [outcome for outcome in outcomes if outcome.reason]
    why = [("job", "reason"), *((str(job.number), job.reason or "") for job in failed)] if failed else []
    summary = f"{len(outcomes)} jobs, {len(failed)} of them failed."
    write_comparison(folder / "sweep.html", "ranksearch: sweep", fronts, summary, rows, why)
    return rows


def _csv_rows(outcome: JobOutcome, settings: str, front: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    shared: dict[str, Any] = {"job": outcome.number, "overrides": settings, "study": outcome.study}
    shared |= {"status": "failed" if outcome.reason else "done", "reason": outcome.reason}
    if front is None or outcome.reason:
        return [shared]
    dense = {"dense_validation_accuracy": front["dense"]["accuracy"], "cost_unit": front["measured"]["cost_unit"]}
    return [
        {**shared, **dense, "validation_accuracy": point["accuracy"], **{key: point[key] for key in POINT_FIGURES}}
        for point in front["points"]
    ]


def _row(outcome: JobOutcome, settings: str, front: Mapping[str, Any] | None) -> tuple[str, ...]:
    dense, best = "failed" if outcome.reason else "-", [""] * len(SPEEDUPS)
    if front is not None and not outcome.reason:
        dense, best = f"{front['dense']['accuracy']:.2%}", [format_best(front, speedup) for speedup in SPEEDUPS]
    return (str(outcome.number), outcome.study, dense, *best, settings)

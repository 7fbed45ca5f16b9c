"""What is known of the picked plan's end, and how ``plan.json`` says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from ranksearch.errors import DamagedError, PlanError
from ranksearch.front import FrontPoint
from ranksearch.loading import read_plan_file
from ranksearch.records import TrialRecord
from ranksearch.training import Evaluation
from ranksearch.values import from_record
from ranksearch.wall_clock import WallClock


@dataclass(frozen=True)
class FineTuned:
    """One long fine-tuning.

    Attributes:
        seed: of its batches.
        validation: the network on the validation split.
        test: on the test split.
    """

    seed: int
    validation: Evaluation
    test: Evaluation


@dataclass(frozen=True)
class Finalized:
    """The end of a search, on the test split.

    Attributes:
        point: the picked trial.
        steps: of every fine-tuning.
        dense: the dense network.
        before: the picked plan before any fine-tuning.
        fine_tuned: after the longer fine-tuning, one for each seed.
        timed: the dense network and the written one side by side, on batches of several sizes.
        timed_on: the device, the numbers' type and the memory format of that, plain JSON values.
    """

    point: FrontPoint
    steps: int
    dense: Evaluation
    before: Evaluation
    fine_tuned: tuple[FineTuned, ...]
    timed: tuple[WallClock, ...]
    timed_on: Mapping[str, Any]

    @property
    def saved(self) -> FineTuned:
        """The one whose network is written: the most accurate on the validation split."""
        return max(self.fine_tuned, key=lambda one: one.validation.accuracy)

    @property
    def accuracy(self) -> float:
        """On the test split, the mean over seeds."""
        return mean(one.test.accuracy for one in self.fine_tuned)

    @property
    def spread(self) -> float:
        """Standard deviation of the same over seeds."""
        return pstdev(one.test.accuracy for one in self.fine_tuned)

    def said(self) -> str:
        """The accuracy on the test split as text, with its spread where there are several seeds."""
        several = f" +- {100 * self.spread:.2f} over {len(self.fine_tuned)} seeds" if len(self.fine_tuned) > 1 else ""
        return f"{self.accuracy:.2%}{several}"

    def to_json(self) -> dict[str, Any]:
        """The entries of ``plan.json`` that `from_json` reads again."""
        return {
            "fine_tune_steps": self.steps,
            "wall_clock": {**self.timed_on, "batches": [asdict(timed) for timed in self.timed]},
            "test": {
                "dense": vars(self.dense),
                "before_fine_tuning": vars(self.before),
                "factorized": vars(self.saved.test),
            },
            "seeds": [
                {"seed": one.seed, "validation": vars(one.validation), "test": vars(one.test)}
                for one in self.fine_tuned
            ],
        }

    @staticmethod
    def from_json(entries: Mapping[str, Any], point: FrontPoint) -> Finalized:
        """Read what `to_json` gives.

        Args:
            entries: of ``plan.json``.
            point: the picked trial.

        Raises:
            DamagedError: they are something else.
        """
        test, clock, seeds = (entries.get(name) for name in ("test", "wall_clock", "seeds"))
        if not isinstance(test, Mapping) or not isinstance(clock, Mapping) or not isinstance(seeds, list) or not seeds:
            raise DamagedError("the plan file has no 'test', 'wall_clock' or 'seeds'")
        batches = clock.get("batches")
        if not isinstance(batches, list):
            raise DamagedError("the plan file has no 'batches' in 'wall_clock'")
        values = {
            "point": point,
            "steps": entries.get("fine_tune_steps"),
            "dense": from_record(Evaluation, test.get("dense")),
            "before": from_record(Evaluation, test.get("before_fine_tuning")),
            "fine_tuned": tuple(_fine_tuned(one) for one in seeds),
            "timed": tuple(from_record(WallClock, entry) for entry in batches),
            "timed_on": {name: value for name, value in clock.items() if name != "batches"},
        }
        return from_record(Finalized, values)


def read_finalized(folder: Path, study: str, records: Sequence[TrialRecord]) -> Finalized | None:
    """What a folder says of the picked plan's end; None where it holds none of this study.

    Args:
        folder: that `finalize` wrote.
        study: its name.
        records: all its trials.
    """
    try:
        entries = read_plan_file(folder)
        if entries.get("study") != study:
            return None
        record = next((record for record in records if record.number == entries.get("trial")), None)
        if record is None or record.result is None or entries["layers"] != record.result.plan.to_json():
            return None
        return Finalized.from_json(entries, FrontPoint(record.number, record.closed_form, record.result))
    except (PlanError, DamagedError):
        return None


def _fine_tuned(entry: Any) -> FineTuned:
    if not isinstance(entry, Mapping):
        raise DamagedError(f"an entry of 'seeds' is a {type(entry).__name__}")
    parts = {name: from_record(Evaluation, entry.get(name)) for name in ("validation", "test")}
    return from_record(FineTuned, {**entry, **parts})

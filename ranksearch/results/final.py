"""Final results of the picked plan, as stored in ``plan.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from ranksearch.errors import DamagedError, PlanError
from ranksearch.results.study_files import read_plan_file
from ranksearch.results.trials import Evaluation, FeasibleTrial, TrialRecord
from ranksearch.validation import from_record


@dataclass(frozen=True)
class WallClock:
    """Wall-clock times of the dense and the factorized network, measured together.

    Attributes:
        batch_size: examples of a batch.
        dense_seconds: seconds per batch of the dense network.
        factorized_seconds: seconds per batch of the factorized network.
        speedup: median speedup over bursts of consecutive calls.
        spread: half the interquartile range of the speedups, relative to their median.
    """

    batch_size: int
    dense_seconds: float
    factorized_seconds: float
    speedup: float
    spread: float

    def format(self) -> str:
        """Format both times and the speedup."""
        dense, factorized = 1e3 * self.dense_seconds, 1e3 * self.factorized_seconds
        return (
            f"batch {self.batch_size}: {dense:.2f} ms dense, {factorized:.2f} ms factorized, {self.speedup:.2f}x "
            f"+- {100 * self.spread:.0f} %"
        )


@dataclass(frozen=True)
class SeedResult:
    """Scores after the long fine-tuning with one seed.

    Attributes:
        seed: seed of the batches.
        validation: scores on the validation split.
        test: scores on the test split.
    """

    seed: int
    validation: Evaluation
    test: Evaluation


@dataclass(frozen=True)
class FinalResult:
    """Results of a search on the test split.

    Attributes:
        trial: the picked trial.
        steps: steps of each fine-tuning.
        dense: scores of the dense network.
        before: scores of the picked plan's network before fine-tuning.
        fine_tuned: scores after the longer fine-tuning, one entry per seed.
        timed: times of the dense and the saved network, one entry per batch size.
        timed_on: device, dtype and memory format of the timing, plain JSON values.
    """

    trial: FeasibleTrial
    steps: int
    dense: Evaluation
    before: Evaluation
    fine_tuned: tuple[SeedResult, ...]
    timed: tuple[WallClock, ...]
    timed_on: Mapping[str, Any]

    @property
    def saved(self) -> SeedResult:
        """The result whose network is saved: the most accurate on the validation split."""
        return max(self.fine_tuned, key=lambda result: result.validation.accuracy)

    @property
    def accuracy(self) -> float:
        """Test accuracy, mean over seeds."""
        return mean(result.test.accuracy for result in self.fine_tuned)

    @property
    def spread(self) -> float:
        """Standard deviation of the test accuracy over seeds."""
        return pstdev(result.test.accuracy for result in self.fine_tuned)

    def format_accuracy(self) -> str:
        """Format the test accuracy, with its spread if there are several seeds."""
        several = f" +- {100 * self.spread:.2f} over {len(self.fine_tuned)} seeds" if len(self.fine_tuned) > 1 else ""
        return f"{self.accuracy:.2%}{several}"

    def to_json(self) -> dict[str, Any]:
        """Return the entries of ``plan.json`` that `from_json` reads."""
        on_test = {"dense": self.dense, "before_fine_tuning": self.before, "factorized": self.saved.test}
        return {
            "fine_tune_steps": self.steps,
            "wall_clock": {**self.timed_on, "batches": [asdict(timed) for timed in self.timed]},
            "test": {name: vars(scores) for name, scores in on_test.items()},
            "seeds": [
                {"seed": result.seed, "validation": vars(result.validation), "test": vars(result.test)}
                for result in self.fine_tuned
            ],
        }

    @staticmethod
    def from_json(entries: Mapping[str, Any], trial: FeasibleTrial) -> FinalResult:
        """Read the entries that `to_json` returns.

        Args:
            entries: entries of ``plan.json``.
            trial: the picked trial.

        Raises:
            DamagedError: an entry is missing or invalid.
        """
        test, clock, seeds = (entries.get(name) for name in ("test", "wall_clock", "seeds"))
        if not isinstance(test, Mapping) or not isinstance(clock, Mapping) or not isinstance(seeds, list) or not seeds:
            raise DamagedError("the plan file has no 'test', 'wall_clock' or 'seeds'")
        batches = clock.get("batches")
        if not isinstance(batches, list):
            raise DamagedError("the plan file has no 'batches' in 'wall_clock'")
        values = {
            "trial": trial,
            "steps": entries.get("fine_tune_steps"),
            "dense": from_record(Evaluation, test.get("dense")),
            "before": from_record(Evaluation, test.get("before_fine_tuning")),
            "fine_tuned": tuple(_fine_tuned(entry) for entry in seeds),
            "timed": tuple(from_record(WallClock, entry) for entry in batches),
            "timed_on": {name: value for name, value in clock.items() if name != "batches"},
        }
        return from_record(FinalResult, values)


def read_final_result(folder: Path, study: str, records: Sequence[TrialRecord]) -> FinalResult | None:
    """Read the final results in a folder that `finalize` wrote; None unless they are of a trial of the study."""
    try:
        entries = read_plan_file(folder)
        record = next((record for record in records if record.number == entries.get("trial")), None)
        if entries.get("study") != study or not isinstance(record, FeasibleTrial):
            return None
        return FinalResult.from_json(entries, record) if entries["layers"] == record.result.plan.to_json() else None
    except (PlanError, DamagedError):
        return None


def _fine_tuned(entry: Any) -> SeedResult:
    if not isinstance(entry, Mapping):
        raise DamagedError(f"an entry of 'seeds' is a {type(entry).__name__}")
    parts = {name: from_record(Evaluation, entry.get(name)) for name in ("validation", "test")}
    return from_record(SeedResult, {**entry, **parts})

"""The trials of a study, and their scores, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ranksearch.errors import DamagedError, PlanError, first_line
from ranksearch.plan import RankPlan
from ranksearch.results.attributes import CLOSED_FORM, COST, DRAWN_TWICE, INTERRUPTED, REASON, RESULT, RUNGS
from ranksearch.validation import from_record

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

STAGES = ("factorize", "fine_tune", "evaluate")


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and loss of a network on a split.

    Attributes:
        accuracy: share of examples whose label is predicted, 0 to 1.
        loss: mean cross-entropy, in nats.
    """

    accuracy: float
    loss: float


@dataclass(frozen=True)
class TrialResult:
    """Scores and costs of a plan that was built, fine-tuned and evaluated.

    Attributes:
        plan: the plan as built.
        cost: cost of the factorized network, in the unit of the search space.
        speedup: dense cost over ``cost``.
        macs: multiply-accumulates of one example.
        params: number of parameters of the factorized network.
        accuracy_before: validation accuracy before fine-tuning.
        accuracy: validation accuracy after fine-tuning.
        loss: cross-entropy on the validation split, after fine-tuning.
        seconds: duration of each of `STAGES`.
        errors: layer -> expected truncation error of its choice, as a share of its output's variance.
    """

    plan: RankPlan
    cost: int
    speedup: float
    macs: int
    params: int
    accuracy_before: float
    accuracy: float
    loss: float
    seconds: Mapping[str, float] = field(hash=False)
    errors: Mapping[str, float] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON values."""
        return {**vars(self), "plan": self.plan.to_json(), "seconds": dict(self.seconds), "errors": dict(self.errors)}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> TrialResult:
        """Read the values that `to_json` returned.

        Raises:
            DamagedError: a value is missing or invalid.
        """
        if not isinstance(stored, Mapping):
            raise DamagedError(f"TrialResult is a {type(stored).__name__}")
        try:
            plan = RankPlan.from_json(stored.get("plan", {}))
        except PlanError as error:
            raise DamagedError(first_line(error)) from None
        result = from_record(TrialResult, {**stored, "plan": plan})
        if min(result.cost, result.macs, result.params) < 1 or not result.speedup > 0:
            raise DamagedError("TrialResult has a network without cost")
        return result


@dataclass(frozen=True)
class TrialRecord:
    """A trial as stored in the study.

    Attributes:
        number: position in the order of starting, from 0.
        state: Optuna's name of the state: COMPLETE, PRUNED, FAIL, RUNNING or WAITING.
        closed_form: whether the plan is one of the closed form's.
        result: result of a COMPLETE trial; None for others.
        reason: reason why the trial did not complete.
        seconds: duration from start to end.
    """

    number: int
    state: str
    closed_form: bool
    result: TrialResult | None
    reason: str
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether the trial ran to its end; one that was interrupted, killed or drawn twice did not."""
        return _is_finished(self.state, self.reason)

    @property
    def feasible(self) -> bool:
        """Whether the trial completed with a plan that meets the constraint."""
        return isinstance(self, FeasibleTrial)

    @property
    def outcome(self) -> str:
        """Outcome of the trial in a word; empty if it has not ended."""
        if self.state == "FAIL" and not self.finished:
            return "interrupted"
        return {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}.get(self.state, "")


@dataclass(frozen=True)
class FeasibleTrial(TrialRecord):
    """A completed trial whose plan meets the constraint: a candidate for the Pareto front."""

    result: TrialResult


@dataclass(frozen=True)
class LearningCurve:
    """Accuracies of a trial during its fine-tuning.

    Attributes:
        number: number of the trial.
        cost: cost of its network.
        accuracies: step -> accuracy after it.
    """

    number: int
    cost: int
    accuracies: Mapping[int, float]


def read_trial(trial: FrozenTrial) -> TrialRecord:
    """Convert a trial to a plain value; a damaged result makes it a failed one."""
    stored, result = trial.system_attrs.get(RESULT), None
    state, reason = trial.state.name, str(trial.user_attrs.get(REASON, ""))
    if stored and state == "COMPLETE":
        try:
            result = TrialResult.from_json(stored)
        except DamagedError as error:
            state, reason = "FAIL", f"its record is damaged: {error}"
    closed_form = bool(trial.user_attrs.get(CLOSED_FORM, False))
    seconds = trial.duration.total_seconds() if trial.duration is not None else 0.0
    if result is not None and all(value <= 0 for value in trial.constraints.values()):
        return FeasibleTrial(trial.number, state, closed_form, result, reason, seconds)
    return TrialRecord(trial.number, state, closed_form, result, reason, seconds)


def read_trials(study: Study) -> list[TrialRecord]:
    """Read all trials of a study, by number."""
    return [read_trial(trial) for trial in study.get_trials(deepcopy=False)]


def feasible_trials(records: Iterable[TrialRecord]) -> list[FeasibleTrial]:
    """Select the completed trials that meet the constraint, in their order."""
    return [record for record in records if isinstance(record, FeasibleTrial)]


def by_speedup(records: Iterable[TrialRecord]) -> list[FeasibleTrial]:
    """Sort the feasible trials by rising speedup; of equals, the first trial first."""
    return sorted(feasible_trials(records), key=lambda trial: -trial.result.cost)


def learning_curves(study: Study) -> list[LearningCurve]:
    """Read the accuracies that trials reported during fine-tuning, by number, without failed trials."""
    curves = []
    for trial in study.get_trials(deepcopy=False):
        cost, rungs = trial.user_attrs.get(COST), trial.user_attrs.get(RUNGS)
        if trial.state.name == "FAIL" or not isinstance(cost, int | float) or not isinstance(rungs, Mapping):
            continue
        numbers = {step: value for step, value in rungs.items() if isinstance(value, int | float)}
        accuracies = {int(step): value for step, value in numbers.items() if str(step).isdecimal()}
        if accuracies:
            curves.append(LearningCurve(trial.number, int(cost), accuracies))
    return curves


def count_finished(trials: Sequence[FrozenTrial]) -> int:
    """Count the trials that ran to their end; see `TrialRecord.finished`."""
    return sum(_is_finished(trial.state.name, trial.user_attrs.get(REASON, "")) for trial in trials)


def _is_finished(state: str, reason: str) -> bool:
    return state in ("COMPLETE", "PRUNED") or (state == "FAIL" and reason not in ("", INTERRUPTED, DRAWN_TWICE))

"""What a study holds, as plain values: its trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from ranksearch.errors import DamagedError
from ranksearch.pruning import Standing
from ranksearch.trial import TrialResult

RESULT = "ranksearch:result"  # among Optuna's own attributes, for the dashboard shows all others in full
REASON = "reason"
RUNGS = "rungs"
COST = "cost"
CLOSED_FORM = "closed_form"
FIXED = "fixed_params"  # as Optuna names what was enqueued by hand
INTERRUPTED = "interrupted"
DRAWN_TWICE = "drawn by two processes at once, and left to the other"


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the study keeps it.

    Attributes:
        number: from 0, in the order of starting.
        state: Optuna's: COMPLETE, PRUNED, FAIL, RUNNING or WAITING.
        feasible: whether its plan meets the constraint.
        closed_form: whether its plan is one of the closed form's.
        result: of a COMPLETE trial.
        reason: why a trial did not complete.
        seconds: from start to end.
    """

    number: int
    state: str
    feasible: bool
    closed_form: bool
    result: TrialResult | None
    reason: str
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether it came to an end of its own; what was interrupted, killed or drawn twice does not count."""
        return _is_finished(self.state, self.reason)

    @property
    def outcome(self) -> str:
        """How it ended, for people; nothing where it did not."""
        if self.state == "FAIL" and not self.finished:
            return "interrupted"
        return {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}.get(self.state, "")


def read_trial(trial: FrozenTrial) -> TrialRecord:
    """Read a trial back."""
    stored, result = trial.system_attrs.get(RESULT), None
    state, reason = trial.state.name, str(trial.user_attrs.get(REASON, ""))
    if stored and trial.state == TrialState.COMPLETE:
        try:
            result = TrialResult.from_json(stored)
        except DamagedError as error:
            state, reason = "FAIL", f"its record is damaged: {error}"
    return TrialRecord(
        number=trial.number,
        state=state,
        feasible=result is not None and all(value <= 0 for value in trial.constraints.values()),
        closed_form=bool(trial.user_attrs.get(CLOSED_FORM, False)),
        result=result,
        reason=reason,
        seconds=trial.duration.total_seconds() if trial.duration is not None else 0.0,
    )


def read_trials(study: Study) -> list[TrialRecord]:
    """All trials of a study, by number."""
    return [read_trial(trial) for trial in study.get_trials(deepcopy=False)]


def standings(study: Study) -> list[Standing]:
    """How the trials did on the way that were compared with others, by number; not those that failed."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        cost, seen = trial.user_attrs.get(COST), trial.user_attrs.get(RUNGS)
        if trial.state == TrialState.FAIL or not isinstance(cost, int | float) or not isinstance(seen, Mapping):
            continue
        rungs = {str(step): value for step, value in seen.items() if isinstance(value, int | float)}
        known = {int(step): value for step, value in rungs.items() if step.isdecimal()}
        if known:
            found.append(Standing(trial.number, int(cost), known))
    return found


def finished(trials: Iterable[FrozenTrial]) -> int:
    """How many trials are over, see `TrialRecord.finished`."""
    return sum(_is_finished(trial.state.name, trial.user_attrs.get(REASON, "")) for trial in trials)


def _is_finished(state: str, reason: str) -> bool:
    return state in ("COMPLETE", "PRUNED") or (state == "FAIL" and reason not in ("", INTERRUPTED, DRAWN_TWICE))

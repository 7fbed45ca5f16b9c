"""The trial that is worth finalizing."""

from collections.abc import Sequence

from ranksearch.errors import SettingError, UserError
from ranksearch.results.pareto import pareto_front
from ranksearch.results.trials import FeasibleTrial, TrialRecord, feasible_trials
from ranksearch.study.settings import PickSettings


def select_trial(records: Sequence[TrialRecord], settings: PickSettings, dense_accuracy: float) -> FeasibleTrial:
    """Select the trial to finalize, by validation accuracy.

    Args:
        records: all trials, of which at least one is feasible.
        settings: what to pick by.
        dense_accuracy: validation accuracy of the dense network, 0 to 1.

    Raises:
        UserError: no trial meets the settings.
    """
    front = pareto_front(records)
    if settings.trial is not None:
        for trial in feasible_trials(records):
            if trial.number == settings.trial:
                return trial
        numbers = ", ".join(str(trial.number) for trial in front)
        advice = f"is not a completed trial: use one of the front, {numbers}"
        raise SettingError("pick.trial", settings.trial, advice)
    if settings.speedup is not None:
        fast = [trial for trial in front if trial.result.speedup >= settings.speedup]
        if not fast:
            highest = f"{int(100 * front[0].result.speedup) / 100:g}"
            advice = f"exceeds {highest}, the highest of the front: lower it, or raise constraint.speedup and search"
            raise SettingError("pick.speedup", f"{settings.speedup:g}", advice)
        return fast[-1]
    drop = settings.max_accuracy_drop
    if drop is not None:
        close = [trial for trial in front if trial.result.accuracy >= dense_accuracy - drop]
        if not close:
            least = f"{dense_accuracy - front[-1].result.accuracy:.4f}, the least of the front"
            raise UserError(f"pick.max_accuracy_drop={drop:g} is below {least}: raise it, or search longer")
        return close[0]
    return front[-1]

"""Which trial is worth finalizing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ranksearch.errors import SettingError, UserError
from ranksearch.front import FrontPoint, front
from ranksearch.records import TrialRecord


@dataclass(frozen=True)
class PickSettings:
    """What to pick by, one of them at the most; without any, the most accurate trial that meets the constraint.

    Attributes:
        speedup: the most accurate trial that is at least as fast.
        max_accuracy_drop: the fastest trial whose validation accuracy is at most so far below the dense network's,
            0 to 1.
        trial: this one.
    """

    speedup: float | None = None
    max_accuracy_drop: float | None = None
    trial: int | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) > 1:
            raise SettingError(given[1], vars(self)[given[1]], f"cannot go with {given[0]}: give one of them")
        if self.speedup is not None and not self.speedup >= 1:
            raise SettingError("speedup", self.speedup, "is below 1, the dense network's: use 1 or more")
        if self.max_accuracy_drop is not None and not 0 <= self.max_accuracy_drop <= 1:
            raise SettingError("max_accuracy_drop", self.max_accuracy_drop, "is out of range: use 0 to 1, such as 0.01")


def pick(records: Sequence[TrialRecord], settings: PickSettings, dense_accuracy: float) -> FrontPoint:
    """The trial to finalize; accuracies are those of the validation split.

    Args:
        records: all trials, of which at least one is feasible and complete.
        settings: what to pick by.
        dense_accuracy: of the dense network.

    Raises:
        UserError: no trial is as asked for.
    """
    points = front(records)
    if settings.trial is not None:
        for record in records:
            if record.number == settings.trial and record.feasible and record.result is not None:
                return FrontPoint(record.number, record.closed_form, record.result)
        known = ", ".join(str(point.number) for point in points)
        raise SettingError("pick.trial", settings.trial, f"is no trial that completed: use one of the front's, {known}")
    if settings.speedup is not None:
        fast = [point for point in points if point.result.speedup >= settings.speedup]
        if not fast:
            highest = f"{int(100 * points[0].result.speedup) / 100:g}"
            advice = f"exceeds {highest}, the highest of the front: lower it, or raise constraint.speedup and search"
            raise SettingError("pick.speedup", f"{settings.speedup:g}", advice)
        return fast[-1]
    if settings.max_accuracy_drop is not None:
        close = [point for point in points if point.result.accuracy >= dense_accuracy - settings.max_accuracy_drop]
        if not close:
            least = dense_accuracy - points[-1].result.accuracy
            raise UserError(
                f"pick.max_accuracy_drop={settings.max_accuracy_drop:g} is below {least:.4f}, the least of the front: "
                "raise it, or search longer"
            )
        return close[0]
    return points[-1]

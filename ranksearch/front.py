"""The front: the trials that no other beats in both accuracy and cost, and what it is worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ranksearch.records import TrialRecord
from ranksearch.trial import TrialResult


@dataclass(frozen=True)
class FrontPoint:
    """A feasible trial that no other beats in both accuracy and cost.

    Attributes:
        number: of the trial.
        closed_form: whether its plan is one of the closed form's.
        result: what it came to.
    """

    number: int
    closed_form: bool
    result: TrialResult


def front(records: Sequence[TrialRecord]) -> list[FrontPoint]:
    """The feasible trials that no other beats in both accuracy and cost, by rising cost; of equals, the first."""
    feasible = [
        FrontPoint(record.number, record.closed_form, record.result)
        for record in records
        if record.feasible and record.result is not None
    ]
    feasible.sort(key=lambda point: point.number)
    places = undominated([(point.result.cost, point.result.accuracy) for point in feasible])
    return [feasible[place] for place in places]


def best_at(points: Sequence[FrontPoint], speedup: float) -> FrontPoint | None:
    """The most accurate point of a front that is at least so fast."""
    fast = [point for point in points if point.result.speedup >= speedup]
    return max(fast, key=lambda point: point.result.accuracy, default=None)


def spread_over(points: Sequence[FrontPoint], count: int) -> list[FrontPoint]:
    """Some of the points, evenly from the first to the last.

    Args:
        points: of a front.
        count: how many at the most.
    """
    count = min(count, len(points))
    return [points[round(index * (len(points) - 1) / max(count - 1, 1))] for index in range(count)]


def undominated(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other beats in both, by rising cost; of equals, the first.

    Args:
        points: cost and accuracy.
    """
    best: list[int] = []
    for place in sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1])):
        if not best or points[place][1] > points[best[-1]][1]:
            best.append(place)
    return best


def hypervolume(points: Iterable[tuple[float, float]]) -> float:
    """The area that points dominate, up to the dense network's cost and down to accuracy 0.

    Args:
        points: cost as a share of the dense network's, and accuracy, 0 to 1 each.

    Returns:
        The area, 0 to 1: the accuracy that a network has for a cost, at the mean over all costs.
    """
    known = list(points)
    steps = [known[place] for place in undominated(known)]
    ends = [*(cost for cost, _ in steps), 1.0][1:]
    return sum(max(end - cost, 0.0) * accuracy for (cost, accuracy), end in zip(steps, ends, strict=True))


def volumes(records: Iterable[TrialRecord], dense_cost: int) -> list[float]:
    """The hypervolume of the front after each trial that completed within the budget, in their order.

    Args:
        records: all trials.
        dense_cost: of the dense network.
    """
    found: list[float] = []
    points: list[tuple[float, float]] = []
    for record in records:
        if record.feasible and record.result is not None:
            points.append((record.result.cost / dense_cost, record.result.accuracy))
            found.append(hypervolume(points))
    return found

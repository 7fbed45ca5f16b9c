"""Pareto front of accuracy and cost, and its hypervolume."""

from collections.abc import Iterable, Sequence

from ranksearch.results.trials import FeasibleTrial, TrialRecord, feasible_trials


def pareto_front(records: Iterable[TrialRecord]) -> list[FeasibleTrial]:
    """Select the Pareto-optimal feasible trials, in accuracy and cost.

    Returns:
        The trials by rising cost; of equals, the first.
    """
    feasible = sorted(feasible_trials(records), key=lambda trial: trial.number)
    places = non_dominated([(trial.result.cost, trial.result.accuracy) for trial in feasible])
    return [feasible[place] for place in places]


def best_at(front: Sequence[FeasibleTrial], speedup: float) -> FeasibleTrial | None:
    """Return the most accurate trial of a front with at least the given speedup; None if there is none."""
    fast = [trial for trial in front if trial.result.speedup >= speedup]
    return max(fast, key=lambda trial: trial.result.accuracy, default=None)


def evenly_spaced(front: Sequence[FeasibleTrial], count: int) -> list[FeasibleTrial]:
    """Return at most ``count`` trials of a front, evenly spaced from the first to the last."""
    count = min(count, len(front))
    return [front[round(index * (len(front) - 1) / max(count - 1, 1))] for index in range(count)]


def non_dominated(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the Pareto-optimal points, by rising cost; of equals, the first.

    Args:
        points: cost and accuracy of each point.
    """
    best: list[int] = []
    for place in sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1])):
        if not best or points[place][1] > points[best[-1]][1]:
            best.append(place)
    return best


def hypervolume(points: Iterable[tuple[float, float]]) -> float:
    """Compute the area that points dominate, up to the dense network's cost and down to accuracy 0.

    Args:
        points: cost as a share of the dense network's, and accuracy, 0 to 1 each.

    Returns:
        The area, 0 to 1: the accuracy that the front has at a cost, averaged over all costs.
    """
    candidates = list(points)
    steps = [candidates[place] for place in non_dominated(candidates)]
    ends = [*(cost for cost, _ in steps), 1.0][1:]
    return sum(max(end - cost, 0.0) * accuracy for (cost, accuracy), end in zip(steps, ends, strict=True))


def hypervolume_history(records: Iterable[TrialRecord], dense_cost: int) -> list[float]:
    """Compute the hypervolume of the front after each feasible trial, in their order."""
    points = [(trial.result.cost / dense_cost, trial.result.accuracy) for trial in feasible_trials(records)]
    return [hypervolume(points[: count + 1]) for count in range(len(points))]

"""The front and the area below it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranksearch.plan import RankPlan
from ranksearch.results.pareto import hypervolume, hypervolume_history, non_dominated
from ranksearch.results.trials import FeasibleTrial, TrialRecord, TrialResult

points = st.lists(st.tuples(st.integers(1, 10), st.integers(0, 10)), max_size=12)


def shares(known: list[tuple[int, int]]) -> list[tuple[float, float]]:
    return [(cost / 10, accuracy / 10) for cost, accuracy in known]


@given(points)
def test_the_area_is_what_networks_of_all_costs_have_at_the_mean(known: list[tuple[int, int]]) -> None:
    at = [max((accuracy for cost, accuracy in known if cost <= step), default=0) / 10 for step in range(10)]
    assert hypervolume(shares(known)) == pytest.approx(sum(at) / 10)


@given(points, st.tuples(st.integers(1, 10), st.integers(0, 10)))
def test_more_points_never_take_area_away(known: list[tuple[int, int]], more: tuple[int, int]) -> None:
    assert hypervolume(shares([*known, more])) >= hypervolume(shares(known)) - 1e-12


@given(points)
def test_the_front_alone_has_all_of_the_area(known: list[tuple[int, int]]) -> None:
    best = [shares(known)[place] for place in non_dominated(shares(known))]
    assert hypervolume(best) == pytest.approx(hypervolume(shares(known)))


@given(points)
def test_a_study_s_area_grows_trial_by_trial(known: list[tuple[int, int]]) -> None:
    records = [
        FeasibleTrial(number, "COMPLETE", False, result, "", 1.0)
        for number, (cost, accuracy) in enumerate(known)
        for result in [TrialResult(RankPlan(), cost, 10 / cost, cost, 1, 0.0, accuracy / 10, 1.0, {})]
    ]
    found = hypervolume_history([*records, TrialRecord(99, "FAIL", False, None, "diverged", 1.0)], dense_cost=10)
    assert found == sorted(found)
    assert len(found) == len(known)
    if found:
        assert found[-1] == pytest.approx(hypervolume(shares(known)))

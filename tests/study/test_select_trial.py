"""What is picked is what was asked for, and no other trial would serve better."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ranksearch.errors import SettingError, UserError
from ranksearch.plan import RankPlan
from ranksearch.results.trials import FeasibleTrial, TrialRecord, TrialResult
from ranksearch.study.select_trial import select_trial
from ranksearch.study.settings import PickSettings

DENSE = 1000


def record(number: int, macs: int, accuracy: float, feasible: bool = True) -> TrialRecord:
    result = TrialResult(RankPlan(), macs, DENSE / macs, macs, 1, accuracy, accuracy, 1.0, {})
    return (FeasibleTrial if feasible else TrialRecord)(number, "COMPLETE", False, result, "", 1.0)


@st.composite
def studies(draw: st.DrawFn) -> list[TrialRecord]:
    trials = st.tuples(st.integers(100, 900), st.integers(0, 100), st.booleans())
    found = [record(n, macs, share / 100, f) for n, (macs, share, f) in enumerate(draw(st.lists(trials, min_size=1)))]
    assume(any(trial.feasible for trial in found))
    return found


def serving(records: list[TrialRecord]) -> list[TrialResult]:
    return [trial.result for trial in records if trial.feasible and trial.result is not None]


@given(studies(), st.floats(1, 12))
def test_by_speedup_the_most_accurate_that_is_as_fast(records: list[TrialRecord], speedup: float) -> None:
    fast = [result for result in serving(records) if result.speedup >= speedup]
    if not fast:
        with pytest.raises(SettingError, match=r"pick.speedup=.* exceeds .*, the highest of the front: lower it"):
            select_trial(records, PickSettings(speedup=speedup), 1.0)
        return
    picked = select_trial(records, PickSettings(speedup=speedup), 1.0).result
    assert picked.speedup >= speedup
    assert picked.accuracy == max(result.accuracy for result in fast)


@given(studies(), st.floats(0, 1))
def test_by_drop_the_fastest_that_is_as_accurate(records: list[TrialRecord], drop: float) -> None:
    close = [result for result in serving(records) if result.accuracy >= 1.0 - drop]
    if not close:
        with pytest.raises(UserError, match=r"pick.max_accuracy_drop=.* is below .*, the least of the front: raise it"):
            select_trial(records, PickSettings(max_accuracy_drop=drop), 1.0)
        return
    picked = select_trial(records, PickSettings(max_accuracy_drop=drop), 1.0).result
    assert picked.accuracy >= 1.0 - drop
    assert picked.macs == min(result.macs for result in close)


@given(studies())
def test_by_itself_the_most_accurate(records: list[TrialRecord]) -> None:
    picked = select_trial(records, PickSettings(), 1.0).result
    assert picked.accuracy == max(result.accuracy for result in serving(records))


def test_by_number_that_trial_wherever_it_stands() -> None:
    records = [record(0, 500, 0.9), record(1, 600, 0.8), record(2, 500, 0.95, feasible=False)]
    assert select_trial(records, PickSettings(trial=1), 1.0).number == 1
    for number in (2, 7):
        with pytest.raises(SettingError, match=f"pick.trial={number} is not a completed trial: use one of .*, 0"):
            select_trial(records, PickSettings(trial=number), 1.0)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(SettingError, match=r"trial=3 cannot be combined with speedup"):
        PickSettings(speedup=2, trial=3)
    with pytest.raises(SettingError, match=r"speedup=0.5 is below 1"):
        PickSettings(speedup=0.5)
    with pytest.raises(SettingError, match=r"max_accuracy_drop=2 is out of range"):
        PickSettings(max_accuracy_drop=2)

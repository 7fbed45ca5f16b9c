"""A trial is pruned where others that cost no more are well ahead, and only there."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ranksearch.errors import SettingError
from ranksearch.pruning import PruningSettings, Standing, why_pruned

SETTINGS = PruningSettings(rungs=[0.0, 0.5], lead=0.06, rivals=2)
others = st.lists(
    st.builds(
        Standing,
        st.integers(0, 99),
        st.integers(1, 9),
        st.dictionaries(st.sampled_from([0, 15]), st.floats(0, 1)),
    )
)


standings = st.builds(
    Standing, st.just(100), st.integers(1, 9), st.fixed_dictionaries({0: st.floats(0, 1), 15: st.floats(0, 1)})
)
STEPS = st.sampled_from([0, 15])


@given(others, standings, STEPS, st.integers(1, 9), st.floats(0, 1))
def test_rivals_more_never_save_a_trial_and_being_better_never_dooms_it(
    others: list[Standing], trial: Standing, step: int, cost: int, accuracy: float
) -> None:
    def pruned(trial: Standing, others: list[Standing]) -> bool:
        return why_pruned(SETTINGS, 30, step, trial, others) is not None

    better = Standing(100, min(cost, trial.cost), {step: max(accuracy, trial.accuracies[step])})
    assert pruned(trial, others) >= pruned(trial, others[1:])
    assert pruned(trial, others) >= pruned(better, others)


@given(standings, STEPS, st.floats(0.01, 1))
def test_it_takes_as_many_rivals_as_the_settings_say_and_each_must_lead(
    trial: Standing, step: int, ahead: float
) -> None:
    rival = Standing(1, trial.cost, {step: trial.accuracies[step] + ahead})
    lead = SETTINGS.lead * (1 - step / 30)
    assume(abs(ahead - lead) > 1e-9)
    assert why_pruned(SETTINGS, 30, step, trial, [rival]) is None
    reason = why_pruned(SETTINGS, 30, step, trial, [rival, rival])
    assert (reason is not None) == (ahead > lead)
    dearer = Standing(1, trial.cost + 1, rival.accuracies)
    assert why_pruned(SETTINGS, 30, step, trial, [rival, dearer]) is None
    if reason is not None:
        assert f"after {step} steps, where trial 1 had {100 * rival.accuracies[step]:.2f} %" in reason


@given(others)
def test_the_best_so_far_is_never_pruned(others: list[Standing]) -> None:
    for step in (0, 15):
        seen = [other.accuracies[step] for other in others if step in other.accuracies]
        best = Standing(100, 1, {step: max(seen, default=0.5)})
        assert why_pruned(SETTINGS, 30, step, best, others) is None


def test_rungs_are_steps_of_the_fine_tuning() -> None:
    assert SETTINGS.steps(30) == {0, 15}
    assert SETTINGS.steps(0) == set()
    assert PruningSettings(rungs=[]).steps(30) == set()


@pytest.mark.parametrize("wrong", [{"rungs": [1.0]}, {"rungs": [-0.1]}, {"lead": 1.5}, {"rivals": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(wrong))}=.* out of range"):
        PruningSettings(**wrong)

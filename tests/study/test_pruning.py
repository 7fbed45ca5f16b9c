"""A trial is pruned where others that cost no more are well ahead, and only there."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ranksearch.errors import SettingError
from ranksearch.results.trials import LearningCurve
from ranksearch.study.pruning import pruning_reason
from ranksearch.study.settings import PruningSettings

SETTINGS = PruningSettings(rungs=[0.0, 0.5], lead=0.06, rivals=2)
others = st.lists(
    st.builds(
        LearningCurve,
        st.integers(0, 99),
        st.integers(1, 9),
        st.dictionaries(st.sampled_from([0, 15]), st.floats(0, 1)),
    )
)


learning_curves = st.builds(
    LearningCurve, st.just(100), st.integers(1, 9), st.fixed_dictionaries({0: st.floats(0, 1), 15: st.floats(0, 1)})
)
STEPS = st.sampled_from([0, 15])


@given(others, learning_curves, STEPS, st.integers(1, 9), st.floats(0, 1))
def test_rivals_more_never_save_a_trial_and_being_better_never_dooms_it(
    others: list[LearningCurve], trial: LearningCurve, step: int, cost: int, accuracy: float
) -> None:
    def pruned(trial: LearningCurve, others: list[LearningCurve]) -> bool:
        return pruning_reason(SETTINGS, 30, step, trial, others) is not None

    better = LearningCurve(100, min(cost, trial.cost), {step: max(accuracy, trial.accuracies[step])})
    assert pruned(trial, others) >= pruned(trial, others[1:])
    assert pruned(trial, others) >= pruned(better, others)


@given(learning_curves, STEPS, st.floats(0.01, 1))
def test_it_takes_as_many_rivals_as_the_settings_say_and_each_must_lead(
    trial: LearningCurve, step: int, ahead: float
) -> None:
    rival = LearningCurve(1, trial.cost, {step: trial.accuracies[step] + ahead})
    lead = SETTINGS.lead * (1 - step / 30)
    assume(abs(ahead - lead) > 1e-9)
    assert pruning_reason(SETTINGS, 30, step, trial, [rival]) is None
    reason = pruning_reason(SETTINGS, 30, step, trial, [rival, rival])
    assert (reason is not None) == (ahead > lead)
    dearer = LearningCurve(1, trial.cost + 1, rival.accuracies)
    assert pruning_reason(SETTINGS, 30, step, trial, [rival, dearer]) is None
    if reason is not None:
        assert f"after {step} steps, where trial 1 had {100 * rival.accuracies[step]:.2f} %" in reason


@given(others)
def test_the_best_so_far_is_never_pruned(others: list[LearningCurve]) -> None:
    for step in (0, 15):
        seen = [other.accuracies[step] for other in others if step in other.accuracies]
        best = LearningCurve(100, 1, {step: max(seen, default=0.5)})
        assert pruning_reason(SETTINGS, 30, step, best, others) is None


def test_rungs_are_steps_of_the_fine_tuning() -> None:
    assert SETTINGS.rung_steps(30) == {0, 15}
    assert SETTINGS.rung_steps(0) == set()
    assert PruningSettings(rungs=[]).rung_steps(30) == set()


@pytest.mark.parametrize("wrong", [{"rungs": [1.0]}, {"rungs": [-0.1]}, {"lead": 1.5}, {"rivals": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(wrong))}=.* out of range"):
        PruningSettings(**wrong)

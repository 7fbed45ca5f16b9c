"""A trial is pruned where others that cost no more are well ahead, and only there."""

from __future__ import annotations

import pytest
from hypothesis import given
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


@given(others, st.integers(1, 9), st.floats(0, 1), st.sampled_from([0, 15]))
def test_whoever_is_pruned_is_dominated_by_enough_others(
    others: list[Standing], cost: int, accuracy: float, step: int
) -> None:
    reason = why_pruned(SETTINGS, 30, step, Standing(100, cost, {step: accuracy}), others)
    lead = {0: 0.06, 15: 0.03}[step]
    ahead = [other for other in others if other.cost <= cost and other.accuracies.get(step, 0.0) > accuracy + lead]
    assert (reason is not None) == (len(ahead) >= 2)
    if reason is not None:
        best = max(other.accuracies[step] for other in ahead)
        assert f"after {step} steps" in reason
        assert f"{100 * best:.2f} %" in reason


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
        PruningSettings(**wrong)  # type: ignore[arg-type]

"""Specs and plans: what they derive, and that they survive JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranksearch.errors import PlanError
from ranksearch.plan import LayerChoice, LayerSpec, RankPlan

sizes = st.integers(1, 64)


@given(sizes, sizes, st.integers(1, 5), st.integers(1, 5), st.integers(1, 50), st.integers(1, 8))
def test_break_even_is_the_largest_rank_that_saves(
    wide: int, narrow: int, height: int, width: int, positions: int, groups: int
) -> None:
    spec = LayerSpec("any", "conv2d", wide * groups, narrow * groups, positions, (height, width), groups)
    rank = spec.break_even_rank
    assert rank % groups == 0
    assert spec.macs_at(rank) < spec.dense_macs
    assert spec.macs_at(rank + groups) >= spec.dense_macs


@given(sizes, sizes, st.integers(1, 8), st.floats(0.001, 0.999), st.integers(1, 600))
def test_ranks_are_whole_groups_and_at_least_one_of_each(
    wide: int, narrow: int, groups: int, share: float, size: int
) -> None:
    spec = LayerSpec("any", "conv2d", wide * groups, narrow * groups, 1, (3, 3), groups)
    rank = spec.rank(share)
    assert rank % groups == 0
    assert groups <= rank <= max(groups, share * min(wide, narrow) * groups)
    if size % groups:
        with pytest.raises(PlanError, match=f"no multiple of its {groups} groups: use {spec.whole_groups(size)}"):
            spec.rank(size)
    else:
        assert spec.rank(size) == size


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 512)))
def test_a_plan_survives_json(layers: dict[str, int]) -> None:
    plan = RankPlan({name: LayerChoice(size) for name, size in layers.items()})
    again = RankPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert hash(again) == hash(plan)
    assert all(plan.latent_size(name) == size for name, size in layers.items())


def test_a_plan_does_not_follow_the_dict_that_it_was_made_from() -> None:
    layers = {"a": LayerChoice(1)}
    plan = RankPlan(layers)
    layers["b"] = LayerChoice(2)
    assert plan.latent_size("b") is None


@pytest.mark.parametrize(
    "entry",
    [
        {"latent_size": 0, "scheme": "full"},
        {"latent_size": 1.5, "scheme": "full"},
        {"latent_size": True, "scheme": "full"},
        {"latent_size": 4, "scheme": "sideways"},
        {"latent_size": 4},
        {"latent_size": 4, "scheme": "full", "more": 1},
        4,
    ],
)
def test_entries_that_are_no_choice_are_refused(entry: object) -> None:
    with pytest.raises(PlanError):
        RankPlan.from_json({"layer": entry})


@pytest.mark.parametrize("wrong", [{"in_size": 0}, {"out_size": -1}, {"positions": 0}])
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    shape = {"in_size": 4, "out_size": 4, "positions": 4} | wrong
    with pytest.raises(PlanError, match=next(iter(wrong))):
        LayerSpec("layer", "linear", **shape)

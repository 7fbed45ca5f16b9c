"""Specs and plans: what they derive, and that they survive JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranksearch.errors import PlanError
from ranksearch.plan import SCHEMES, LayerChoice, LayerSpec, RankPlan, split_kernel

sizes = st.integers(1, 64)


@given(sizes, sizes, st.integers(1, 5), st.integers(1, 5), st.integers(1, 50), st.integers(1, 8), st.integers(1, 3))
def test_break_even_is_the_largest_rank_that_saves(
    wide: int, narrow: int, height: int, width: int, positions: int, groups: int, stride: int
) -> None:
    between = {scheme: positions * times for scheme, times in zip(SCHEMES, (1, stride, stride, stride**2), strict=True)}
    shape = (wide * groups, narrow * groups, positions, (height, width), groups)
    spec = LayerSpec("any", "conv2d", *shape, between)
    weights = LayerSpec("one position", "conv2d", *shape[:2], 1, *shape[3:])
    for scheme in SCHEMES:
        rank = spec.break_even_rank(scheme)
        assert rank % groups == 0
        assert spec.macs_at(rank, scheme) < spec.dense_macs
        assert weights.macs_at(rank, scheme) < weights.dense_macs
        wasted = spec.macs_at(rank + groups, scheme) >= spec.dense_macs
        assert wasted or weights.macs_at(rank + groups, scheme) >= weights.dense_macs
        assert (scheme in spec.schemes) <= (rank > 0)


@given(sizes, sizes, st.integers(1, 8), st.floats(0.001, 0.999), st.integers(1, 600))
def test_ranks_are_whole_groups_and_at_least_one_of_each(
    wide: int, narrow: int, groups: int, share: float, size: int
) -> None:
    spec = LayerSpec("any", "conv2d", wide * groups, narrow * groups, 1, (3, 3), groups)
    rank = spec.rank(share)
    assert rank % groups == 0
    assert groups <= rank <= max(groups, share * min(wide, narrow) * groups)
    if size % groups:
        with pytest.raises(PlanError, match=f"not a multiple of its {groups} groups: use {spec.whole_groups(size)}"):
            spec.rank(size)
    else:
        assert spec.rank(size) == size


@given(sizes, sizes, st.sampled_from(SCHEMES))
def test_both_factors_together_have_the_whole_kernel(height: int, width: int, scheme: str) -> None:
    first, second = split_kernel((height, width), scheme)
    assert [a * b for a, b in zip(first, second, strict=True)] == [height, width]
    assert all(1 in pair for pair in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("spec", "scheme", "said"),
    [
        (LayerSpec("conv", "conv2d", 8, 8, 9), "vertical", "'vertical' does not fit 'conv' .no kernel.*: use full"),
        (LayerSpec("fc", "linear", 8, 8, 1), "pointwise", "'pointwise' does not fit 'fc' .no kernel.*: use full"),
        (LayerSpec("strip", "conv2d", 8, 8, 9, (1, 7)), "horizontal", "1x7 is already a strip.: use full or pointwise"),
        (LayerSpec("depthwise", "conv2d", 8, 8, 9, (3, 3), 8), "vertical", "one channel each.: use full"),
        (LayerSpec("conv", "conv2d", 8, 8, 9, (3, 3)), "diagonal", "'diagonal' is unknown: use one of full, vertical"),
    ],
)
def test_schemes_that_a_layer_cannot_have_are_named(spec: LayerSpec, scheme: str, said: str) -> None:
    assert scheme not in spec.schemes
    with pytest.raises(PlanError, match=said.replace(".no", ".there is no")):
        spec.require_scheme(scheme)


def test_a_latent_size_beyond_a_schemes_break_even_is_refused_with_it() -> None:
    spec = LayerSpec("conv", "conv2d", 64, 64, 1, (3, 3))
    assert spec.require_saving(95, "vertical") == 95
    with pytest.raises(PlanError, match="size 96 for 'conv' exceeds its break-even rank 95 of scheme 'vertical'"):
        spec.require_saving(96, "vertical")


@given(st.dictionaries(st.text(min_size=1), st.tuples(st.integers(1, 512), st.sampled_from(SCHEMES))))
def test_a_plan_survives_json(layers: dict[str, tuple[int, str]]) -> None:
    plan = RankPlan({name: LayerChoice(*choice) for name, choice in layers.items()})
    again = RankPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert hash(again) == hash(plan)
    assert dict(again) == dict(plan)


def test_a_plan_does_not_follow_the_dict_that_it_was_made_from() -> None:
    layers = {"a": LayerChoice(1)}
    plan = RankPlan(layers)
    layers["b"] = LayerChoice(2)
    assert dict(plan) == {"a": LayerChoice(1)}


@pytest.mark.parametrize(
    "entry",
    [
        {"latent_size": 0, "scheme": "full"},
        {"latent_size": 1.5, "scheme": "full"},
        {"latent_size": True, "scheme": "full"},
        {"latent_size": 4, "scheme": "sideways"},
        {"latent_size": 4, "scheme": ["full"]},
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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"groups": 4}, "groups 4 of 'layer' do not divide its 6 inputs and 4 outputs: give a divisor of both"),
        ({"out_size": 0}, "out_size 0 of 'layer' is below 1: give 1 or more"),
    ],
)
def test_layers_of_impossible_shapes_are_named(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        LayerSpec(**{"name": "layer", "kind": "conv2d", "in_size": 6, "out_size": 4, "positions": 1, **wrong})


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "layers of type list are not a plan: give a choice for each layer"),
        ({"a": 4}, "plan entry 4 of 'a' is not a choice: give only 'scheme' and 'latent_size'"),
        ({"a": {"scheme": "full"}}, "is not a choice"),
        ({"a": {"scheme": "full", "latent_size": 0}}, "latent size 0 of a plan is out of range: give an int >= 1"),
        ({"a": {"scheme": "full", "latent_size": 0.5}}, "latent size 0.5 of a plan is out of range"),
        ({"a": {"scheme": "full", "latent_size": True}}, "latent size True of a plan is out of range"),
    ],
)
def test_what_is_no_plan_is_named(layers: object, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        RankPlan.from_json(layers)

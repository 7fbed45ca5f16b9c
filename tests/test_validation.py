"""Values are checked against types before anything is called, and public values can be kept and copied."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ranksearch import LayerChoice, LayerSpec, RankPlan
from ranksearch.errors import DamagedError, SettingError, shorten
from ranksearch.factorize import LayerProfile
from ranksearch.plan import SCHEMES, SkippedLayer
from ranksearch.results.trials import Evaluation
from ranksearch.search_space.rules import Rule, SpaceSettings
from ranksearch.training.recipe import Recipe
from ranksearch.validation import check_arguments, check_value, from_record


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [0, -3], [True, 1.0, "1", None, [1]]),
        (float, [0, 0.5, float("inf")], [True, "1", None, float("nan")]),
        (bool, [True], [0, "true", None]),
        (str, ["", "a"], [1, None, ["a"]]),
        (int | None, [1, None], ["a", 0.5]),
        (list[int], [[], [1, 2]], [1, ["a"], [None], {"a": 1}, "12"]),
        (Sequence[str], [["a"]], ["a", [1]]),
        (tuple[int, str], [[1, "a"]], [[1], ["a", 1], [1, "a", 2]]),
        (Mapping[str, int], [{}, {"a": 1}], [[], {"a": "b"}]),
        (Literal["a", "b"], ["a"], ["c", 1]),
        (Any, [1, None, "a", [], {}], [10**30, float("nan")]),
    ],
)
def test_types_are_told_apart(hint: Any, right: list[Any], wrong: list[Any]) -> None:
    for value in right:
        check_value("key", hint, value)
    for value in wrong:
        with pytest.raises(SettingError, match=r"^key="):
            check_value("key", hint, value)


def test_the_arguments_of_any_callable_are_looked_at() -> None:
    check_arguments("sampler", optuna.samplers.TPESampler, {"n_startup_trials": 3, "_target_": "x", "seed": None})
    with pytest.raises(SettingError, match=r"sampler\.n_startup_trials=nan is not a number: give one"):
        check_arguments("sampler", optuna.samplers.TPESampler, {"n_startup_trials": float("nan")})
    with pytest.raises(SettingError, match=r"sampler\.n_startup=3 is not a setting of TPESampler: use .*n_startup_"):
        check_arguments("sampler", optuna.samplers.TPESampler, {"n_startup": 3})
    check_arguments("any", dict, {"anything": object})
    check_arguments("any", lambda **more: None, {"anything": 3})


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    counts: dict[str, int] = field(default_factory=dict)


def test_a_record_is_made_or_said_to_be_damaged() -> None:
    inner = from_record(Inner, {"size": 3})
    assert from_record(Outer, {"name": "a", "inner": inner, "counts": {"b": 1}}) == Outer("a", inner, {"b": 1})
    wrong: list[Any] = [
        [], None, {}, {"name": "a"}, {"name": 1, "inner": inner}, {"name": "a", "inner": 3},
        {"name": "a", "inner": inner, "more": 1}, {"name": "a", "inner": inner, "counts": {"b": "c"}},
    ]  # fmt: skip
    for record in wrong:
        with pytest.raises(DamagedError):
            from_record(Outer, record)


@given(st.text(max_size=300), st.integers(20, 100))
def test_long_texts_are_cut_in_the_middle(text: str, longest: int) -> None:
    said = shorten(text, longest)
    assert len(said) <= max(longest, 0)
    assert "\n" not in said
    if len(text) <= longest and "\n" not in text:
        assert said == text


CHOICES = st.builds(LayerChoice, st.integers(1, 500), st.sampled_from(SCHEMES))
PLANS = st.dictionaries(st.text(min_size=1, max_size=12), CHOICES, max_size=6).map(RankPlan)


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save({"value": value}, file)
    file.seek(0)
    return torch.load(file, weights_only=False)["value"]


@given(PLANS)
def test_plans_are_kept_and_copied_whole(plan: RankPlan) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(plan, protocol)) == plan
    for again in (copy.copy(plan), copy.deepcopy(plan), saved(plan), copy.deepcopy([plan])[0]):
        assert again == plan
        assert hash(again) == hash(plan)
        assert again.to_json() == plan.to_json()
        with pytest.raises(TypeError):
            again.layers["more"] = LayerChoice(1)  # still read-only


@pytest.mark.parametrize(
    "value",
    [
        LayerChoice(3, "vertical"),
        LayerSpec("a", "conv2d", 4, 4, 9, (3, 3), 1, {"full": 9}),
        LayerProfile((LayerSpec("a", "linear", 4, 4, 1),), {"b": SkippedLayer("reason")}, None, "a"),
        Evaluation(0.5, 1.0),
    ],
)
def test_so_are_all_other_public_values(value: Any) -> None:
    for again in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value), saved(value)):
        assert again == value
        assert hash(again) == hash(value)


@pytest.mark.parametrize("settings", [Rule("a*", schemes=["full"]), SpaceSettings([Rule("a*")]), Recipe(3)])
def test_so_are_settings(settings: Any) -> None:
    for again in (pickle.loads(pickle.dumps(settings)), copy.copy(settings), copy.deepcopy(settings), saved(settings)):
        assert again == settings

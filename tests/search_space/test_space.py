"""Rules decide what a layer may become; break-even bounds it, whatever they say."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from spaces import COST, SPECS, space

from ranksearch.cost.base import NetworkCost
from ranksearch.cost.macs import MacsCost
from ranksearch.errors import UserError
from ranksearch.factorize import LayerProfile
from ranksearch.plan import SCHEMES, LayerChoice, LayerSpec, SkippedLayer
from ranksearch.samplers.base import distributions
from ranksearch.search_space.constraint import Constraint
from ranksearch.search_space.rules import Rule, SpaceSettings, build_space
from ranksearch.search_space.space import Value


def searched(**settings: object) -> list[str]:
    return [layer.spec.name for layer in space(**settings).layers]


def drawn_from(choices: BaseDistribution) -> Sequence[Value]:
    if isinstance(choices, CategoricalDistribution):
        return [str(choice) for choice in choices.choices]
    assert isinstance(choices, IntDistribution)
    return range(choices.low, choices.high + 1, choices.step)


sizes = st.one_of(st.integers(1, 15), st.floats(0.01, 0.4))


@given(sizes, st.one_of(st.none(), st.integers(16, 10**6), st.floats(0.5, 0.99)), sizes, st.booleans())
def test_choices_stay_within_the_rule_and_the_break_even_rank(
    low: float, high: float | None, step: float, dense: bool
) -> None:
    rule = Rule("layer1*", low=low, high=high, step=step, dense=dense)
    for layer in space(rules=[rule], default=Rule(keep="dense")).layers:
        assert (None in layer.choices) == dense
        assert layer.schemes == (SCHEMES if max(layer.spec.kernel_size) > 1 else ("full",))
        for scheme in layer.schemes:
            sizes = [choice.latent_size for choice in layer.choices if choice is not None and choice.scheme == scheme]
            assert 1 <= sizes[0] <= sizes[-1] <= layer.spec.break_even_rank(scheme)
            if isinstance(low, int):
                assert sizes[0] == low
            if isinstance(high, int):
                assert sizes[-1] <= high
            assert {b - a for a, b in itertools.pairwise(sizes)} <= {layer.step}


def test_stem_and_classifier_stay_dense_unless_asked_for() -> None:
    assert searched() == ["layer1.0.conv1", "layer1.0.conv2", "layer2.0.grouped", "mlp.0"]
    assert "stem" in searched(stem="search")
    assert "fc" in searched(classifier="search")
    assert "fc" in searched(rules=[Rule("fc")])


def test_the_first_rule_that_matches_decides() -> None:
    rules = [Rule("layer1.0.conv1", low=5, high=5), Rule("layer1.*", keep="dense"), Rule("mlp.*", low=7)]
    layers = {layer.spec.name: layer for layer in space(rules=rules).layers}
    assert set(layers) == {"layer1.0.conv1", "layer2.0.grouped", "mlp.0"}
    assert all(choice.latent_size % 4 == 0 for choice in layers["layer2.0.grouped"].choices if choice is not None)
    assert layers["layer1.0.conv1"].choices == (*(LayerChoice(5, scheme) for scheme in SCHEMES), None)
    assert layers["mlp.0"].low == 7


def test_a_rule_may_keep_a_layer_dense_that_cannot_be_factorized() -> None:
    assert searched(rules=[Rule("grouped", keep="dense")]) == searched()
    with pytest.raises(
        UserError, match=r"'group\*' matches only layers that cannot be factorized \('grouped': grouped"
    ):
        space(rules=[Rule("group*", low=4)])


def test_the_stem_and_the_classifier_are_those_that_run_first_and_last() -> None:
    too_small = SkippedLayer("too small")
    profile = LayerProfile(SPECS, {"pixels": too_small, "out": too_small}, stem="pixels", classifier="out")
    layers = build_space(SpaceSettings(), profile, COST).layers
    assert [layer.spec.name for layer in layers] == [spec.name for spec in SPECS]


@pytest.mark.parametrize("match", ["layer1.0.conv3", "layer1.*.conv3", "later1.*"])
def test_a_rule_that_matches_nothing_names_the_closest_layers(match: str) -> None:
    with pytest.raises(UserError, match="matches no layer") as caught:
        space(rules=[Rule(match)])
    assert "layer1.0.conv" in str(caught.value)


@pytest.mark.parametrize("wrong", [{"low": 0}, {"low": -3}, {"high": 1.5}, {"step": 0.0}, {"keep": "sparse"}])
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=str(next(iter(wrong.values())))):
        Rule("layer1.*", **wrong)


def test_a_low_above_break_even_names_layer_value_and_limit() -> None:
    said = r"latent size 40 for 'layer1.0.conv2' exceeds its break-even rank 21: lower it, or leave the layer dense"
    with pytest.raises(UserError, match=said):
        space(rules=[Rule("layer1.0.conv2", low=40)])


def test_a_low_above_high_is_refused() -> None:
    with pytest.raises(UserError, match="low=9 above high=4"):
        space(rules=[Rule("mlp.0", low=9, high=4)])


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to search"):
        space(default=Rule(keep="dense"))


@given(st.sets(st.sampled_from(SCHEMES)))
def test_a_restricted_space_has_no_other_schemes_where_it_has_a_choice(schemes: set[str]) -> None:
    whole = space()
    for before, after in zip(whole.layers, whole.restricted(schemes).layers, strict=True):
        both = [scheme for scheme in before.schemes if scheme in schemes]
        assert list(after.schemes) == (both or list(before.schemes))
        assert {after.highs[scheme] == before.highs[scheme] for scheme in after.schemes} == {True}


def test_rules_name_the_schemes_of_their_layers() -> None:
    rules = [Rule("layer1.*", schemes=["vertical", "pointwise"]), Rule("layer2.*", schemes=["full"])]
    layers = {layer.spec.name: layer.schemes for layer in space(rules=rules).layers}
    assert layers["layer1.0.conv1"] == ("vertical", "pointwise")
    assert layers["layer1.0.conv2"] == ("full",)  # a 1x1 convolution has no kernel to split
    assert layers["layer2.0.grouped"] == ("full",)


def test_a_layer_that_can_have_none_of_its_rules_schemes_is_named() -> None:
    strip = LayerSpec("strip", "conv2d", 32, 32, 64, (1, 7))
    profile = LayerProfile((strip,), {}, None, None)
    with pytest.raises(UserError, match=r"'\*' allows 'strip' none of its schemes \(full, pointwise\)"):
        build_space(SpaceSettings(rules=[Rule(schemes=["vertical"])]), profile, COST)


values = st.fixed_dictionaries(
    {name: st.sampled_from(drawn_from(choices)) for name, choices in distributions(space()).items()}
)


@given(values)
def test_plans_and_values_say_the_same(drawn: dict[str, Value]) -> None:
    here = space()
    written = here.values(here.plan(drawn))
    assert all(layer.allows(drawn) and layer.allows(written) for layer in here.layers)
    assert here.plan(written) == here.plan(drawn)


@given(values, st.floats(0, 1))
def test_shrinking_reaches_every_budget_and_leaves_what_fits(drawn: dict[str, Value], share: float) -> None:
    here = space()
    cheapest = COST.total(here.cheapest)
    budget = cheapest + int(share * (COST.dense - cheapest))
    shrunk = here.shrink(drawn, budget)
    assert COST.total(here.plan(shrunk)) <= budget
    assert all(layer.allows(shrunk) for layer in here.layers)
    assert all(value <= drawn[name] for name, value in shrunk.items() if isinstance(value, int))
    smallest = {**drawn, **{layer.spec.name: layer.low for layer in here.layers}}
    if COST.total(here.plan(smallest)) <= budget:
        assert all(shrunk[name] == value for name, value in drawn.items() if isinstance(value, str))
    if COST.total(here.plan(drawn)) <= budget:
        assert shrunk == drawn


@given(values)
def test_no_plan_is_cheaper_than_the_highest_speedup_says(drawn: dict[str, Value]) -> None:
    assert COST.dense / COST.total(space().plan(drawn)) <= space().highest_speedup


def test_a_speedup_beyond_reach_says_what_can_be_reached() -> None:
    highest = space().highest_speedup
    with pytest.raises(UserError, match=rf"speedup=1000 exceeds {int(highest * 100) / 100:g}"):
        Constraint(1000).budget(space())
    Constraint(int(highest * 100) / 100).budget(space())


@given(sizes, sizes, st.sampled_from([1, 2, 8, 16]), st.sampled_from([32, 64, 96, 160]), st.sampled_from([1, 4]))
def test_sizes_of_wide_layers_are_whole_blocks(
    low: float, step: float, multiple_of: int, width: int, groups: int
) -> None:
    specs = (LayerSpec("wide", "conv2d", width, width, 16, (3, 3), groups),)
    cost = NetworkCost(MacsCost(), specs[0].dense_macs, {"wide": specs[0]})
    settings = SpaceSettings(default=Rule(low=low, step=step), multiple_of=multiple_of)
    layer = build_space(settings, LayerProfile(specs, {}, None, None), cost).layers[0]
    chosen = [choice for choice in layer.choices if choice is not None]
    assert chosen
    assert all(choice.latent_size <= specs[0].break_even_rank(choice.scheme) for choice in chosen)
    if width >= 8 * multiple_of:
        assert all(choice.latent_size % multiple_of == 0 for choice in chosen)
    assert all(choice.latent_size % groups == 0 for choice in chosen)


def test_a_wide_layer_that_no_whole_block_fits_keeps_its_sizes() -> None:
    rules = [Rule("mlp.0", low=3, high=5, step=1)]
    sizes = [
        choice.latent_size for choice in space(rules=rules, multiple_of=6).layers[-1].choices if choice is not None
    ]
    assert sizes == [3, 4, 5]

"""The guided sampler serves any space, budget and history, and gets past the closed form where that errs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna import Study
from optuna.trial import TrialState, create_trial

from ranksearch.allocation.lagrangian import allocate
from ranksearch.cost.base import NetworkCost
from ranksearch.cost.macs import MacsCost
from ranksearch.errors import SettingError
from ranksearch.factorize import LayerProfile
from ranksearch.plan import LayerSpec, RankPlan
from ranksearch.samplers.base import suggest
from ranksearch.samplers.history import widest_gap
from ranksearch.samplers.thompson import ThompsonSampler
from ranksearch.search_space.rules import Rule, SpaceSettings, build_space
from ranksearch.search_space.space import Errors, SearchSpace

FRONT, ACCURACY = ["maximize", "minimize"], ["maximize"]


def deep_space(layers: int, rule: Rule | None = None) -> SearchSpace:
    specs = tuple(LayerSpec(f"layer{n}", "conv2d", 64, 64, 16 * 4 ** (n % 3), (3, 3)) for n in range(layers))
    cost = NetworkCost(MacsCost(), sum(spec.dense_macs for spec in specs), {spec.name: spec for spec in specs})
    return build_space(SpaceSettings(default=rule or Rule()), LayerProfile(specs, {}, None, None), cost)


def fading_errors(space: SearchSpace, seed: int = 0) -> Errors:
    """Errors that fall exponentially with the rank, at another rate in every layer and scheme."""
    generator = np.random.default_rng(seed)
    return {
        layer.spec.name: {
            scheme: [math.exp(-rank / rate) for rank in range(layer.spec.break_even_rank(scheme) + 1)]
            for scheme in layer.schemes
            for rate in [generator.uniform(4, 30) * (1 if scheme == "full" else 2)]
        }
        for layer in space.layers
    }


def expected(errors: Errors, plan: RankPlan, weights: dict[str, float]) -> float:
    return sum(weights[name] * errors[name][choice.scheme][choice.latent_size] for name, choice in plan)


def run(study: Study, space: SearchSpace, errors: Errors, budget: int, trials: int, seed: int = 0) -> list[RankPlan]:
    """Trials with a fresh sampler each, as if every one were another worker's; some fail and some are pruned."""
    plans = []
    for _ in range(trials):
        study.sampler = ThompsonSampler(seed).bind(space, errors, budget)
        trial = study.ask()
        plan = space.plan(suggest(trial, space))
        plans.append(plan)
        score = -math.log(1e-3 + expected(errors, plan, dict.fromkeys(errors, 1.0)))
        if trial.number % 5 == 3:
            study.tell(trial, state=TrialState.FAIL)
        elif trial.number % 5 == 4:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, [score, space.cost.total(plan)][: len(study.directions)])
    return plans


@pytest.mark.parametrize("directions", [FRONT, ACCURACY], ids=["front", "accuracy"])
@pytest.mark.parametrize(("layers", "speedup"), [(1, 1.0), (1, 2.0), (8, 1.2), (8, 6.0), (53, 3.0), (200, 2.0)])
def test_every_plan_is_new_and_within_the_budget(layers: int, speedup: float, directions: list[str]) -> None:
    space = deep_space(layers)
    budget = int(space.cost.dense / speedup)
    study = optuna.create_study(directions=directions)
    plans = run(study, space, fading_errors(space), budget, 15)
    assert len(set(plans)) == 15
    for plan, trial in zip(plans, study.trials, strict=True):
        assert space.cost.total(plan) <= budget
        assert all(layer.allows(trial.params) for layer in space.layers)
        assert space.values(plan) == trial.params


def test_the_first_plan_is_the_closed_forms() -> None:
    space = deep_space(8)
    errors, budget = fading_errors(space), space.cost.dense // 4
    assert run(optuna.create_study(directions=ACCURACY), space, errors, budget, 1) == [allocate(space, errors, budget)]


def test_all_plans_of_a_small_space_are_tried_before_one_comes_again() -> None:
    space = deep_space(1, Rule(low=8, high=24, step=8, schemes=["full", "vertical"]))
    assert len(space.layers[0].choices) == 7
    plans = run(optuna.create_study(directions=FRONT), space, fading_errors(space), space.cost.dense, 8)
    assert len(set(plans[:7])) == 7
    assert plans[7] in plans[:7]


def test_a_space_of_some_layers_is_tried_whole_too() -> None:
    space = deep_space(3, Rule(low=8, high=16, step=8, schemes=["full"]))
    plans = run(optuna.create_study(directions=FRONT), space, fading_errors(space), space.cost.dense, 28)
    assert len(set(plans)) == 27


def test_the_cheapest_plan_alone_is_a_budget_too() -> None:
    space = deep_space(5)
    budget = space.cost.total(space.cheapest)
    [plan] = run(optuna.create_study(directions=FRONT), space, fading_errors(space), budget, 1)
    assert space.cost.total(plan) == budget


@pytest.mark.parametrize("directions", [FRONT, ACCURACY], ids=["front", "accuracy"])
def test_what_comes_next_depends_on_the_study_alone(directions: list[str]) -> None:
    space = deep_space(8)
    errors, budget = fading_errors(space), space.cost.dense // 3
    whole = optuna.create_study(directions=directions)
    plans = run(whole, space, errors, budget, 14)
    copied = optuna.create_study(directions=directions)
    for trial in whole.trials[:9]:
        copied.add_trial(trial)
    assert run(copied, space, errors, budget, 5) == plans[9:]


def test_workers_that_start_at_once_get_different_plans() -> None:
    space = deep_space(8)
    study = optuna.create_study(directions=FRONT)
    study.sampler = ThompsonSampler(0).bind(space, fading_errors(space), space.cost.dense // 3)
    study.enqueue_trial(space.values(space.cheapest))
    trials = [study.ask() for _ in range(8)]
    assert len({tuple(suggest(trial, space).items()) for trial in trials}) == 8


def test_a_history_of_other_parameters_is_no_obstacle() -> None:
    space = deep_space(3)
    study = optuna.create_study(directions=FRONT)
    for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED):
        study.add_trial(create_trial(state=state, values=[0.5, 1e9] if state == TrialState.COMPLETE else None))
    study.enqueue_trial({"layer0": 10_000})
    other = optuna.distributions.FloatDistribution(0, 1)
    study.add_trial(create_trial(params={"x": 0.5}, distributions={"x": other}, values=[1.0, 1.0]))
    study.sampler = ThompsonSampler(0).bind(space, fading_errors(space), space.cost.dense // 2)
    skipped = study.ask()
    assert study.trials[skipped.number].system_attrs["fixed_params"] == {"layer0": 10_000}
    trial = study.ask()
    assert trial.suggest_float("x", 0, 1) == trial.params["x"]
    assert space.cost.total(space.plan(suggest(trial, space))) <= space.cost.dense // 2


@pytest.mark.parametrize("layers", [8, 30])
def test_it_learns_which_layers_the_closed_form_misjudges(layers: int) -> None:
    gains = []
    for seed in range(3):
        space = deep_space(layers)
        errors, budget = fading_errors(space, seed), space.cost.dense // 4
        generator = np.random.default_rng(seed)
        weights = {layer.spec.name: math.exp(0.5 * generator.standard_normal()) for layer in space.layers}
        study = optuna.create_study(directions=ACCURACY)
        losses = []
        for _ in range(33):
            study.sampler = ThompsonSampler(seed).bind(space, errors, budget)
            trial = study.ask()
            losses.append(expected(errors, space.plan(suggest(trial, space)), weights))
            study.tell(trial, -math.log(losses[-1]) + 0.02 * generator.standard_normal())
        true = {
            name: {scheme: [weights[name] * error for error in curve] for scheme, curve in curves.items()}
            for name, curves in errors.items()
        }
        best = expected(errors, allocate(space, true, budget), weights)
        gains.append((losses[0] - min(losses)) / (losses[0] - best))
    # Of what knowing the weights would gain over the closed form, the first trial.
    assert min(gains) > 0.25
    assert sum(gains) / len(gains) > 0.5


@given(
    st.lists(st.floats(1, 2), min_size=1, max_size=6, unique=True),
    st.lists(st.floats(0, 1), min_size=6, max_size=6, unique=True),
    st.lists(st.floats(1, 2), max_size=4),
    st.floats(0, 1),
    st.floats(2, 3),
)
def test_a_gap_lies_within_the_bounds_and_holds_nothing_that_was_tried(
    costs: list[float], accuracies: list[float], tried: list[float], low: float, high: float
) -> None:
    front = list(zip(sorted(costs), sorted(accuracies), strict=False))
    start, end = widest_gap(front, tried, low, high)
    assert low <= start <= end <= high
    inside = [cost for cost in tried if front[0][0] < cost < front[-1][0]]
    assert not [cost for cost in [*inside, *costs] if start < cost < end]


def test_trials_go_where_the_front_has_gaps() -> None:
    space = deep_space(8)
    errors, budget = fading_errors(space), space.cost.dense // 2
    study = optuna.create_study(directions=FRONT)
    plans = run(study, space, errors, budget, 24)
    costs = sorted(math.log(space.cost.total(plan)) for plan in plans)
    assert costs[-1] - costs[0] > 0.8 * math.log(budget / space.lowest_budget(budget))
    assert max(b - a for a, b in itertools.pairwise(costs)) < 0.25 * (costs[-1] - costs[0])
    ends = (space.lowest_budget(budget), budget)
    assert all(sum(0.97 * end <= space.cost.total(plan) <= end for plan in plans) > 1 for end in ends)


@pytest.mark.parametrize("name", ["layer_spread", "scheme_spread"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf])
def test_spreads_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"{name}={value} is out of range"):
        ThompsonSampler(**{name: value})


def test_schemes_are_told_apart() -> None:
    """Where the errors of one scheme weigh more than others', plans turn away from it."""
    space = deep_space(12)
    errors, budget = fading_errors(space), space.cost.dense // 4
    study = optuna.create_study(directions=ACCURACY)
    shares = []
    for _ in range(30):
        study.sampler = ThompsonSampler(0).bind(space, errors, budget)
        trial = study.ask()
        plan = space.plan(suggest(trial, space))
        loss = sum(
            errors[name][choice.scheme][choice.latent_size] * (4 if choice.scheme == "pointwise" else 1)
            for name, choice in plan
        )
        shares.append(sum(choice.scheme == "pointwise" for _, choice in plan) / len(plan))
        study.tell(trial, -math.log(loss))
    assert shares[0] > 0
    assert sum(shares[-8:]) / 8 < shares[0]

"""Whatever a sampler proposes, what it gets is feasible and what it sees is what was built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from ranksearch.cost.base import NetworkCost
from ranksearch.cost.macs import MacsCost
from ranksearch.factorize import LayerProfile
from ranksearch.plan import LayerSpec
from ranksearch.samplers.base import suggest
from ranksearch.samplers.feasible import FeasibleSampler
from ranksearch.search_space.rules import SpaceSettings, build_space
from ranksearch.search_space.space import SearchSpace

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=4),
    "tpe, multivariate": lambda seed: TPESampler(seed=seed, n_startup_trials=4, multivariate=True),
    "nsgaii": lambda seed: NSGAIISampler(seed=seed, population_size=4),
}
pytestmark = [
    pytest.mark.parametrize("name", SAMPLERS),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),  # TPE's multivariate
]


def deep_space(layers: int) -> SearchSpace:
    specs = tuple(LayerSpec(f"layer{n}", "conv2d", 64, 64, 16, (3, 3)) for n in range(layers))
    cost = NetworkCost(MacsCost(), sum(spec.dense_macs for spec in specs), {spec.name: spec for spec in specs})
    return build_space(SpaceSettings(), LayerProfile(specs, {}, None, None), cost)


def run(sampler: BaseSampler, space: SearchSpace, trials: int) -> optuna.Study:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        values = suggest(trial, space)
        return -sum(value for value in values.values() if isinstance(value, int)) % 7, space.cost.total(
            space.plan(values)
        )

    study.optimize(objective, n_trials=trials)
    return study


@pytest.mark.parametrize(("layers", "speedup"), [(1, 2.0), (53, 3.0), (53, 8.0)])
def test_every_recorded_plan_is_within_the_budget(name: str, layers: int, speedup: float) -> None:
    space = deep_space(layers)
    budget = int(space.cost.dense / speedup)
    study = run(FeasibleSampler(SAMPLERS[name](0), space, budget), space, 12)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 12
    for trial in study.trials:
        assert all(layer.allows(trial.params) for layer in space.layers)
        assert space.cost.total(space.plan(trial.params)) <= budget


def test_the_same_seed_draws_the_same_plans(name: str) -> None:
    space = deep_space(8)
    first, second = (run(FeasibleSampler(SAMPLERS[name](3), space, space.cost.dense // 2), space, 10) for _ in range(2))
    assert [trial.params for trial in first.trials] == [trial.params for trial in second.trials]


class Fixed(RandomSampler):
    """Proposes what it is told to."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        super().__init__(seed=0)
        self.wanted = wanted

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self.wanted[param_name]


def test_what_fits_the_budget_is_built_as_it_was_proposed(name: str) -> None:
    space = deep_space(3)
    drawn = run(FeasibleSampler(SAMPLERS[name](1), space, space.cost.dense // 2), space, 3)
    for trial in drawn.trials:
        cost = space.cost.total(space.plan(trial.params))
        again = run(FeasibleSampler(Fixed(trial.params), space, cost), space, 1)
        assert again.trials[0].params == trial.params


def test_two_processes_with_one_seed_draw_different_plans(name: str) -> None:
    space, storage = deep_space(8), optuna.storages.InMemoryStorage()
    directions = ["maximize", "minimize"]
    plans = []
    for _ in range(2):
        sampler = FeasibleSampler(SAMPLERS[name](3), space, space.cost.dense // 2)
        study = optuna.create_study(
            study_name="s", storage=storage, directions=directions, sampler=sampler, load_if_exists=True
        )
        plans += [suggest(study.ask(), space) for _ in range(2)]  # which go on running
    assert len({tuple(plan.values()) for plan in plans}) == 4


def test_where_accuracy_alone_counts_the_budget_is_spent(name: str) -> None:
    space = deep_space(8)
    budget = space.cost.dense // 2
    largest = {layer.spec.name: layer.largest_value for layer in space.layers}
    schemes = {layer.scheme_parameter: layer.schemes[0] for layer in space.layers}
    study = optuna.create_study(sampler=FeasibleSampler(Fixed({**largest, **schemes}), space, budget))
    for _ in range(3):
        cost = space.cost.total(space.plan(suggest(study.ask(), space)))
        assert 0.75 * budget < cost <= budget  # whole blocks, of layers that are alike


def test_a_parameter_that_is_no_layer_is_served_too(name: str) -> None:
    space = deep_space(2)
    sampler = FeasibleSampler(SAMPLERS[name](3), space, space.cost.dense // 2)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    trial = study.ask()
    suggest(trial, space)
    assert 0 <= trial.suggest_float("rate", 0, 1) <= 1
    assert type(SAMPLERS[name](3)).__name__ in str(sampler)

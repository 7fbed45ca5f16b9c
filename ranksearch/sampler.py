"""Any Optuna sampler, made to propose only plans within the budget."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from optuna import Study, Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from ranksearch.space import SearchSpace, Value


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """A trial's parameters: for every layer a latent size, and a scheme where there are several."""
    found: dict[str, BaseDistribution] = {}
    for layer in space.layers:
        if len(layer.schemes) > 1:
            found[layer.scheme_parameter] = CategoricalDistribution(layer.schemes)
        found[layer.spec.name] = IntDistribution(layer.low, layer.largest_value, step=layer.step)
    return found


def suggest(trial: Trial, space: SearchSpace) -> dict[str, Value]:
    """Ask a trial for its values."""
    return {name: trial._suggest(name, distribution) for name, distribution in distributions(space).items()}


class FeasibleSampler(BaseSampler):
    """Lets another sampler propose, and shrinks what exceeds the budget until it fits.

    Independent latent sizes of many layers hardly ever meet a tight budget by chance: the cost of random plans
    concentrates around its mean. The proposal keeps its shape, and what is recorded, and learned from, is the
    plan that was built. Where cost is an objective too, it is shrunk to any cost between the budget and a quarter of
    it, or all plans of a new study would cost as much as the budget allows.

    Args:
        proposer: any Optuna sampler that serves the study's objectives.
        space: the layers' choices.
        budget: highest cost of the network.
    """

    def __init__(self, proposer: BaseSampler, space: SearchSpace, budget: int) -> None:
        self._proposer = proposer
        self._space = space
        self._budget = budget
        self._distributions = distributions(space)
        self._is_apart = False

    def __str__(self) -> str:
        return f"Feasible({self._proposer})"

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All layers: their schemes and sizes are drawn together."""
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw a whole plan from the proposer and bring it within the budget."""
        together = self._proposer.infer_relative_search_space(study, trial)
        values = self._proposer.sample_relative(study, trial, together)
        for name, choices in search_space.items():
            if name not in values:
                values[name] = self._proposer.sample_independent(study, trial, name, choices)
        if self._space.cost.of(self._space.plan(values)) <= self._budget:
            return values
        return self._space.shrink(values, self._target(study, trial))

    def _target(self, study: Study, trial: FrozenTrial) -> int:
        """The cost to shrink to: the budget, or any below it where cost is an objective too."""
        if len(study.directions) == 1:
            return self._budget
        lowest = self._space.lowest_budget(self._budget)
        return int(lowest * (self._budget / lowest) ** random.Random(trial.number).random())

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Serve a parameter that is not a layer of the space."""
        return self._proposer.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Pass on to the proposer, which gets a random seed of its own where other processes draw too."""
        if not self._is_apart:
            running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if any(other.number != trial.number for other in running):
                self._proposer.reseed_rng()
                self._is_apart = True
        self._proposer.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass on to the proposer."""
        self._proposer.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Pass on to the proposer."""
        self._proposer.reseed_rng()

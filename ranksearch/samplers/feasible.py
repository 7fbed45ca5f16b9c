"""A wrapper that makes any Optuna sampler propose only plans within the budget."""

import random
from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from ranksearch.samplers.base import Distributions, distributions
from ranksearch.search_space.space import SearchSpace


class FeasibleSampler(BaseSampler):
    """Optuna sampler that shrinks the proposals of another sampler until they fit the budget.

    Independently drawn latent sizes rarely meet a tight budget, since the cost of random plans concentrates around its
    mean. Shrinking preserves the relative latent sizes, and the study records the plan that is built. If cost is also
    an objective, the target is log-uniform up to the budget; otherwise all shrunk plans would cost about the same.

    Args:
        proposer: Optuna sampler that supports the study's objectives.
        space: the search space.
        budget: highest allowed cost of the network.
    """

    def __init__(self, proposer: BaseSampler, space: SearchSpace, budget: int) -> None:
        self._proposer, self._space, self._budget = proposer, space, budget
        self._is_apart = False

    def __str__(self) -> str:
        return f"Feasible({self._proposer})"

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Distributions:
        """Return the parameters of all layers, which are drawn jointly."""
        return distributions(self._space)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Draw a whole plan from the proposer and shrink it to the budget if it exceeds it."""
        together = self._proposer.infer_relative_search_space(study, trial)
        values = self._proposer.sample_relative(study, trial, together)
        for name, choices in search_space.items():
            if name not in values:
                values[name] = self._proposer.sample_independent(study, trial, name, choices)
        if self._space.cost.total(self._space.plan(values)) <= self._budget:
            return values
        return self._space.shrink(values, self._target(study, trial))

    def _target(self, study: Study, trial: FrozenTrial) -> int:
        """Return the cost to shrink to: the budget, or a log-uniform cost up to it if cost is an objective as well."""
        if len(study.directions) == 1:
            return self._budget
        lowest = self._space.lowest_budget(self._budget)
        return int(lowest * (self._budget / lowest) ** random.Random(trial.number).random())

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter that does not belong to the space from the proposer."""
        return self._proposer.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Notify the proposer; reseed it once if other trials are running, so that workers draw differently."""
        if not self._is_apart:
            running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if any(other.number != trial.number for other in running):
                self._proposer.reseed_rng()
                self._is_apart = True
        self._proposer.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Notify the proposer."""
        self._proposer.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Reseed the proposer."""
        self._proposer.reseed_rng()

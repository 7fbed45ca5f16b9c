"""Thompson sampling of plans, starting from the closed form's expected errors.

A proposal is the plan of lowest weighted error within a budget. The budget is the constraint's if accuracy is the only
objective, else it lies in the widest gap of the Pareto front or at one of its ends. The weights are alternately the MAP
estimate and a draw from their posterior given all trials (Thompson sampling). Without trials, the MAP proposal is the
plan of lowest total error; every trial refines the weights of layers and schemes. All proposals are feasible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from ranksearch.allocation.closed_form import EXPONENTS
from ranksearch.allocation.lagrangian import Indices
from ranksearch.errors import SettingError
from ranksearch.samplers.base import Distributions, distributions
from ranksearch.samplers.history import OptionGrid, TrialHistory
from ranksearch.samplers.posterior import LAYER_SPREAD, SCHEME_SPREAD
from ranksearch.search_space.space import Errors, SearchSpace, Value

# Draws before falling back to neighbors of the last drawn plan, when the study has all drawn plans already.
DRAWS = 10


class ThompsonSampler(BaseSampler):
    """Optuna sampler that proposes plans from expected errors and the trials of the study.

    The sampler is stateless between calls and reads all trials from the study, so that any number of workers can share
    a study, and an interrupted study can be resumed.

    Args:
        seed: random seed, combined with the trial's number.
        layer_spread: prior standard deviation of a layer's log weight.
        scheme_spread: prior standard deviation of a scheme's additive contribution to it.
    """

    def __init__(self, seed: int = 0, layer_spread: float = LAYER_SPREAD, scheme_spread: float = SCHEME_SPREAD) -> None:
        for key, value in (("layer_spread", layer_spread), ("scheme_spread", scheme_spread)):
            if not 0 < value < math.inf:
                raise SettingError(key, value, "is out of range: use a finite number above 0")
        self._seed = seed
        self._spreads = (layer_spread, scheme_spread)
        self._options: OptionGrid | None = None

    def bind(self, space: SearchSpace, errors: Errors, budget: int) -> ThompsonSampler:
        """See `PlanSampler`; the bound sampler is a copy."""
        bound = ThompsonSampler(self._seed, *self._spreads)
        bound._options = OptionGrid.from_space(space, errors, budget)
        return bound

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Distributions:
        """Return the parameters of all layers, which are drawn jointly; empty if the sampler is not bound."""
        return {} if self._options is None else distributions(self._options.space)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Draw a plan that the study does not have yet; the best plan again if all have been tried."""
        options = self._options
        if options is None:
            return {}
        drawn = self.propose(study, study.get_trials(deepcopy=False), trial.number)
        if drawn is None:  # every plan has been tried, so repeat the one of lowest expected error
            drawn = options.space.values(options.table.plan(options.table.best(options.rest(options.budget))))
        return dict(drawn)

    def propose(self, study: Study, trials: Sequence[FrozenTrial], number: int) -> Mapping[str, Value] | None:
        """See `PlanSampler`."""
        options = self._options
        if options is None:
            return None
        experience = TrialHistory.from_trials(trials, options)
        proposals = self._proposals(study, number, experience)
        chosen = next((chosen for chosen in proposals if tuple(chosen) not in experience.tried), None)
        return None if chosen is None else options.space.values(options.table.plan(chosen))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter that does not belong to the space at random."""
        seed = int(np.random.default_rng((self._seed, trial.number)).integers(2**31))
        return RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)

    def _proposals(self, study: Study, number: int, experience: TrialHistory) -> Iterator[Indices]:
        """Yield plans within the budget: those of lowest weighted error, then neighbors of the last, nearest first."""
        options, generator = experience.options, np.random.default_rng((self._seed, number))
        # One posterior each for the errors and their squares, chosen between by their evidence.
        beliefs = [experience.learned(exponent, *self._spreads) for exponent in EXPONENTS]
        evidence = np.array([belief.evidence for belief in beliefs])
        likely = np.exp(evidence - evidence.max())
        chosen = np.zeros(len(options.table.names), dtype=np.intp)
        for draw in range(DRAWS):
            several = len(study.directions) > 1
            budget = experience.next_budget(number, generator) if several else float(options.budget)
            if draw == 0 and number % 2 == 0:
                view = int(np.argmax(likely))
                weights = beliefs[view].mean
            else:
                view = int(generator.choice(len(EXPONENTS), p=likely / likely.sum()))
                weights = beliefs[view].draw(generator)
            chosen = options.table.best(options.rest(budget), options.weighed(weights, EXPONENTS[view]))
            yield chosen
        yield from options.around(chosen, generator)

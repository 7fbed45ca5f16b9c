"""A sampler that knows the problem: it starts from the closed form's errors and learns where they mislead.

A proposal is the plan of least weighted error within a budget. The budget lies where the front has its widest gap, or
at one of its ends, or is the constraint's, where accuracy is the only objective. The weights are by turns the
likeliest after all trials, and drawn from what is believed of them (Thompson sampling): without trials the first is the
plan of least total error, and every trial teaches more about the layers and schemes that this misjudges. Whatever is
drawn, the plan is feasible.
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

from ranksearch.allocation import Indices
from ranksearch.closed_form import EXPONENTS
from ranksearch.errors import SettingError
from ranksearch.experience import Experience, Options
from ranksearch.layer_weights import LAYER_SPREAD, SCHEME_SPREAD
from ranksearch.sampler import distributions
from ranksearch.space import Errors, SearchSpace, Value

# Of a trial whose plan the study has had, for it has had all there are.
AGAIN = "again"
# Draws of plans that the study has already, before a neighbour of one is taken.
DRAWS = 10


class GuidedSampler(BaseSampler):
    """Proposes plans from what the closed form expects and the study's trials have shown.

    It keeps nothing between calls but what it was made from: all it learns, it reads from the study, so that any number
    of workers may use one study, and it goes on where it stopped.

    Args:
        seed: of the draws, together with the trial's number.
        layer_spread: of the logarithm of a layer's weight, before any trial.
        scheme_spread: of what a scheme adds to it.
    """

    def __init__(self, seed: int = 0, layer_spread: float = LAYER_SPREAD, scheme_spread: float = SCHEME_SPREAD) -> None:
        for what, value in (("layer_spread", layer_spread), ("scheme_spread", scheme_spread)):
            if not 0 < value < math.inf:
                raise SettingError(what, value, "is out of range: use a finite number above 0")
        self._seed = seed
        self._spreads = (layer_spread, scheme_spread)
        self._options: Options | None = None

    def knowing(self, space: SearchSpace, errors: Errors, budget: int) -> GuidedSampler:
        """The same sampler for a problem.

        Args:
            space: what a plan may choose.
            errors: layer name -> scheme -> the expected error at rank 0, 1, ...
            budget: highest cost of the network.
        """
        bound = GuidedSampler(self._seed, *self._spreads)
        bound._options = Options.of(space, errors, budget)
        return bound

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All layers: their schemes and sizes are drawn together."""
        return {} if self._options is None else distributions(self._options.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw a plan that the study does not have yet."""
        options = self._options
        if options is None:
            return {}
        drawn = self.propose(study, study.get_trials(deepcopy=False), trial.number)
        if drawn is None:
            study._storage.set_trial_user_attr(trial._trial_id, AGAIN, True)
            drawn = options.space.values(options.table.plan(options.table.best(options.rest(options.budget))))
        return dict(drawn)

    def propose(self, study: Study, trials: Sequence[FrozenTrial], number: int) -> Mapping[str, Value] | None:
        """Draw a plan that the study does not have yet.

        Args:
            study: that the plan is for.
            trials: all that it has, which are learned from.
            number: of the trial that it is for.

        Returns:
            Values of all parameters; None where the study has every plan there is, or the sampler knows no problem.
        """
        options = self._options
        if options is None:
            return None
        experience = Experience.of(trials, options)
        proposals = self._proposals(study, number, experience)
        chosen = next((chosen for chosen in proposals if tuple(chosen) not in experience.tried), None)
        return None if chosen is None else options.space.values(options.table.plan(chosen))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Serve a parameter that is not a layer of the space, at random."""
        seed = int(np.random.default_rng((self._seed, trial.number)).integers(2**31))
        return RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)

    def _proposals(self, study: Study, number: int, experience: Experience) -> Iterator[Indices]:
        """Plans within the budget, the most promising first; in the end all there are."""
        options, generator = experience.options, np.random.default_rng((self._seed, number))
        # Weights of the errors and of their squares; the trials decide between the two.
        beliefs = [experience.learned(exponent, *self._spreads) for exponent in EXPONENTS]
        evidence = np.array([belief.evidence for belief in beliefs])
        likely = np.exp(evidence - evidence.max())
        chosen = np.zeros(len(options.table.names), dtype=np.intp)
        for draw in range(DRAWS):
            budget = float(options.budget)
            if len(study.directions) > 1:
                budget = experience.next_budget(number, generator)
            if draw == 0 and number % 2 == 0:
                view = int(np.argmax(likely))
                weights = beliefs[view].mean
            else:
                view = int(generator.choice(len(EXPONENTS), p=likely / likely.sum()))
                weights = beliefs[view].draw(generator)
            chosen = options.table.best(options.rest(budget), options.weighed(weights, EXPONENTS[view]))
            yield chosen
        yield from options.around(chosen, generator)

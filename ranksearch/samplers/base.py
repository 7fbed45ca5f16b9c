"""What samplers share: a trial's parameters, and the protocol of samplers that propose whole plans."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from optuna import Study, Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from ranksearch.search_space.space import Errors, SearchSpace, Value

Distributions = dict[str, BaseDistribution]


@runtime_checkable
class PlanSampler(Protocol):
    """An Optuna sampler that proposes whole plans within the budget, from the errors that are expected of them."""

    def bind(self, space: SearchSpace, errors: Errors, budget: int) -> BaseSampler:
        """Return the same sampler for a search.

        Args:
            space: what a plan may choose.
            errors: layer name -> scheme -> the expected error at rank 0, 1, ...
            budget: highest cost of the network.
        """
        ...

    def propose(self, study: Study, trials: Sequence[FrozenTrial], number: int) -> Mapping[str, Value] | None:
        """Propose a plan that the study does not have yet.

        Args:
            study: the study that the plan is for.
            trials: all its trials, which are learned from.
            number: number of the trial that the plan is for.

        Returns:
            Values of all parameters; None if the study has every plan there is, or the sampler is not bound.
        """
        ...


def distributions(space: SearchSpace) -> Distributions:
    """Return a trial's parameters: for every layer a latent size, and a scheme if there are several."""
    parameters: Distributions = {}
    for layer in space.layers:
        if len(layer.schemes) > 1:
            parameters[layer.scheme_parameter] = CategoricalDistribution(layer.schemes)
        parameters[layer.spec.name] = IntDistribution(layer.low, layer.largest_value, step=layer.step)
    return parameters


def suggest(trial: Trial, space: SearchSpace) -> dict[str, Value]:
    """Suggest all parameters of a trial."""
    values: dict[str, Value] = {}
    for layer in space.layers:
        if len(layer.schemes) > 1:
            values[layer.scheme_parameter] = str(trial.suggest_categorical(layer.scheme_parameter, layer.schemes))
        name = layer.spec.name
        values[name] = trial.suggest_int(name, layer.low, layer.largest_value, step=layer.step)
    return values

"""What an error of a layer is feared to do to the network, before any trial: what the closed form adds up.

A layer's expected error is a share of its output's variance, and an equal share harms more in one layer, or by one
scheme, than in another. A proxy says how much more; every one of them is a factor of errors that are known already, so
a new one costs no decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from ranksearch.batches import divergence, predict
from ranksearch.closed_form import COMPARED_ON
from ranksearch.errors import SettingError
from ranksearch.factorize import collect_outputs, collect_sensitivities
from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.problem import Problem
from ranksearch.space import Errors, LayerSpace

# Layer name -> scheme -> how much an error of it harms, in any unit.
Weights = Mapping[str, Mapping[str, float]]
Key = TypeVar("Key")
# Of the largest weight; no layer is taken to be harmless.
LEAST = 1e-3
# Divergence, in nats, that stands for a network that predicts no finite numbers.
WORST = 100.0


@runtime_checkable
class Proxy(Protocol):
    """A guess of how much an error of each layer and scheme harms."""

    def weights(self, problem: Problem) -> Weights:
        """Weigh every scheme of every layer of a problem's space."""
        ...


@dataclass(frozen=True)
class Relative:
    """Equal shares of variance harm alike, whichever layer loses them (as in BALF)."""

    def weights(self, problem: Problem) -> Weights:
        """One for all."""
        return _same({layer.spec.name: 1.0 for layer in problem.space.layers}, problem.space.layers)


@dataclass(frozen=True)
class Fisher:
    """A layer harms as much as the loss would rise if it lost its whole output's variance.

    To second order that is half the trace of G K, summed over positions, with G the second moment of the loss's
    gradient at the output and K the output's covariance: one pass forward and one backward over the calibration images.

    Attributes:
        power: of the weights, 0 to 1; below 1 is a mixture with `Relative`.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        _check_power(self.power)

    def weights(self, problem: Problem) -> Weights:
        """A weight for each layer, the same for all its schemes."""
        layers = {layer.spec.name: layer.spec for layer in problem.space.layers}
        gradients = collect_sensitivities(problem.model, problem.calibration, layers, problem.seed)
        outputs = collect_outputs(problem.model, problem.calibration, layers)
        rises = dict.fromkeys(layers, 0.0)  # of layers that the loss does not hear of
        for name, gradient in gradients.items():
            rises[name] = layers[name].positions / 2 * float((gradient * outputs[name].covariance).sum())
        return _same(_raised(rises, self.power), problem.space.layers)


@dataclass(frozen=True)
class Probes:
    """A scheme of a layer harms as much as it did in a network that has nothing else factorized.

    Every one is tried once, near one expected error, and harms by the divergence of predictions that it causes on the
    images that closed-form plans are compared on: one short build and one pass for each scheme of each layer.

    Attributes:
        power: of the weights, 0 to 1; below 1 is a mixture with `Relative`.
        error: at which a layer is tried, a share of its output's variance.
    """

    power: float = 1.0
    error: float = 0.1

    def __post_init__(self) -> None:
        _check_power(self.power)
        if not 0 < self.error < 1:
            raise SettingError("error", self.error, "is out of range: use a share between 0 and 1")

    def weights(self, problem: Problem) -> Weights:
        """A weight for each scheme of each layer."""
        dense = problem.reference.predictions
        harms = {}
        for layer in problem.space.layers:
            name = layer.spec.name
            for scheme in layer.schemes:
                curve = problem.errors[name][scheme]
                sizes = [choice.latent_size for choice in layer.choices if choice and choice.scheme == scheme]
                far = [abs(math.log(max(curve[size], 1e-12) / self.error)) for size in sizes]
                tried = sizes[far.index(min(far))]
                network = problem.build(RankPlan({name: LayerChoice(tried, scheme)}), COMPARED_ON)
                harm = min(divergence(predict(network, problem.comparison), dense), WORST)
                harms[name, scheme] = harm / max(curve[tried], 1e-12)
        raised = _raised(harms, self.power)
        return {
            layer.spec.name: {scheme: raised[layer.spec.name, scheme] for scheme in layer.schemes}
            for layer in problem.space.layers
        }


@dataclass(frozen=True)
class Mixture:
    """Several proxies' weights multiplied: with powers that add up to 1, their geometric mean.

    Attributes:
        parts: one or more.
    """

    parts: Sequence[Proxy] = field(default_factory=lambda: [Relative()])

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, Proxy) for part in self.parts):
            raise SettingError("parts", self.parts, "are no proxies: give a list with a _target_ in each")

    def weights(self, problem: Problem) -> Weights:
        """The product of all parts' weights."""
        found = [part.weights(problem) for part in self.parts]
        return {
            layer.spec.name: {
                scheme: math.prod(weights[layer.spec.name][scheme] for weights in found) for scheme in layer.schemes
            }
            for layer in problem.space.layers
        }


def weighed(errors: Errors, weights: Weights) -> Errors:
    """Errors times weights: what allocation adds up.

    Args:
        errors: layer name -> scheme -> the expected error at rank 0, 1, ...
        weights: of the same layers and schemes.
    """
    return {
        name: {scheme: [weights[name][scheme] * error for error in curve] for scheme, curve in curves.items()}
        for name, curves in errors.items()
    }


def _check_power(power: float) -> None:
    if not 0 <= power <= 1:
        raise SettingError("power", power, "is out of range: use 0 to 1")


def _same(weights: Mapping[str, float], layers: Sequence[LayerSpace]) -> Weights:
    """One weight for all schemes of a layer."""
    return {layer.spec.name: dict.fromkeys(layer.schemes, weights[layer.spec.name]) for layer in layers}


def _raised(harms: Mapping[Key, float], power: float) -> dict[Key, float]:
    """Harms to a power, the largest of them one, none far below it."""
    largest = max(harms.values(), default=0.0)
    if not largest > 0:
        return dict.fromkeys(harms, 1.0)
    return {key: max(harm / largest, LEAST) ** power for key, harm in harms.items()}

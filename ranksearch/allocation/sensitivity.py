"""Layer-sensitivity weights, applied to expected truncation errors before rank allocation.

A layer's expected error is a share of its output's variance, and an equal share costs more accuracy in one layer, or
by one scheme, than in another. A proxy estimates how much more, from errors that are known, without a decomposition.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ranksearch.allocation.decomposed_model import COMPARED_ON, DecomposedModel, Proxy, Weights
from ranksearch.errors import SettingError
from ranksearch.factorize.calibration import collect_outputs
from ranksearch.factorize.fisher import collect_sensitivities
from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.predictions import divergence, predict

Key = TypeVar("Key")
# Lowest weight, as a share of the largest: no layer is taken to be insensitive.
LOWEST = 1e-3
# Divergence, in nats, that stands for a network whose predictions are not finite.
WORST = 100.0


@dataclass(frozen=True)
class Relative:
    """Equal shares of variance count alike, whichever layer loses them (as in BALF)."""

    def weights(self, model: DecomposedModel) -> Weights:
        """Return 1 for all."""
        return {layer.spec.name: dict.fromkeys(layer.schemes, 1.0) for layer in model.space.layers}


@dataclass(frozen=True)
class Fisher:
    """Weights a layer by the rise of the loss if the variance of its whole output were lost.

    To second order that is half the trace of G K, summed over positions, with G the second moment of the loss's
    gradient at the output (the Fisher information) and K the output's covariance, both over the calibration images.

    Attributes:
        power: exponent of the weights, 0 to 1; below 1 is a mixture with `Relative`.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        _check_power(self.power)

    def weights(self, model: DecomposedModel) -> Weights:
        """Return a weight for each layer, the same for all its schemes."""
        layers = {layer.spec.name: layer.spec for layer in model.space.layers}
        gradients = collect_sensitivities(model.model, model.calibration, layers, model.seed)
        outputs = collect_outputs(model.model, model.calibration, layers)
        rises = dict.fromkeys(layers, 0.0)  # of layers that the loss does not depend on
        for name, gradient in gradients.items():
            rises[name] = layers[name].positions / 2 * float((gradient * outputs[name].covariance).sum())
        weights = _normalized(rises, self.power)
        return {layer.spec.name: dict.fromkeys(layer.schemes, weights[layer.spec.name]) for layer in model.space.layers}


@dataclass(frozen=True)
class Probes:
    """Weights a scheme of a layer by the divergence that it causes in a network with nothing else factorized.

    Every scheme is tried once, at the rank nearest to one expected error, on the images that closed-form plans are
    compared on: one short build and one pass for each scheme of each layer.

    Attributes:
        power: exponent of the weights, 0 to 1; below 1 is a mixture with `Relative`.
        error: expected error at which a layer is tried, a share of its output's variance.
    """

    power: float = 1.0
    error: float = 0.1

    def __post_init__(self) -> None:
        _check_power(self.power)
        if not 0 < self.error < 1:
            raise SettingError("error", self.error, "is out of range: use a share between 0 and 1")

    def weights(self, model: DecomposedModel) -> Weights:
        """Return a weight for each scheme of each layer."""
        dense, divergences = model.reference.predictions, {}
        for layer in model.space.layers:
            name = layer.spec.name
            for scheme in layer.schemes:
                curve = model.errors[name][scheme]
                sizes = [choice.latent_size for choice in layer.choices if choice and choice.scheme == scheme]
                distances = [abs(math.log(max(curve[size], 1e-12) / self.error)) for size in sizes]
                size = sizes[distances.index(min(distances))]
                network = model.build(RankPlan({name: LayerChoice(size, scheme)}), COMPARED_ON)
                diverged = min(divergence(predict(network, model.comparison), dense), WORST)
                divergences[name, scheme] = diverged / max(curve[size], 1e-12)
        weights = _normalized(divergences, self.power)
        return {
            layer.spec.name: {scheme: weights[layer.spec.name, scheme] for scheme in layer.schemes}
            for layer in model.space.layers
        }


@dataclass(frozen=True)
class Mixture:
    """Multiplies the weights of several proxies: with powers that sum to 1, their geometric mean.

    Attributes:
        parts: one proxy or more.
    """

    parts: Sequence[Proxy] = field(default_factory=lambda: [Relative()])

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, Proxy) for part in self.parts):
            raise SettingError("parts", self.parts, "are not proxies: give a list of groups with a _target_")

    def weights(self, model: DecomposedModel) -> Weights:
        """Return the product of the weights of all parts."""
        factors = [part.weights(model) for part in self.parts]
        return {
            layer.spec.name: {
                scheme: math.prod(weights[layer.spec.name][scheme] for weights in factors) for scheme in layer.schemes
            }
            for layer in model.space.layers
        }


def _check_power(power: float) -> None:
    if not 0 <= power <= 1:
        raise SettingError("power", power, "is out of range: use 0 to 1")


def _normalized(values: Mapping[Key, float], power: float) -> dict[Key, float]:
    """Raise values to a power, after scaling the largest to 1 and clipping those far below it."""
    largest = max(values.values(), default=0.0)
    if not largest > 0:
        return dict.fromkeys(values, 1.0)
    return {key: max(value / largest, LOWEST) ** power for key, value in values.items()}

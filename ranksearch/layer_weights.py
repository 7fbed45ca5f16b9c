"""What trials teach about layers: a Bayesian regression of scores on what each layer adds to the expected loss.

A plan is expected to lose S = sum_l w_l e_l, with a term e_l from each layer. The closed form takes all w_l as one;
which are larger shows in the scores, which rise with S. The trend of scores over log S is a parabola, the logarithms of
w_l have normal priors, and as d log S / d log w_l is the layer's share of S, a few Gauss-Newton steps, each a linear
regression of what the trend leaves on these shares, find the likeliest weights and how sure they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Of the logarithms of a layer's weight, and of what a scheme adds to it, before any trial.
LAYER_SPREAD, SCHEME_SPREAD = 0.5, 0.3
# Fewer scores than this say nothing beyond their trend.
FEWEST = 6
# Noise of a score, as shares of the variance about the trend, among which the likeliest is taken.
NOISES = (0.03, 0.1, 0.3, 0.6, 1.0)
# Gauss-Newton steps from the prior to the likeliest weights.
STEPS = 4


@dataclass(frozen=True)
class LogWeights:
    """The belief about the logarithms of weights: a normal distribution.

    Attributes:
        mean: `[weights]`.
        root: times a standard normal vector, their deviation from the mean, `[weights, weights]`.
        evidence: logarithm of the probability of the scores, to compare beliefs by.
    """

    mean: Array
    root: Array
    evidence: float

    @staticmethod
    def prior(spreads: Array) -> LogWeights:
        """What is believed before any score: all weights are one, give or take their spreads, `[weights]`."""
        return LogWeights(np.zeros_like(spreads), np.diag(spreads), 0.0)

    def draw(self, generator: np.random.Generator) -> Array:
        """Weights' logarithms at random, `[weights]`."""
        return self.mean + self.root @ generator.standard_normal(len(self.mean))


def learn(terms: Array, kinds: Array, scores: Array, spreads: Array) -> LogWeights:
    """Learn from scores.

    Args:
        terms: of what the plans are expected to lose, `[plans, layers]`.
        kinds: which weights, beside its layer's, scale a term, as ones, `[plans, layers, kinds]`.
        scores: what the plans lost, in any unit that rises with the loss, `[plans]`.
        spreads: of the logarithms of weights before any score: the layers', then the kinds', `[layers + kinds]`.
    """
    belief, layers = LogWeights.prior(spreads), terms.shape[1]
    if len(scores) < FEWEST:
        return belief
    # A few that all but diverged would drown the others.
    middle = float(np.median(scores))
    scores = np.minimum(scores, middle + 3 * (middle - float(scores.min())))
    if np.ptp(scores) == 0:
        return belief
    scores = (scores - scores.mean()) / scores.std()
    for _ in range(STEPS):
        scaled = terms * np.exp(belief.mean[:layers] + kinds @ belief.mean[layers:])
        total = scaled.sum(1)
        shares = scaled / total[:, None]
        shares = np.hstack([shares, np.einsum("pl,plk->pk", shares, kinds)])
        belief = _regress(np.log(total), shares, scores, belief.mean, spreads)
    return belief


def _regress(expected: Array, shares: Array, scores: Array, weights: Array, spreads: Array) -> LogWeights:
    """One Gauss-Newton step from some weights."""
    spread = expected.std()
    places = (expected - expected.mean()) / spread if spread > 1e-9 else np.zeros_like(expected)
    trend = np.stack([np.ones_like(places), places, places**2], axis=1)
    slopes, *_ = np.linalg.lstsq(trend, scores, rcond=None)
    rest = scores - trend @ slopes
    # Plans of one budget hardly differ in what they are expected to lose, and the trend is no scale then: the least is
    # the one at which weights as far from one as their spreads explain what the trend does not.
    least = float(rest.std() / max(float(np.linalg.norm((shares * spreads).std(axis=0))), 1e-9))
    typical = float(slopes[1] / max(spread, 1e-9))
    rise = np.full_like(places, least)
    if typical > least:
        # Where the trend is flat or bent down, by chance or because nothing is left to lose, scores say little.
        rise = np.clip(typical + 2 * slopes[2] * places / spread, 0.1 * typical, None)
    features = rise[:, None] * shares
    # The trend's own coefficients are taken out, for features and scores alike.
    basis, _ = np.linalg.qr(trend)
    target = rest + features @ weights
    features, target = (values - basis @ (basis.T @ values) for values in (features, target))
    level, freedom = float(rest.var()) + 1e-12, max(len(scores) - trend.shape[1], 1)
    beliefs = [_posterior(features, target, spreads, share * level, freedom) for share in NOISES]
    return max(beliefs, key=lambda belief: belief.evidence)


def _posterior(features: Array, target: Array, spreads: Array, noise: float, freedom: int) -> LogWeights:
    """The posterior of coefficients with independent normal priors, for a known variance of the noise."""
    scaled = features * spreads
    precision = scaled.T @ scaled / noise + np.eye(len(spreads))
    lower = np.linalg.cholesky(precision)
    mean = np.linalg.solve(precision, scaled.T @ target / noise)
    missed = target @ (target - scaled @ mean) / noise
    evidence = -0.5 * (missed + freedom * np.log(noise)) - float(np.log(np.diag(lower)).sum())
    return LogWeights(spreads * mean, spreads[:, None] * np.linalg.inv(lower).T, float(evidence))

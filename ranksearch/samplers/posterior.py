"""Bayesian regression of trial scores on the layers' expected errors, which estimates a weight per layer.

The expected loss of a plan is S = sum_l w_l e_l, with a term e_l for each layer. The closed form sets all w_l to 1; the
posterior estimates them from the scores, which rise with S. The scores follow a parabola in log S, the log weights have
normal priors, and d log S / d log w_l is the layer's share of S. A few Gauss-Newton steps, each a linear regression of
the residuals of this trend on the shares, yield the MAP estimate of the weights and a Gaussian posterior around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Prior standard deviations of a layer's log weight, and of a scheme's additive contribution to it.
LAYER_SPREAD, SCHEME_SPREAD = 0.5, 0.3
# Minimum number of scores to learn from; with fewer, the posterior is the prior.
FEWEST = 6
# Candidate noise variances, as shares of the variance around the trend; the evidence selects one.
NOISES = (0.03, 0.1, 0.3, 0.6, 1.0)
# Gauss-Newton steps from the prior mean to the MAP estimate.
STEPS = 4


@dataclass(frozen=True)
class WeightPosterior:
    """A normal distribution over log weights.

    Attributes:
        mean: mean of the log weights, `[weights]`.
        root: square root of the covariance, `[weights, weights]`; maps standard normal vectors to deviations.
        evidence: log marginal likelihood of the scores up to a constant, for model comparison.
    """

    mean: Array
    root: Array
    evidence: float

    @staticmethod
    def prior(spreads: Array) -> WeightPosterior:
        """Return the prior: log weights of mean 0 with standard deviations `spreads`, `[weights]`."""
        return WeightPosterior(np.zeros_like(spreads), np.diag(spreads), 0.0)

    def draw(self, generator: np.random.Generator) -> Array:
        """Draw random log weights, `[weights]`."""
        return self.mean + self.root @ generator.standard_normal(len(self.mean))


def learn(terms: Array, kinds: Array, scores: Array, spreads: Array) -> WeightPosterior:
    """Return the posterior of the log weights given the plans' scores.

    Args:
        terms: expected error of each layer in each plan, `[plans, layers]`.
        kinds: 0-1 indicators of the additional weights that scale each term, `[plans, layers, kinds]`.
        scores: losses of the plans, in any unit that rises with the loss, `[plans]`.
        spreads: prior standard deviations of the log weights, layers first, then kinds, `[layers + kinds]`.
    """
    belief, layers = WeightPosterior.prior(spreads), terms.shape[1]
    if len(scores) < FEWEST:
        return belief
    # Clip outliers: scores of nearly diverged trials would dominate the others.
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


def _regress(expected: Array, shares: Array, scores: Array, weights: Array, spreads: Array) -> WeightPosterior:
    """Take one Gauss-Newton step from the given log weights."""
    spread = expected.std()
    places = (expected - expected.mean()) / spread if spread > 1e-9 else np.zeros_like(expected)
    trend = np.stack([np.ones_like(places), places, places**2], axis=1)
    slopes, *_ = np.linalg.lstsq(trend, scores, rcond=None)
    rest = scores - trend @ slopes
    # Plans of one budget differ little in expected loss, so the trend's slope is unreliable. It is bounded below by
    # the slope at which log weights of one prior standard deviation explain the residuals of the trend.
    lowest = float(rest.std() / max(float(np.linalg.norm((shares * spreads).std(axis=0))), 1e-9))
    typical = float(slopes[1] / max(spread, 1e-9))
    rise = np.full_like(places, lowest)
    if typical > lowest:
        # Where the trend is flat or falling, by noise or saturation of the loss, scores carry little information.
        rise = np.clip(typical + 2 * slopes[2] * places / spread, 0.1 * typical, None)
    features = rise[:, None] * shares
    # Project the trend out of features and target.
    basis, _ = np.linalg.qr(trend)
    target = rest + features @ weights
    features, target = (values - basis @ (basis.T @ values) for values in (features, target))
    level, freedom = float(rest.var()) + 1e-12, max(len(scores) - trend.shape[1], 1)
    beliefs = [_posterior(features, target, spreads, share * level, freedom) for share in NOISES]
    return max(beliefs, key=lambda belief: belief.evidence)


def _posterior(features: Array, target: Array, spreads: Array, noise: float, freedom: int) -> WeightPosterior:
    """Compute the posterior of coefficients with independent normal priors, for a given noise variance."""
    scaled = features * spreads
    precision = scaled.T @ scaled / noise + np.eye(len(spreads))
    lower = np.linalg.cholesky(precision)
    mean = np.linalg.solve(precision, scaled.T @ target / noise)
    missed = target @ (target - scaled @ mean) / noise
    evidence = -0.5 * (missed + freedom * np.log(noise)) - float(np.log(np.diag(lower)).sum())
    return WeightPosterior(spreads * mean, spreads[:, None] * np.linalg.inv(lower).T, float(evidence))

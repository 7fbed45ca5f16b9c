"""Importance of layers: each one's share of the expected loss, with weights learned from the trials."""

from collections.abc import Mapping, Sequence

import numpy as np

from ranksearch.plan import SCHEMES
from ranksearch.results.metadata import StudyMetadata
from ranksearch.results.trials import TrialRecord
from ranksearch.samplers.posterior import LAYER_SPREAD, SCHEME_SPREAD, learn


def importance(metadata: StudyMetadata, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Return each layer's share of the completed trials' expected loss, averaged over trials; the shares sum to 1.

    The errors of layers and schemes are weighted as the trials' losses suggest, see `learn`. A layer that is dense in
    every plan has a share of 0, as have all layers if no completed trial has an expected error.
    """
    results = [record.result for record in records if record.result is not None and any(record.result.errors.values())]
    names = [layer.name for layer in metadata.layers]
    if not results:
        return dict.fromkeys(names, 0.0)
    terms = np.array([[result.errors.get(name, 0.0) for name in names] for result in results])
    chosen = [[result.plan.layers.get(name) for name in names] for result in results]
    kinds = np.array([[[c is not None and c.scheme == scheme for scheme in SCHEMES] for c in row] for row in chosen])
    spreads = np.concatenate([np.full(len(names), LAYER_SPREAD), np.full(len(SCHEMES), SCHEME_SPREAD)])
    learned = learn(terms, kinds.astype(float), np.array([result.loss for result in results]), spreads).mean
    weighed = terms * np.exp(learned[: len(names)] + kinds @ learned[len(names) :])
    shares = (weighed / weighed.sum(axis=1, keepdims=True)).mean(axis=0)
    return dict(zip(names, shares.tolist(), strict=True))


def by_stage(shares: Mapping[str, float], stages: Mapping[str, str]) -> dict[str, float]:
    """Sum the layers' shares by stage, in the order of the network."""
    sums: dict[str, float] = {}
    for name, share in shares.items():
        sums[stages[name]] = sums.get(stages[name], 0.0) + share
    return sums

"""How much each layer has to do with what plans lose: its share of the expected loss, weighed as trials taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ranksearch.facts import StudyFacts
from ranksearch.layer_weights import LAYER_SPREAD, SCHEME_SPREAD, learn
from ranksearch.plan import SCHEMES
from ranksearch.records import TrialRecord


def importance(facts: StudyFacts, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Layer -> its share of the loss that the completed trials' plans were expected to have, at the mean; sums to 1.

    The errors of layers and schemes count as much as the trials' losses say, see `layer_weights`. A layer that is dense
    in every plan has none.

    Args:
        facts: of the study.
        records: all its trials.
    """
    results = [record.result for record in records if record.result is not None and any(record.result.errors.values())]
    names = [layer.name for layer in facts.layers]
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
    """Stage -> the sum of its layers' shares, in the order of the network."""
    found: dict[str, float] = {}
    for name, share in shares.items():
        found[stages[name]] = found.get(stages[name], 0.0) + share
    return found

"""What each layer has to do with the loss."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import invented_facts

from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.report.importance import by_stage, importance
from ranksearch.results.trials import FeasibleTrial, TrialRecord, TrialResult

NAMES = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]
FACTS = invented_facts(NAMES)
Errors = dict[str, float]


def record(number: int, errors: Errors, loss: float) -> TrialRecord:
    plan = RankPlan({name: LayerChoice(2) for name, error in errors.items() if error})
    result = TrialResult(plan, 40, 2.5, 40, 5, 0.5, 0.6, loss, {}, {n: e for n, e in errors.items() if e})
    return FeasibleTrial(number, "COMPLETE", False, result, "", 1.0)


errors = st.fixed_dictionaries({name: st.sampled_from([0.0, 0.01, 0.1, 0.5]) for name in NAMES})


@given(st.lists(st.tuples(errors, st.floats(0.01, 3)), max_size=20))
def test_shares_sum_to_one_and_dense_layers_have_none(trials: list[tuple[Errors, float]]) -> None:
    shares = importance(FACTS, [record(number, *trial) for number, trial in enumerate(trials)])
    assert list(shares) == NAMES
    total = sum(shares.values())
    assert total == pytest.approx(1 if any(any(found.values()) for found, _ in trials) else 0)
    for name in NAMES:
        if not any(found[name] for found, _ in trials):
            assert shares[name] == 0
    stages = by_stage(shares, FACTS.stages())
    assert list(stages) == ["layer1", "layer2", "layer3"]
    assert sum(stages.values()) == pytest.approx(total)


def test_a_layer_that_the_loss_feels_has_more_than_its_errors() -> None:
    draw = random.Random(0)
    trials = []
    for number in range(60):
        found = {name: draw.uniform(0.05, 0.3) for name in NAMES}
        felt = sum(found.values()) + 4 * found["layer2.0"]
        trials.append(record(number, found, 0.2 + felt))
    learned = importance(FACTS, trials)
    alike = importance(
        FACTS, [dataclasses.replace(t, result=dataclasses.replace(t.result, loss=1.0)) for t in trials if t.result]
    )
    assert learned["layer2.0"] > 1.5 * alike["layer2.0"]
    assert max(learned, key=lambda name: learned[name]) == "layer2.0"

"""A study tells what its trials are read by."""

from __future__ import annotations

import json

import optuna
import pytest
from optuna.storages import InMemoryStorage

from ranksearch.cost import count_macs
from ranksearch.errors import UserError
from ranksearch.facts import StudyFacts, keep_facts, macs_under, read_facts
from ranksearch.plan import LayerSpec
from ranksearch.problem import Problem


@pytest.fixture(scope="module")
def facts(base_problem: Problem) -> StudyFacts:
    return StudyFacts.of(base_problem, "python -m ranksearch", "resnet8", "digits", 1.5, 24)


def test_what_is_kept_is_what_is_read(facts: StudyFacts) -> None:
    assert StudyFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    study = optuna.create_study(storage=InMemoryStorage())
    keep_facts(study, facts)
    assert read_facts(study) == facts


def test_a_study_that_tells_nothing_is_named() -> None:
    study = optuna.create_study(study_name="old", storage=InMemoryStorage())
    with pytest.raises(UserError, match="study 'old' does not say what network it searches: run its search once more"):
        read_facts(study)


def test_a_plan_costs_what_its_layers_cost_less(facts: StudyFacts, base_problem: Problem) -> None:
    plan = base_problem.space.cheapest
    saved = sum(layer.dense_macs - macs_under(layer, plan.layers.get(layer.name)) for layer in facts.layers)
    assert facts.macs - saved == count_macs(base_problem.build(plan), facts.input_shape)


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (["layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer3.0.conv1"], ["layer1", "layer2", "layer3"]),
        (["features.1.block.0", "features.2.block.0", "features.3.block.0"], [f"features.{i}" for i in (1, 2, 3)]),
        (
            ["encoder.layers.a.mlp.0", "encoder.layers.b.mlp.0", "encoder.layers.c.x"],
            ["encoder.layers." + x for x in "abc"],
        ),
        (["0", "3"], ["0", "3"]),
    ],
)
def test_stages_are_what_the_names_have_in_common(facts: StudyFacts, names: list[str], stages: list[str]) -> None:
    specs = tuple(LayerSpec(name, "conv2d", 8, 8, 4) for name in names)
    found = StudyFacts(**{**vars(facts), "layers": specs}).stages()
    assert list(found) == names
    assert list(dict.fromkeys(found.values())) == stages

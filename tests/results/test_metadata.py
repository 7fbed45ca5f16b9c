"""A study tells what its trials are read by."""

from __future__ import annotations

import json

import optuna
import pytest
from optuna.storages import InMemoryStorage

from ranksearch.cost.macs import count_macs
from ranksearch.errors import UserError
from ranksearch.plan import LayerSpec
from ranksearch.results.metadata import StudyMetadata, layer_macs, read_metadata, write_metadata
from ranksearch.study.context import SearchContext


@pytest.fixture(scope="module")
def metadata(base_context: SearchContext) -> StudyMetadata:
    return base_context.describe(
        command="python -m ranksearch", model="resnet8", dataset="digits", speedup=1.5, trials=24
    )


def test_what_is_kept_is_what_is_read(metadata: StudyMetadata) -> None:
    assert StudyMetadata.from_json(json.loads(json.dumps(metadata.to_json()))) == metadata
    storage = InMemoryStorage()
    optuna.create_study(study_name="new", storage=storage)
    write_metadata(storage, "new", metadata)
    assert read_metadata(storage, "new") == metadata


def test_a_study_without_metadata_is_refused_by_name() -> None:
    storage = InMemoryStorage()
    optuna.create_study(study_name="old", storage=storage)
    with pytest.raises(UserError, match="study 'old' does not record its network yet: run its search again"):
        read_metadata(storage, "old")


def test_a_plan_costs_what_its_layers_cost_less(metadata: StudyMetadata, base_context: SearchContext) -> None:
    plan = base_context.space.cheapest
    saved = sum(layer.dense_macs - layer_macs(layer, plan.layers.get(layer.name)) for layer in metadata.layers)
    assert metadata.macs - saved == count_macs(base_context.build(plan), metadata.input_shape)


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
def test_stages_are_what_the_names_have_in_common(metadata: StudyMetadata, names: list[str], stages: list[str]) -> None:
    specs = tuple(LayerSpec(name, "conv2d", 8, 8, 4) for name in names)
    found = StudyMetadata(**{**vars(metadata), "layers": specs}).stages()
    assert list(found) == names
    assert list(dict.fromkeys(found.values())) == stages

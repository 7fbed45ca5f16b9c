"""What the model's weights, its file and the person say of images, classes and rules comes together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from ranksearch.app import register_schemas
from ranksearch.building import build_data, build_model, rules_of
from ranksearch.config import RunConfig
from ranksearch.cost import MacsCost
from ranksearch.errors import UserError
from ranksearch.models import cifar_resnet
from ranksearch.problem import describe_space
from ranksearch.schema import freeze


def configured(*words: str) -> RunConfig:
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain: Any = OmegaConf.to_container(compose("config", list(words)), resolve=True)
    config: RunConfig = freeze(RunConfig, plain)
    return config


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (300, 300), (128, 128, 128)).save(tmp_path / split / label / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "size", "value"),
    [
        (["model=resnet18"], 224, (128 / 255 - 0.485) / 0.229),
        (
            ["model=torchvision", "model.name=inception_v3", "model.weights=IMAGENET1K_V1"],
            299,
            (128 / 255 - 0.485) / 0.229,
        ),
        (
            ["model=timm", "model.name=vit_tiny_patch16_224", "model.weights=augreg_in21k_ft_in1k"],
            224,
            (128 / 255 - 0.5) / 0.5,
        ),
        (["model=resnet18", "model.weights=IMAGENET1K_V1", "model.input_size=96"], 96, (128 / 255 - 0.485) / 0.229),
        (["model=resnet18", "dataset.mean=[0,0,0]", "dataset.std=[1,1,1]"], 224, 128 / 255),
    ],
)
def test_images_are_prepared_as_the_weights_want_unless_it_is_said_otherwise(
    words: list[str], size: int, value: float, folders: Path
) -> None:
    config = configured(
        "dataset=imagenet", f"dataset.root={folders}", "dataset.workers=0", "dataset.validation_share=0.5", *words
    )
    splits = build_data(config)
    image = splits.test[0][0]
    assert image.shape == (3, size, size)
    assert float(image[0].mean()) == pytest.approx(value, abs=1e-3)
    assert splits.num_classes == 2


def test_the_model_may_have_more_classes_than_the_data_but_not_fewer() -> None:
    assert build_data(configured("model=resnet18", "model.num_classes=12")).num_classes == 12
    with pytest.raises(UserError, match=r"model\.num_classes=9 is below the 10 classes of the data set"):
        build_data(configured("model=resnet18", "model.num_classes=9"))


def test_a_checkpoint_of_one_s_own_is_what_the_run_begins_with(tmp_path: Path) -> None:
    torch.manual_seed(1)
    for classes, fit in ((10, True), (7, False)):
        path, source = tmp_path / f"{classes}.pt", cifar_resnet(20, classes)
        torch.save({"state_dict": source.state_dict()}, path)
        config = configured(f"model.checkpoint={path}")
        model, builder, pretrained = build_model(config, build_data(config))
        assert torch.equal(model.state_dict()["conv1.weight"], source.state_dict()["conv1.weight"])
        assert pretrained.fit is fit
        assert pretrained.source == str(path)
        assert "checkpoint" not in builder
    both = configured("model=resnet18", f"model.checkpoint={path}", "model.weights=IMAGENET1K_V1")
    with pytest.raises(UserError, match=r"stands beside model\.weights"):
        build_model(both, build_data(configured()))


def test_rules_of_the_model_s_file_come_after_the_person_s() -> None:
    config = configured("model=mobilenet_v3_large", "space.rules=[{match: '*.fc1', low: 4}]")
    assert [rule.match for rule in rules_of(config).rules] == ["*.fc1", "*.fc[12]"]
    with pytest.raises(UserError, match=r"model\.rules\.kep=dense is not a key"):
        replace(config, model={**config.model, "rules": [{"match": "a", "kep": "dense"}]})


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf"])
def test_squeeze_and_excite_and_depthwise_layers_stay_dense(name: str) -> None:
    config = configured(f"model={name}", "dataset=fake")
    splits = build_data(config)
    model = build_model(config, splits)[0].eval()
    space = describe_space(model, splits, rules_of(config), MacsCost(), torch.device("cpu"))
    layers = dict(model.named_modules())
    for choices in space.layers:
        layer = layers[choices.spec.name]
        assert not (isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1)
        assert not choices.spec.name.endswith((".fc1", ".fc2"))
    everything = configured(f"model={name}", "dataset=fake", "space=all")
    more = describe_space(model, splits, rules_of(everything), MacsCost(), torch.device("cpu"))
    assert len(more.layers) > len(space.layers)

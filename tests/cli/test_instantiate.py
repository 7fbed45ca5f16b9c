"""What the model's weights, its file and the person say of images, classes and rules comes together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import nn

from ranksearch.cli.compose import register_schemas
from ranksearch.cli.config import RunConfig, make_config
from ranksearch.cli.setup import build_dense_model, build_splits, space_settings
from ranksearch.cost.macs import MacsCost
from ranksearch.errors import UserError
from ranksearch.models.cifar import cifar_resnet
from ranksearch.study.context import build_search_space


def configured(*words: str) -> RunConfig:
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return make_config(compose("config", list(words)))


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
            ["model=torchvision", "model.name=inception_v3", "model.builder.weights=IMAGENET1K_V1"],
            299,
            (128 / 255 - 0.485) / 0.229,
        ),
        (
            ["model=timm", "model.name=vit_tiny_patch16_224", "model.builder.weights=augreg_in21k_ft_in1k"],
            224,
            (128 / 255 - 0.5) / 0.5,
        ),
        (
            ["model=resnet18", "model.builder.weights=IMAGENET1K_V1", "model.input_size=96"],
            96,
            (128 / 255 - 0.485) / 0.229,
        ),
        (["model=resnet18", "dataset.mean=[0,0,0]", "dataset.std=[1,1,1]"], 224, 128 / 255),
    ],
)
def test_images_are_prepared_as_the_weights_want_unless_it_is_said_otherwise(
    words: list[str], size: int, value: float, folders: Path
) -> None:
    config = configured(
        "dataset=imagenet", f"dataset.root={folders}", "dataset.workers=0", "dataset.validation_share=0.5", *words
    )
    splits = build_splits(config)
    image = splits.test[0][0]
    assert image.shape == (3, size, size)
    assert float(image[0].mean()) == pytest.approx(value, abs=1e-3)
    assert splits.num_classes == 2


def test_the_model_may_have_more_classes_than_the_data_but_not_fewer() -> None:
    assert build_splits(configured("model=resnet18", "model.num_classes=12")).num_classes == 12
    with pytest.raises(UserError, match=r"model\.num_classes=9 is below the 10 classes of the data set"):
        build_splits(configured("model=resnet18", "model.num_classes=9"))


def test_a_checkpoint_of_one_s_own_is_what_the_run_begins_with(tmp_path: Path) -> None:
    torch.manual_seed(1)
    for classes, fit in ((10, True), (7, False)):
        path, source = tmp_path / f"{classes}.pt", cifar_resnet(20, classes)
        torch.save({"state_dict": source.state_dict()}, path)
        config = configured(f"model.checkpoint={path}")
        dense = build_dense_model(config, build_splits(config))
        assert torch.equal(dense.network.state_dict()["conv1.weight"], source.state_dict()["conv1.weight"])
        assert dense.pretrained.fit is fit
        assert dense.pretrained.source == str(path)
        assert "checkpoint" not in dense.builder
    both = configured("model=resnet18", f"model.checkpoint={path}", "model.builder.weights=IMAGENET1K_V1")
    with pytest.raises(UserError, match=r"cannot be combined with model\.builder\.weights"):
        build_dense_model(both, build_splits(configured()))


def test_rules_of_the_model_s_file_come_after_the_person_s() -> None:
    config = configured("model=mobilenet_v3_large", "space.rules=[{match: '*.fc1', low: 4}]")
    assert [rule.match for rule in space_settings(config).rules] == ["*.fc1", "*.fc[12]"]


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf"])
def test_squeeze_and_excite_and_depthwise_layers_stay_dense(name: str) -> None:
    config = configured(f"model={name}", "dataset=fake")
    splits = build_splits(config)
    model = build_dense_model(config, splits).network.eval()
    space = build_search_space(model, splits, space_settings(config), MacsCost(), torch.device("cpu"))
    layers = dict(model.named_modules())
    for choices in space.layers:
        layer = layers[choices.spec.name]
        assert not (isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1)
        assert not choices.spec.name.endswith((".fc1", ".fc2"))
    everything = configured(f"model={name}", "dataset=fake", "space=all")
    more = build_search_space(model, splits, space_settings(everything), MacsCost(), torch.device("cpu"))
    assert len(more.layers) > len(space.layers)

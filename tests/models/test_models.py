"""Builders give networks of the published shapes, and clear errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from ranksearch.cli.compose import register_schemas
from ranksearch.cost.macs import count_macs, count_params
from ranksearch.data.image_folders import central_crop
from ranksearch.errors import UserError
from ranksearch.models.cifar import cifar_resnet
from ranksearch.models.classifiers import timm_classifier, torchvision_classifier
from ranksearch.models.pretrained import published


@pytest.mark.parametrize(("depth", "params", "macs"), [(20, 0.27e6, 40.6e6), (56, 0.85e6, 125.5e6)])
def test_cifar_resnets_have_the_published_sizes(depth: int, params: float, macs: float) -> None:
    """He et al. (2015), table 6, for the parameters; MACs at 32 x 32 as the literature counts them."""
    model = cifar_resnet(depth, 10)
    assert count_params(model) == pytest.approx(params, rel=0.01)
    assert count_macs(model, (3, 32, 32)) == pytest.approx(macs, rel=0.01)


def test_weights_that_cannot_be_fetched_say_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be downloaded .*no route.*put the file at .*resnet18-f37072fd.pth"):
        torchvision_classifier("resnet18", 1000, "IMAGENET1K_V1")


def test_weights_of_other_classes_get_a_new_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real loading path, from a checkpoint file where torchvision looks for it."""
    torch.manual_seed(0)
    source = torchvision_classifier("resnet18", 1000)
    (tmp_path / "checkpoints").mkdir()
    torch.save(source.state_dict(), tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        "torchvision.models._api.WeightsEnum.get_state_dict",
        lambda self, *args, **kwargs: torch.load(tmp_path / "checkpoints" / "resnet18-f37072fd.pth", weights_only=True),
    )
    kept = torchvision_classifier("resnet18", 1000, "IMAGENET1K_V1")
    swapped = torchvision_classifier("resnet18", 7, "IMAGENET1K_V1")
    assert torch.equal(kept.state_dict()["fc.weight"], source.state_dict()["fc.weight"])
    assert torch.equal(swapped.state_dict()["layer4.1.conv2.weight"], source.state_dict()["layer4.1.conv2.weight"])
    head = swapped.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    assert head.out_features == 7


def test_published_weights_say_what_they_were_made_for() -> None:
    builder = "ranksearch.models.torchvision_classifier"
    for name in list_models(module=torchvision.models):
        for weights in get_model_weights(name):
            if weights.name == "IMAGENET1K_FEATURES":  # of VGG-16, which classify nothing
                continue
            found = published({"_target_": builder, "architecture": name, "weights": weights.name})
            assert found is not None
            ours = central_crop(**found.images)
            image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
            if found.images["interpolation"] == "bilinear" and found.images["image_size"] <= 256:
                assert torch.allclose(ours(image), weights.transforms()(image), atol=0.05), (name, weights)
            assert found.num_classes == 1000
    assert published({"_target_": builder, "architecture": "resnet50", "weights": None}) is None
    assert published({"_target_": "mine.network", "weights": "IMAGENET1K_V1"}) is None


def test_published_weights_of_timm_say_it_too() -> None:
    recipe = {"_target_": "ranksearch.models.timm_classifier", "architecture": "resnet18", "weights": "a1_in1k"}
    found = published(recipe)
    assert found is not None
    assert found.num_classes == 1000
    assert found.images["image_size"] == 224
    assert found.images["crop"] == pytest.approx(0.95)
    assert found.images["interpolation"] == "bicubic"
    with pytest.raises(UserError, match=r"model.builder.weights=a9 is unknown for resnet18: use a1_in1k, a2_in1k"):
        published({**recipe, "weights": "a9"})


def test_networks_of_timm_are_built_by_name() -> None:
    model = timm_classifier("resnet18", 7).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(UserError, match=r"timm has no model 'resnet18x': use resnet18"):
        timm_classifier("resnet18x", 7)


def test_without_timm_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm is not installed: pip install 'ranksearch\[timm\]'"):
        timm_classifier("resnet18", 7)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mnasnet0_5", "googlenet"])
def test_heads_of_every_make_are_swapped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of 1,000 classes, without fetching them: those that the network has anyway."""
    monkeypatch.setattr(
        "torchvision.models._api.WeightsEnum.get_state_dict",
        lambda self, *args, **kwargs: (
            get_model(name, weights=None, init_weights=False).state_dict()
            if name == "googlenet"
            else get_model(name, weights=None).state_dict()
        ),
    )
    model = torchvision_classifier(name, 7, "DEFAULT").eval()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


READY = sorted(
    file.stem for file in (ROOT / "conf" / "model").glob("*.yaml") if file.stem not in ("torchvision", "timm")
)


@pytest.mark.parametrize("words", [[name] for name in READY] + [["torchvision", "model.name=mobilenet_v3_small"]])
def test_every_ready_model_builds_for_any_number_of_classes(words: list[str]) -> None:
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = compose("config", [f"model={words[0]}", *words[1:]]).model
    # RegNet computes its widths with tensors, which must hold numbers.
    with torch.device("cpu" if settings.name.startswith("regnet") else "meta"):
        model = instantiate(settings.builder, num_classes=7)
    heads = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert heads[-1].out_features == 7
    assert settings.name == words[-1].removeprefix("model.name=")


def test_weights_of_timm_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("timm.create_model", refuse)
    with pytest.raises(UserError, match=r"model.builder.weights=a1_in1k cannot be downloaded \(no route\): connect"):
        timm_classifier("resnet18", 1000, "a1_in1k")
    with pytest.raises(OSError, match="no route"):  # which is no matter of a download
        timm_classifier("resnet18", 1000)

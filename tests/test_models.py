"""Builders give networks of the published shapes, and clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from ranksearch.app import register_schemas
from ranksearch.cost import count_macs, count_params
from ranksearch.errors import UserError
from ranksearch.job import NOT_OF_THE_BUILDER
from ranksearch.models import cifar_resnet, torchvision_classifier, weights_fit


@pytest.mark.parametrize(("depth", "params", "macs"), [(20, 0.27e6, 40.6e6), (56, 0.85e6, 125.5e6)])
def test_cifar_resnets_have_the_published_sizes(depth: int, params: float, macs: float) -> None:
    """He et al. (2015), table 6, for the parameters; MACs at 32 x 32 as the literature counts them."""
    model = cifar_resnet(depth, 10)
    assert count_params(model) == pytest.approx(params, rel=0.01)
    assert count_macs(model, (3, 32, 32)) == pytest.approx(macs, rel=0.01)


def test_depths_between_are_refused() -> None:
    with pytest.raises(UserError, match=r"model.depth=21 is not 6n \+ 2"):
        cifar_resnet(21, 10)


def test_unknown_architectures_name_the_closest() -> None:
    with pytest.raises(UserError, match=r"'resnet51': use .*resnet50"):
        torchvision_classifier("resnet51", 10)


def test_unknown_weights_name_those_there_are() -> None:
    with pytest.raises(
        UserError, match="IMAGENET1K_V3 is unknown for resnet50: use one of IMAGENET1K_V1, IMAGENET1K_V2"
    ):
        torchvision_classifier("resnet50", 1000, "IMAGENET1K_V3")


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


def test_weights_fit_the_classes_that_they_were_made_for() -> None:
    assert weights_fit("resnet50", "IMAGENET1K_V2", 1000)
    assert weights_fit("resnet50", "DEFAULT", 1000)
    assert not weights_fit("resnet50", "IMAGENET1K_V2", 10)


READY = sorted(file.stem for file in (ROOT / "conf" / "model").glob("*.yaml") if file.stem != "torchvision")


@pytest.mark.parametrize("words", [[name] for name in READY] + [["torchvision", "model.name=mobilenet_v3_small"]])
def test_every_ready_model_builds_for_any_number_of_classes(words: list[str]) -> None:
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = compose("config", [f"model={words[0]}", *words[1:]]).model
    arguments = {key: value for key, value in settings.items() if key not in NOT_OF_THE_BUILDER}
    # RegNet computes its widths with tensors, which must hold numbers.
    with torch.device("cpu" if settings.name.startswith("regnet") else "meta"):
        model = instantiate(arguments, num_classes=7)
    heads = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert heads[-1].out_features == 7
    assert settings.name == words[-1].removeprefix("model.name=")

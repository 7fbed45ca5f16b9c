"""What version 0.1.0 showed, kept and stored still works."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from omegaconf import DictConfig
from optuna.storages import InMemoryStorage
from torch import nn

import ranksearch
from ranksearch._deprecated import current_target, upgrade_settings
from ranksearch.cli.compose import compose, read_words, register_schemas, resolve
from ranksearch.cli.instantiate import build
from ranksearch.data.splits import Splits
from ranksearch.errors import UserError
from ranksearch.factorize import factorized_like
from ranksearch.models import cifar_resnet
from ranksearch.plan import RankPlan
from ranksearch.study.create import open_study
from ranksearch.tensor_files import write_weights

# Name that the docs, examples or configurations of version 0.1.0 showed -> its present name.
NAMES = {
    "datasets.Splits": "data.splits.Splits",
    "image_sets.digits": "data.builtin.digits",
    "image_sets.fashion_mnist": "data.builtin.fashion_mnist",
    "image_sets.cifar": "data.builtin.cifar",
    "image_sets.fake": "data.builtin.fake",
    "image_folders.image_folder": "data.image_folders.image_folder",
    "guided.GuidedSampler": "samplers.thompson.ThompsonSampler",
    "latency.MeasuredLatency": "cost.Latency",
    "proxies.Proxy": "allocation.sensitivity.Proxy",
    "proxies.Relative": "allocation.sensitivity.Relative",
    "proxies.Fisher": "allocation.sensitivity.Fisher",
    "proxies.Probes": "allocation.sensitivity.Probes",
    "proxies.Mixture": "allocation.sensitivity.Mixture",
    "rules.Rule": "search_space.rules.Rule",
    "rules.SpaceSettings": "search_space.rules.SpaceSettings",
    "fine_tuning.FineTuning": "training.recipe.FineTuner",
    "callback.SweepSummary": "cli.sweep_callback.SweepSummary",
}
# Names that have stayed where they were.
SAME = [
    *("find_plan", "load", "RankPlan", "LayerChoice", "LayerSpec", "UserError", "PlanError", "DataError"),
    *("models.cifar_resnet", "models.torchvision_classifier", "models.timm_classifier"),
    *("cost.MacsCost", "cost.CostModel", "cost.MeasuredCost", "cost.count_macs", "cost.count_params"),
    *("factorize.FactorizedConv2d", "factorize.factorized_like", "storage.sqlite", "storage.journal", "storage.rdb"),
    *("plan.LayerSpec", "plan.LayerChoice", "plan.RankPlan"),
]
# The settings that version 0.1.0 stored with the study of its defaults, but for groups that have not changed.
STORED: dict[str, Any] = {
    "model": {
        "_target_": "ranksearch.models.cifar_resnet",
        "name": "resnet20",
        "depth": 20,
        "checkpoint": None,
        "input_size": None,
    },
    "dataset": {
        "_target_": "ranksearch.image_sets.digits",
        "name": "digits",
        "image_size": 16,
        "validation_share": 0.2,
        "test_share": 0.2,
        "split_seed": 0,
        "mean": None,
        "std": None,
    },
    "cost": {"_target_": "ranksearch.cost.MacsCost"},
    "proxy": {"_target_": "ranksearch.proxies.Relative"},
}
MEASURED = {"_target_": "ranksearch.latency.MeasuredLatency", "dtype": "bfloat16", "channels_last": True}


def locate(name: str) -> object:
    module, _, last = f"ranksearch.{name}".rpartition(".")
    return getattr(import_module(module), last)


@pytest.mark.parametrize(("old", "new"), NAMES.items())
def test_an_old_name_is_the_new_one_and_warns(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"ranksearch\.{old} is deprecated: use ranksearch\."):
        assert locate(old) is locate(new)
    assert current_target(f"ranksearch.{old}") == f"ranksearch.{new}"


@pytest.mark.parametrize("name", SAME)
def test_a_name_that_has_stayed_warns_of_nothing(name: str) -> None:
    assert locate(name) is not None
    assert current_target(f"ranksearch.{name}") == f"ranksearch.{name}"


def test_a_name_that_never_was_is_missed_as_ever() -> None:
    with pytest.raises(AttributeError, match=r"module 'ranksearch.rules' has no attribute 'Ruler'"):
        locate("rules.Ruler")
    with pytest.raises(ModuleNotFoundError, match=r"ranksearch\.rulers"):
        import_module("ranksearch.rulers")
    assert current_target("mine.rules.Rule") == "mine.rules.Rule"


def test_apply_is_apply_plan() -> None:
    with pytest.warns(DeprecationWarning, match=r"ranksearch\.apply is deprecated: use ranksearch\.apply_plan"):
        assert ranksearch.apply is ranksearch.apply_plan


def test_an_old_target_of_a_configuration_is_built() -> None:
    with pytest.warns(DeprecationWarning, match=r"image_sets\.digits is deprecated"):
        splits = build("dataset", {key: value for key, value in STORED["dataset"].items() if key != "name"}, Splits)
    assert splits.num_classes == 10


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    register_schemas()
    return compose(read_words([]))


@pytest.fixture(scope="module")
def clock() -> DictConfig:
    register_schemas()
    return compose(read_words(["cost=latency", "runtime.precision=bfloat16"]))


def test_an_old_study_of_the_same_settings_continues(composed: DictConfig, clock: DictConfig) -> None:
    storage = InMemoryStorage()
    old = optuna.create_study(study_name="s", storage=storage, directions=["maximize", "minimize"])
    old.set_user_attr("settings", STORED)
    new = {group: resolve(composed)[group] for group in STORED}
    assert open_study("s", storage, new).study_name == "s"
    builder = {**new["model"]["builder"], "depth": 56}
    with pytest.raises(UserError, match=r"was made with other settings \(model.builder.depth: 20 before, 56 now\)"):
        open_study("s", storage, {**new, "model": {**new["model"], "builder": builder}})
    times = resolve(clock)["cost"]
    assert upgrade_settings({"cost": MEASURED})["cost"] == {key: times[key] for key in ("_target_", "runtime")}


def test_settings_of_today_are_not_changed(composed: DictConfig) -> None:
    settings = resolve(composed)
    assert upgrade_settings(settings) == settings


def test_a_network_that_an_old_search_wrote_is_loaded(tmp_path: Path) -> None:
    plan = {"layer1.0.conv1": {"scheme": "horizontal", "latent_size": 4}}
    model = {"_target_": "ranksearch.models.cifar_resnet", "depth": 8, "num_classes": 10}
    network = factorized_like(cifar_resnet(8, 10), RankPlan.from_json(plan))
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    write_weights(tmp_path / "model.safetensors", network)
    entries = {"format": "ranksearch.plan/1", "model": model, "layers": plan, "speedup": 2.0, "input_shape": [3, 8, 8]}
    (tmp_path / "plan.json").write_text(json.dumps(entries))
    loaded = ranksearch.load(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in network.state_dict().items())

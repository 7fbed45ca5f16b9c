"""What is saved loads in two lines, in a fresh process, and only if it is trusted and whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import nn

import ranksearch
from ranksearch.errors import PlanError
from ranksearch.factorize import factorize_model
from ranksearch.formats.serialization import save_network
from ranksearch.plan import LayerChoice, RankPlan
from ranksearch.results.study_files import BUILDERS
from ranksearch.study.context import SearchContext
from ranksearch.tensor_files import read_weights, write_weights

BUILDER = {"_target_": "ranksearch.models.cifar_resnet", "depth": 8, "num_classes": 10}
PLAN = RankPlan({"layer1.0.conv1": LayerChoice(3), "layer3.0.conv2": LayerChoice(20)})


@pytest.fixture
def network(context: SearchContext) -> nn.Module:
    return factorize_model(context.model, PLAN, context.decompositions)


@pytest.fixture
def folder(tmp_path: Path, network: nn.Module) -> Path:
    save_network(tmp_path / "best", network, PLAN, BUILDER, {"macs": 1})
    return tmp_path / "best"


def test_a_fresh_process_gives_the_same_outputs(folder: Path, network: nn.Module) -> None:
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    code = (
        "import torch, ranksearch\n"
        f"network = ranksearch.load({str(folder)!r})\n"
        "images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)\n"
        "assert not network.training\n"
        "print(network(images).flatten().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    again = torch.tensor(json.loads(done.stdout)).reshape(2, 10)
    assert torch.allclose(again, network.eval()(images), atol=1e-5)


def test_the_file_holds_the_factors_and_nothing_else(folder: Path, network: nn.Module) -> None:
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    assert (folder / "model.safetensors").stat().st_size < numbers + 10_000


def test_builders_from_elsewhere_need_trust(folder: Path) -> None:
    entries = json.loads((folder / "plan.json").read_text())
    entries["model"] = {"_target_": "os.abort"}
    (folder / "plan.json").write_text(json.dumps(entries))
    with pytest.raises(PlanError, match=r"'os.abort', which is not part of ranksearch: pass trust=True"):
        ranksearch.load(folder)
    entries["model"] = {"_target_": "nowhere.build"}
    (folder / "plan.json").write_text(json.dumps(entries))
    with pytest.raises(PlanError, match=r"'nowhere.build' cannot be found"):
        ranksearch.load(folder, trust=True)
    entries["model"] = {**BUILDER, "depth": {"_target_": "os.abort"}}
    (folder / "plan.json").write_text(json.dumps(entries))
    with pytest.raises(PlanError, match=r"'os.abort', which is not part of ranksearch"):
        ranksearch.load(folder)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.activation(self.second(self.first(x))))


def test_tied_weights_and_nested_builders_come_back(tmp_path: Path) -> None:
    network, x = Tied(nn.Sigmoid()).eval(), torch.randn(4, 8)
    builder = {"_target_": f"{Tied.__module__}.Tied", "activation": {"_target_": "torch.nn.Sigmoid"}}
    save_network(tmp_path, network, RankPlan(), builder, {})
    again = ranksearch.load(tmp_path, trust=True)
    assert again.get_submodule("first").weight is again.get_submodule("second").weight
    assert torch.equal(again(x), network(x))


def said_of(folder: Path, **entries: object) -> None:
    """Let a plan file say something else."""
    path = folder / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "plan.json").unlink(), "does not exist"),
        (lambda folder: (folder / "plan.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "plan.json").write_text('{"format": "other/2"}'), "'other/2', expected"),
        (
            lambda folder: (folder / "plan.json").write_text('{"format": "ranksearch.plan/1"}'),
            r"damaged \(no 'model'\)",
        ),
        (lambda folder: said_of(folder, layers=[]), r"damaged \(no 'layers'\)"),
        (lambda folder: said_of(folder, model={"depth": 8}), "the plan's model is a dict, not a network"),
        (
            lambda folder: said_of(folder, model={**BUILDER, "width": 3}),
            r"resnet' cannot be called \(.*width.*\): fix",
        ),
        (lambda folder: ((folder / "plan.json").unlink(), (folder / "plan.json").mkdir()), r"cannot be read \("),
        (lambda folder: (folder / "model.safetensors").unlink(), "does not exist"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"), "does not fit"),
    ],
)
def test_missing_and_damaged_files_are_named(folder: Path, damage: object, said: str) -> None:
    assert callable(damage)
    damage(folder)
    with pytest.raises(PlanError, match=said):
        ranksearch.load(folder)


def test_weights_of_another_plan_are_refused(folder: Path) -> None:
    entries = json.loads((folder / "plan.json").read_text())
    entries["layers"]["layer1.0.conv1"]["latent_size"] = 4
    (folder / "plan.json").write_text(json.dumps(entries))
    with pytest.raises(PlanError, match="does not fit the network"):
        ranksearch.load(folder)


def test_a_single_wrong_bit_is_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"model.safetensors is damaged, its checksum does not match"):
        ranksearch.load(folder)
    model = nn.Linear(2, 3)
    write_weights(folder / "linear", model)
    content = bytearray((folder / "linear").read_bytes())
    content[-2] ^= 1
    (folder / "linear").write_bytes(content)
    other = nn.Linear(2, 3)
    before = other.weight.clone()
    with pytest.raises(PlanError, match="is damaged"):
        read_weights(folder / "linear", other)
    assert torch.equal(other.weight, before)  # whoever goes on without the file goes on from there


def test_a_builder_whose_module_breaks_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "broken_builder.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(folder)
    said_of(folder, model={"_target_": "broken_builder.build"})
    with pytest.raises(PlanError, match=r"the plan's builder 'broken_builder.build' cannot be imported \(.+\): fix"):
        ranksearch.load(folder, trust=True)


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "ranksearch.models.classifiers.torch.serialization.os.abort"},
        {"_target_": "ranksearch.models.get_close_matches"},
        {"_target_": "ranksearch.models.cifar_resnet", "depth": 8, "num_classes": {"_target_": "os.abort"}},
    ],
)
def test_nothing_but_our_builders_is_called_untrusted(folder: Path, model: dict[str, object]) -> None:
    said_of(folder, model=model)
    with pytest.raises(PlanError, match="which is not part of ranksearch: pass trust=True if you trust it"):
        ranksearch.load(folder)


def test_our_builders_are_those_that_the_configs_name() -> None:
    named = {
        line.split()[1]
        for file in (ROOT / "conf" / "model").glob("*.yaml")
        for line in file.read_text().splitlines()
        if line.strip().startswith("_target_: ")
    }
    assert named == BUILDERS

"""What the README and the pages tell people to type works as it stands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from optuna.samplers import BaseSampler
from runs import BRIEF, Ran, call
from sklearn.datasets import load_digits

import ranksearch
from ranksearch.cli.compose import register_schemas
from ranksearch.cli.instantiate import build
from ranksearch.cost.base import CostModel
from ranksearch.cost.macs import count_macs, count_params
from ranksearch.factorize import profile_layers
from ranksearch.search_space.rules import SpaceSettings

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
OWN = TEXTS["docs/own.md"]
SHELL = {"make", "export", "pip", "cd", "OMP_NUM_THREADS=4", "optuna-dashboard", "bash", "git", "source"}


def commands() -> list[list[str]]:
    """The words after `python -m ranksearch` of every command on a page."""
    lines = []
    for text in TEXTS.values():
        lines += [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
        lines += re.findall(r"`(python -m ranksearch [^`]+)`", text)
    words = [shlex.split(re.sub(r"^(\w+=\S+ )+", "", line), comments=True) for line in lines]
    # Ray does not run on every Python that ranksearch runs on, so its launcher may be missing here.
    if find_spec("hydra_plugins.hydra_ray_launcher") is None:
        words = [found for found in words if "hydra/launcher=ray" not in found]
    ours = [found[3:] for found in words if found[:3] == ["python", "-m", "ranksearch"]]
    return [list(found) for found in dict.fromkeys(map(tuple, ours)) if not {"--help", "..."} & set(found)]


def write_files(folder: Path, text: str = OWN) -> None:
    """Put every file that a page shows under its own name."""
    for name, content in re.findall(r"`([\w/]+\.(?:py|yaml))`[^\n]*:\n\n```\w+\n(.*?)```", text, re.S):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_compose(words: list[str], tmp_path: Path) -> None:
    write_files(tmp_path)
    shutil.copytree(ROOT / "examples" / "own_model" / "conf", tmp_path / "conf")
    (tmp_path / "my_conf" / "fine_tune").mkdir(parents=True)
    (tmp_path / "my_conf" / "fine_tune" / "mine.yaml").write_text("_target_: mine.FineTuner\n")  # as the page says
    overrides = [word for word in words if "=" in word]
    if "--config-dir" in words:
        folder = words[words.index("--config-dir") + 1]
        overrides.append(f"hydra.searchpath=[file://{tmp_path / folder}]")
    register_schemas()
    sweeping = "-m" in words
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for index in range(2 if sweeping else 1):
            swept = [re.sub(r"=range\((\d+),(\d+)\)", r"=\1,\2", word) for word in overrides]
            chosen = [re.sub(r"=(.*),(.*)", rf"=\{index + 1}", word) if sweeping else word for word in swept]
            config = compose("config", chosen)
            keys = [word.split("=")[0].lstrip("+") for word in chosen if not word.startswith("hydra")]
            assert all(key in config or "." in key or (ROOT / "conf" / key).is_dir() for key in keys)


def test_every_line_for_a_shell_is_one_that_is_tested() -> None:
    blocks = [block for text in TEXTS.values() for block in re.findall(r"```bash\n(.*?)```", text, re.S)]
    lines = [line for block in blocks for line in block.splitlines() if line]
    others = [line for line in lines if "python -m ranksearch" not in line]
    assert not [line for line in others if line.split()[0] not in SHELL]
    targets = {line.split()[1] for line in others if line.startswith("make ")}
    assert targets <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))


def test_one_s_own_model_and_data_run(tmp_path: Path) -> None:
    write_files(tmp_path)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 16
    torch.save((images.contiguous(), torch.tensor(digits.target)), tmp_path / "images.pt")
    done = call(tmp_path, "--config-dir=my_conf", "model=mynet", "dataset=mydata", "cost=mine", small=BRIEF)
    assert done.returncode == 0, done.stderr
    front = json.loads((tmp_path / "outputs" / "mynet-mydata-1.5x-s0" / "front.json").read_text())
    assert front["measured"]["cost_unit"] == "parameters"
    assert all(point["cost"] <= front["dense"]["params"] / 1.5 for point in front["points"])
    best = tmp_path / "outputs" / "mynet-mydata-1.5x-s0" / "best"
    with pytest.raises(ranksearch.PlanError, match="trust=True"):
        ranksearch.load(best)
    network = ranksearch.load(best, trust=True)
    # A cost of one's own adds up as it says: BatchNorm's numbers, biases and the dense layers stay what they were.
    assert count_params(network) < front["dense"]["params"]


def test_a_cost_of_one_s_own_is_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    cost = build("cost", yaml.safe_load((tmp_path / "my_conf" / "cost" / "mine.yaml").read_text()), CostModel)
    layer = torch.nn.Conv2d(8, 8, 3, bias=False)
    model = torch.nn.Sequential(layer)
    [spec] = profile_layers(model, torch.randn(1, 8, 6, 6)).layers
    assert cost.dense(spec) == cost.network(model, [8, 6, 6]) == layer.weight.numel()
    for scheme in spec.schemes:
        twin = ranksearch.factorize.FactorizedConv2d(8, 8, 3, latent_channels=2, scheme=scheme, bias=False)
        assert cost.at_rank(spec, 2, scheme) == count_params(twin)


def test_space_rules_of_the_pages_are_understood() -> None:
    [block] = [
        block for text in TEXTS.values() for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if "rules:" in block
    ]
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SpaceSettings), yaml.safe_load(block)))
    assert [rule.match for rule in settings.rules] == ["layer1.*", "layer4.*.conv2", "layer3.*"]


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_pictures_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXTS[page]):
        assert ((ROOT / page).parent / target).exists(), target


def test_schemas_are_schemas() -> None:
    for file in (ROOT / "docs" / "schemas").glob("*.json"):
        jsonschema.Draft202012Validator.check_schema(json.loads(file.read_text()))


EXAMPLE = (ROOT / "examples" / "library.py").read_text()


def snippets() -> list[str]:
    """Every piece of Python on a page that is no file of its own and no example, each once."""
    found = []
    for text in TEXTS.values():
        files = {content for _, content in re.findall(r"`([\w/]+\.py)`[^\n]*:\n\n```\w+\n(.*?)```", text, re.S)}
        found += [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if block not in files]
    return [block for block in dict.fromkeys(found) if block not in EXAMPLE]


@pytest.mark.parametrize("code", snippets(), ids=lambda code: code.split(" = ")[0].splitlines()[-1])
def test_snippets_run(code: str, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ran[0])  # where there is a network to load
    names: dict[str, object] = {}
    exec(code, names)
    made = [value for name, value in names.items() if name in ("network", "factorized", "smaller", "better")]
    assert made
    for network in made:
        assert isinstance(network, torch.nn.Module)
        dense = names.get("layer" if "layer" in names else "model")
        if isinstance(dense, torch.nn.Module):
            shape = [64, 28, 28] if "layer" in names else [3, 32, 32]
            assert count_macs(network, shape) < count_macs(dense, shape)


def test_the_site_builds_and_asks_for_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = re.compile(
        r"""(?:<script[^>]*\ssrc|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href|<img[^>]*\ssrc)="(http[^"]+)"""
    )
    for page in tmp_path.rglob("*.html"):
        assert not loaded.findall(page.read_text()), page
    reference = (tmp_path / "api.html").read_text()
    for name in ranksearch.__all__:
        assert f'id="ranksearch.{name}"' in reference or f'id="ranksearch.factorize.{name}"' in reference, name
    for name in ranksearch.factorize.__all__:
        assert f'id="ranksearch.factorize.{name}"' in reference, name


def test_sampler_of_the_page_is_one() -> None:
    [target] = re.findall(r"sampler=random sampler\._target_=(\S+)", OWN)
    module, _, name = target.rpartition(".")
    assert issubclass(getattr(sys.modules[module], name), BaseSampler)

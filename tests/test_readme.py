"""What the README tells people to type works as it stands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from sklearn.datasets import load_digits
from test_app import BRIEF, call

import ranksearch
from ranksearch.app import register_schemas
from ranksearch.rules import SpaceSettings
from ranksearch.schema import freeze

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line)[3:]
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.startswith("python -m ranksearch")
] + [
    shlex.split(command)[3:]
    for command in re.findall(r"`(python -m ranksearch [^`]+)`", TEXT)
    if "--help" not in command
]


def write_files(folder: Path) -> None:
    """Put every file that the README shows under its own name."""
    for name, content in re.findall(r"`([\w/]+\.(?:py|yaml))`[^\n]*:\n\n```\w+\n(.*?)```", TEXT, re.S):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_compose(words: list[str], tmp_path: Path) -> None:
    write_files(tmp_path)
    overrides = [word for word in words if "=" in word]
    if "--config-dir" in words:
        overrides.append(f"hydra.searchpath=[file://{tmp_path / 'my_conf'}]")
    register_schemas()
    sweeping = "-m" in words
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for index in range(2 if sweeping else 1):
            swept = [re.sub(r"=range\((\d+),(\d+)\)", r"=\1,\2", word) for word in overrides]
            chosen = [re.sub(r"=(.*),(.*)", rf"=\{index + 1}", word) if sweeping else word for word in swept]
            config = compose("config", chosen)
            keys = [word.split("=")[0] for word in chosen if not word.startswith("hydra/")]
            assert all(key in config or "." in key or (ROOT / "conf" / key).is_dir() for key in keys)


def test_one_s_own_model_and_data_run(tmp_path: Path) -> None:
    write_files(tmp_path)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 16
    torch.save((images.contiguous(), torch.tensor(digits.target)), tmp_path / "images.pt")
    done = call(tmp_path, "--config-dir=my_conf", "model=mynet", "dataset=mydata", small=BRIEF)
    assert done.returncode == 0, done.stderr
    best = tmp_path / "outputs" / "mynet-mydata-1.5x-s0" / "best"
    with pytest.raises(ranksearch.PlanError, match="trust=True"):
        ranksearch.load(best)


def test_space_rules_of_the_readme_are_understood() -> None:
    [block] = [block for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.S) if "rules:" in block]
    settings = freeze(SpaceSettings, yaml.safe_load(block))
    assert [rule.match for rule in settings.rules] == ["layer1.*", "layer4.*.conv2", "layer3.*"]


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_schemas_are_schemas() -> None:
    for file in (ROOT / "docs" / "schemas").glob("*.json"):
        jsonschema.Draft202012Validator.check_schema(json.loads(file.read_text()))


@pytest.mark.parametrize("index", [0, 1])
def test_the_library_snippets_run(index: int) -> None:
    blocks = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "ranksearch.factorize" in block]
    names: dict[str, object] = {}
    exec(blocks[index], names)
    assert names["factorized" if index == 0 else "smaller"] is not None

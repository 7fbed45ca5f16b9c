"""Imports run one way, and each outside package has its one home."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "ranksearch"
# From the ground up; a module may import from any row above its own, and from modules named in its own row never.
FLOORS = [
    ["errors", "palette"],
    ["pruning", "plan", "files", "schema", "pretrained", "weights_file", "datasets", "locks", "device"],
    ["factorize", "checkpoint", "timing", "models", "image_sets", "optimizers"],
    ["cost", "latency", "loading", "training", "fine_tuning", "plain", "provenance", "image_folders"],
    ["allocation", "baseline", "layer_weights", "export", "applying", "wall_clock"],
    ["space"],
    ["rules", "sampler", "constraint", "calibrated"],
    ["problem", "closed_form"],
    ["trial", "planning"],
    ["records", "proxies", "facts"],
    ["experience", "picking", "storage", "importance", "finalized"],
    ["guided"],
    ["queueing"],
    ["study"],
    ["search", "finalize", "progress"],
    ["summary", "pictures"],
    ["review", "profile"],
    ["config", "sweep", "artifacts", "terminal"],
    ["job", "afterwards"],
    ["building", "callback"],
    ["preparing"],
    ["app"],
    ["__main__"],
]
HOMES = {
    "hydra": {"app", "building", "callback"},
    "omegaconf": {"app", "callback"},
    "torchvision": {"models", "pretrained", "image_sets", "image_folders"},
    "timm": {"pretrained"},
    "sklearn": {"image_sets"},
    "optuna": {
        "sampler",
        "experience",
        "guided",
        "queueing",
        "storage",
        "records",
        "study",
        "search",
        "facts",
        "review",
        "afterwards",
        "job",
        "building",
        "preparing",
        "app",
    },
    "matplotlib": {"pictures"},
    "plotly": {"review"},
    "optuna_dashboard": {"review"},
    "jinja2": {"review"},
    "rich": {"terminal"},
    "plotext": {"terminal"},
    "sqlalchemy": {"storage"},
    "filelock": {"locks", "storage"},
    "onnxruntime": {"export"},
    "onnxscript": {"export"},
}


def imports() -> dict[str, set[str]]:
    """Room -> dotted names that its files import; a room is a module, or the whole of `factorize`."""
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        names = found.setdefault(room, set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
                names.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == "ranksearch")
    return found


def test_every_room_has_its_floor() -> None:
    assert set(imports()) - {"__init__"} == {room for floor in FLOORS for room in floor}


@pytest.mark.parametrize("room", [room for floor in FLOORS for room in floor])
def test_imports_run_one_way(room: str) -> None:
    below: set[str] = set()
    for floor in FLOORS:
        if room in floor:
            break
        below.update(floor)
    used = {name.split(".")[1] for name in imports()[room] if name.startswith("ranksearch.")} - {room}
    assert used <= below


@pytest.mark.parametrize("package", HOMES)
def test_outside_packages_are_imported_in_their_homes_only(package: str) -> None:
    users = {room for room, names in imports().items() if any(name.split(".")[0] == package for name in names)}
    assert users <= HOMES[package]


@pytest.mark.parametrize("module", ["ranksearch", "ranksearch.factorize"])
def test_the_library_needs_torch_only(module: str) -> None:
    heavy = {"hydra", "matplotlib", "omegaconf", "optuna", "plotly", "rich", "sklearn", "torchvision"}
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_no_file_outgrows_its_idea() -> None:
    long = {str(file.relative_to(ROOT)) for file in PACKAGE.rglob("*.py") if len(file.read_text().splitlines()) > 300}
    assert long == set()


def test_every_config_is_used_by_its_path() -> None:
    """A config file's `_target_` inside ranksearch must exist."""
    for file in Path(ROOT / "conf").rglob("*.yaml"):
        for line in file.read_text().splitlines():
            line = line.strip().removeprefix("- ")
            if line.startswith("_target_: ranksearch."):
                module, _, name = line.removeprefix("_target_: ").rpartition(".")
                assert callable(getattr(importlib.import_module(module), name)), line

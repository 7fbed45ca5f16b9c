"""Imports run one way, and each outside package has its one home."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "ranksearch"
TEXT = (ROOT / "docs" / "architecture.md").read_text()


def table(heading: str, names_in: int) -> list[list[str]]:
    """The modules that each row under a heading names, from the ground up."""
    section = TEXT.split(heading)[1].split("\n#")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")][1:]
    return [[name.rstrip("/") for name in re.findall(r"`([\w/]+)`", row[names_in])] for row in rows]


# A module may import from any row above its own, and from modules named in its own row never.
FLOORS = [*table("## The rooms", 1), ["__main__"]]
INSIDE = {room: table(f"### Inside `{room}/`", 0) for room in ("factorize", "review")}
HOMES = {
    "hydra": {"app", "building", "callback", "composing"},
    "omegaconf": {"app", "callback", "composing"},
    "yaml": {"composing"},
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
        "tasks",
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


def names_imported(file: Path) -> set[str]:
    """Dotted names that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == "ranksearch")
    return names


def imports() -> dict[str, set[str]]:
    """Room -> dotted names that its files import; a room is a module, or the whole of `factorize`."""
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.setdefault(room, set()).update(names_imported(file))
    return found


def below(floors: list[list[str]], room: str) -> set[str]:
    """All rooms that stand in rows above that of a room."""
    [row] = [index for index, floor in enumerate(floors) if room in floor]
    return {other for floor in floors[:row] for other in floor}


def test_every_room_has_one_floor() -> None:
    named = [room for floor in FLOORS for room in floor]
    assert sorted(named) == sorted(set(imports()) - {"__init__"})


@pytest.mark.parametrize("room", [room for floor in FLOORS for room in floor])
def test_imports_run_one_way(room: str) -> None:
    used = {name.split(".")[1] for name in imports()[room] if name.startswith("ranksearch.")} - {room}
    assert used <= below(FLOORS, room)


@pytest.mark.parametrize("room", INSIDE)
def test_imports_run_one_way_inside_a_room(room: str) -> None:
    files = {file.stem: file for file in (PACKAGE / room).glob("*.py") if file.stem != "__init__"}
    named = [name for floor in INSIDE[room] for name in floor if name != "templates"]
    assert sorted(named) == sorted(files)
    flat = [[name] for floor in INSIDE[room] for name in floor]  # in the order of reading, within a row as well
    for name, file in files.items():
        prefix = f"ranksearch.{room}."
        used = {found.split(".")[2] for found in names_imported(file) if found.startswith(prefix)} & set(files)
        assert used <= below(flat, name), name


def test_the_picture_names_modules_that_there_are() -> None:
    shown = re.findall(r'class="m"[^>]*>([^<]+)<', (ROOT / "docs" / "flow.svg").read_text())
    named = {name for line in shown for name in line.split()}
    assert len(named) > 30
    assert named <= set(imports())


@pytest.mark.parametrize("package", HOMES)
def test_outside_packages_are_imported_in_their_homes_only(package: str) -> None:
    users = {room for room, names in imports().items() if any(name.split(".")[0] == package for name in names)}
    assert users <= HOMES[package]


def test_no_file_is_for_odds_and_ends() -> None:
    words = {part for file in PACKAGE.rglob("*.py") for part in file.stem.split("_")}
    assert not words & {"util", "utils", "helper", "helpers", "common", "misc", "tools", "base"}


def test_every_target_of_the_configs_exists() -> None:
    for file in Path(ROOT / "conf").rglob("*.yaml"):
        for line in file.read_text().splitlines():
            line = line.strip().removeprefix("- ")
            if line.startswith("_target_: ranksearch."):
                module, _, name = line.removeprefix("_target_: ").rpartition(".")
                assert callable(getattr(importlib.import_module(module), name)), line


def test_nothing_that_could_hold_code_is_unpickled() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert {"weights_only": "True"}.items() <= {
                    str(word.arg): ast.unparse(word.value) for word in node.keywords
                }.items(), file
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("pickle.load", "pickle.loads", "pickle.Unpickler"), file
        assert not names_imported(file) & {"dill", "cloudpickle", "joblib", "shelve", "marshal"}, file


def test_every_exemption_has_its_reason_beside_it() -> None:
    exempt = re.compile(r"#\s*(type: ignore|noqa|pragma|fmt: (?:skip|off))\b[^#\n]*(#.*)?$")
    for file in PACKAGE.rglob("*.py"):
        for line in file.read_text().splitlines():
            found = exempt.search(line)
            assert found is None or found[2], f"{file.name}: {line.strip()}"

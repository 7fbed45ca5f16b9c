"""Import chains are short and without cycles, and each outside package has its one home.

That imports go down only is a contract in `pyproject.toml`, which `make check` holds with import-linter.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path

import grimp
import pytest
from conftest import ROOT

import ranksearch

PACKAGE = ROOT / "ranksearch"
# Modules of the longest chain of imports, at most.
LONGEST_CHAIN = 14
HOMES = {
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "yaml": {"cli"},
    "torchvision": {"models", "data"},
    "timm": {"models"},
    "sklearn": {"data"},
    "optuna": {"samplers", "results", "storage", "study", "report", "cli"},
    "matplotlib": {"report"},
    "plotly": {"report"},
    "optuna_dashboard": {"report"},
    "jinja2": {"report"},
    "rich": {"allocation", "cli", "tables", "plan"},
    "sqlalchemy": {"storage"},
    "filelock": {"locks", "storage"},
    "onnxruntime": {"formats"},
    "onnxscript": {"formats"},
    "transformers": {"formats"},
}


def imported(file: Path) -> set[str]:
    """Dotted names that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_chains_of_imports_are_short_and_have_no_cycle() -> None:
    graph = grimp.build_graph("ranksearch", cache_dir=None, exclude_type_checking_imports=True)
    waiting: set[str] = set()

    @cache
    def chain(module: str) -> int:
        assert module not in waiting, f"{module} imports itself in the end"
        waiting.add(module)
        below = [name for name in graph.find_modules_directly_imported_by(module) if name.startswith("ranksearch")]
        longest = 1 + max((chain(name) for name in below), default=0)
        waiting.discard(module)
        return longest

    assert max(chain(module) for module in graph.modules) <= LONGEST_CHAIN


def test_no_package_hides_a_public_function() -> None:
    for module in pkgutil.walk_packages(ranksearch.__path__, "ranksearch."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ranksearch.__all__:
        assert callable(getattr(ranksearch, name)), name


@pytest.mark.parametrize("package", HOMES)
def test_outside_packages_are_imported_in_their_homes_only(package: str) -> None:
    users = {
        file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for file in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == package for name in imported(file))
    }
    assert users <= HOMES[package]


def test_no_file_is_for_odds_and_ends() -> None:
    words = {part for file in PACKAGE.rglob("*.py") for part in file.stem.split("_")}
    assert not words & {"util", "utils", "helper", "helpers", "common", "misc", "tools"}


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
        assert not imported(file) & {"dill", "cloudpickle", "joblib", "shelve", "marshal"}, file


def test_every_exemption_has_its_reason_beside_it() -> None:
    exempt = re.compile(r"#\s*(type: ignore|noqa|pragma|fmt: (?:skip|off))\b[^#\n]*(#.*)?$")
    for file in PACKAGE.rglob("*.py"):
        for line in file.read_text().splitlines():
            found = exempt.search(line)
            assert found is None or found[2], f"{file.name}: {line.strip()}"

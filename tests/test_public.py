"""The public names: few, documented, soon imported, and without what they do not need."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from conftest import ROOT

import ranksearch
import ranksearch.factorize

# Third-party packages that torch brings, and safetensors for the networks on disk.
LIGHT = "import torch, numpy, safetensors.torch, torch.utils.flop_counter"


def loaded(code: str) -> set[str]:
    """Top-level modules that are there after some code."""
    command = [
        sys.executable,
        "-c",
        f"{code}\nimport sys; print(*sorted({{n.partition('.')[0] for n in sys.modules}}))",
    ]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("package", [ranksearch, ranksearch.factorize])
def test_every_public_name_is_there_and_documented(package: object) -> None:
    names = package.__all__
    assert names == sorted(names)
    assert len(names) < 36
    for name in names:
        assert inspect.getdoc(getattr(package, name)), name


@pytest.mark.parametrize("module", ["ranksearch", "ranksearch.results", "ranksearch.cli.modes.report"])
def test_reading_a_finished_study_loads_no_torch(module: str) -> None:
    assert "torch" not in loaded(f"import {module}")


def test_importing_it_loads_torch_and_safetensors_alone() -> None:
    extra = loaded("import ranksearch, ranksearch.factorize") - loaded(LIGHT) - set(sys.stdlib_module_names)
    assert {name for name in extra if not name.startswith("_")} == {"ranksearch"}

"""The wheel holds the configs, and its console script works from any folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from runs import SMALL

import ranksearch


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [file] = folder.glob("*.whl")
    return file


def test_the_wheel_holds_every_config_and_nothing_stray(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"ranksearch/conf/{file.relative_to(ROOT / 'conf')}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert configs <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ranksearch"}
    assert not any("test" in name or "outputs" in name for name in names)


def test_the_installed_script_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows only the dependencies of this one."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    install = [sys.executable, "-m", "pip", "--quiet", "--python", str(home / "bin" / "python"), "install"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    script = home / "bin" / "ranksearch"
    done = subprocess.run(
        [script, *SMALL, "study.n_trials=1"], cwd=elsewhere, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "outputs" / "resnet20-digits-1.5x-s0" / "best" / "plan.json").exists()
    where = [home / "bin" / "python", "-c", "import ranksearch; print(ranksearch.__file__)"]
    found = subprocess.run(where, cwd=elsewhere, env=clean, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(site))


def test_the_version_is_the_same_wherever_it_stands(wheel: Path) -> None:
    assert f"-{ranksearch.__version__}-" in wheel.name
    assert f"\nversion: {ranksearch.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased" or headings[0] == ranksearch.__version__

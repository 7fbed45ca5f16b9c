"""The examples run as they stand."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from conftest import ROOT
from runs import BRIEF, environment

import ranksearch
from ranksearch.cost.macs import count_macs

EXAMPLES = ROOT / "examples"


def test_the_library_s_example_halves_the_macs_in_at_most_15_lines(capsys: pytest.CaptureFixture[str]) -> None:
    file = EXAMPLES / "library.py"
    assert len(file.read_text().splitlines()) <= 15
    torch.manual_seed(0)
    names = runpy.run_path(str(file))
    assert "FactorizedConv2d" in capsys.readouterr().out
    dense, network = (count_macs(names[name], (3, 32, 32)) for name in ("model", "network"))
    assert dense >= 2 * network
    assert not [module for module in names["model"].modules() if "Factorized" in type(module).__name__]


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
def test_one_s_own_network_is_compressed_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(EXAMPLES / "own_network.py"))
    assert names["result"].plan.details.dense_macs >= 1.5 * names["result"].plan.details.macs
    path = tmp_path / "outputs" / "own_network.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["out"]


@pytest.mark.slow  # the default tests run the same of docs/own.md
def test_one_s_own_network_and_data_take_one_command(tmp_path: Path) -> None:
    folder = tmp_path / "own_model"
    shutil.copytree(EXAMPLES / "own_model", folder, ignore=shutil.ignore_patterns("outputs", "__pycache__"))
    [line] = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("python -m")]
    words = line.split()
    done = subprocess.run(
        [sys.executable, *words[1:], *BRIEF], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    best = folder / "outputs" / "mine-parity-3.0x-s0" / "best"
    with pytest.raises(ranksearch.PlanError, match="trust=True"):
        ranksearch.load(best)
    code = f"import ranksearch, torch; print(ranksearch.load({str(best)!r}, trust=True)(torch.zeros(2, 1, 8, 8)).shape)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True)
    assert "[2, 2]" in loaded.stdout, loaded.stderr

"""Runs of the command line, as a person starts them: real runs on real digits, made small."""

from __future__ import annotations

import csv
import io
import logging
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from conftest import ROOT
from hydra.core.global_hydra import GlobalHydra

from ranksearch.cli.main import main

Ran = tuple[Path, subprocess.CompletedProcess[str]]

BRIEF = [
    "baseline.steps=40",
    "calibration.images=128",
    "calibration.comparison_images=64",
    "calibration.sequential_images=32",
    "fine_tune.steps=2",
    "finalize.steps=3",
    "study.closed_form_trials=2",
    "study.n_trials=3",
]
SMALL = ["model.builder.depth=8", "dataset.image_size=8", *BRIEF]
# Made-up images, for what ends before a search, or hardly begins one.
FAKE = ["device=cpu", "model.builder.depth=8", "dataset=fake", "dataset.image_size=8", "dataset.images=80"]
STUDY = "resnet20-digits-1.5x-s0"


def command(*overrides: str, small: list[str] = SMALL) -> list[str]:
    flags = [word for word in overrides if word.startswith("-")]
    rest = [word for word in overrides if not word.startswith("-")]
    return [sys.executable, "-W", "error", "-m", "ranksearch", *flags, *small, *rest]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'support'}", "COLUMNS": "100"}


def call(folder: Path, *overrides: str, small: list[str] = SMALL) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, which has imported everything already."""
    words = command(*overrides, small=small)[5:]
    out, err, code, root = io.StringIO(), io.StringIO(), 0, logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(action="error"),
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["ranksearch", *words])
        patch.setattr(sys, "path", [str(folder), *sys.path])
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        finally:
            GlobalHydra.instance().clear()
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers[:] = handlers
            root.setLevel(level)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def spawn(folder: Path, *overrides: str, small: list[str] = SMALL) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    words = command(*overrides, small=small)
    return subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True)


def scores(folder: Path) -> list[tuple[str, ...]]:
    columns = ("trial", "state", "validation_accuracy", "macs", "validation_loss", "plan")
    with (folder / "outputs" / STUDY / "trials.csv").open(newline="") as file:
        return [tuple(row[name] for name in columns) for row in csv.DictReader(file)]

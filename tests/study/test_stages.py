"""A run that is killed in any of its stages is run again by the same command, and nothing is mended by hand."""

from __future__ import annotations

import json
import random
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from leftovers import left_over
from optuna import load_study
from runs import STUDY, call, command, environment

import ranksearch
from ranksearch.storage import sqlite

# What a run says when a stage begins.
BEGINNINGS = [
    "baseline: training the dense network",
    "baseline: (written to|read from)",  # calibration comes next
    "calibration:",  # and the closed form
    "study .* trials finished",  # and the first fine-tuning
    "finalize: fine-tuning trial",
    "finalize: (wall-clock time|.* already holds)",  # and the artifacts
]
LONGER = ["baseline.steps=120", "fine_tune.steps=12", "finalize.steps=120", "storage.heartbeat_seconds=1"]


def kill_when(folder: Path, beginning: str, seconds: float) -> bool:
    """Start a run, and kill it some time after a stage begins; whether it came so far."""
    variables = {**environment(), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command(*LONGER), cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        reached = any(re.match(beginning, line) for line in process.stdout)
        time.sleep(seconds)
        process.kill()
    return reached


def closed_form_results(folder: Path) -> dict[str, Any]:
    study = load_study(study_name=STUDY, storage=sqlite(str(folder / "outputs" / "ranksearch.db")))
    trials = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    study._storage.remove_session()
    study._storage._backend.engine.dispose()
    plans = [json.dumps(trial.params, sort_keys=True) for trial in trials]
    assert len(set(plans)) == len(plans) == 3
    return {plan: trial.values for plan, trial in zip(plans, trials, strict=True) if trial.user_attrs["closed_form"]}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.timeout(600)
def test_a_run_killed_in_its_stages_ends_as_an_undisturbed_one(seed: int, tmp_path: Path) -> None:
    generator = random.Random(seed)
    killed, quiet = tmp_path / "killed", tmp_path / "quiet"
    for folder in (killed, quiet):
        folder.mkdir()
    for beginning in BEGINNINGS:
        assert kill_when(killed, beginning, generator.uniform(0.0, 0.6)), beginning
    for folder in (killed, quiet):
        done = call(folder, *LONGER)
        assert done.returncode == 0, done.stderr
    assert closed_form_results(killed) == closed_form_results(quiet)
    assert left_over(killed) == []
    images = torch.rand(2, 3, 8, 8)
    best = ranksearch.load(killed / "outputs" / STUDY / "best")
    assert best(images).shape == (2, 10)

"""Every experiment runs from end to end, on made-up images and with few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from runs import call

from ranksearch.cli.compose import register_schemas

EXPERIMENTS = sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))
FEW = [
    "dataset=fake",
    "dataset.images=64",
    "baseline.steps=2",
    "baseline.batch_size=8",
    "calibration.images=16",
    "calibration.comparison_images=8",
    "calibration.sequential_images=8",
    "fine_tune.steps=1",
    "fine_tune.batch_size=8",
    "finalize.steps=2",
    "finalize.seeds=1",
    "finalize.time_batches=[1]",
    "study.closed_form_trials=1",
    "study.n_trials=2",
    "space.default.schemes=[full]",
]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for more in ([], ["dataset=fake"]):
            config = compose("config", [f"experiment={name}", *more])
            assert config.constraint.speedup > 1
            assert config.dataset.name == ("fake" if more else config.dataset.name)


# Their networks take minutes even on few images of 32 pixels.
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_from_end_to_end(name: str, tmp_path: Path) -> None:
    more = ["model.builder.weights=null"] if name.startswith("imagenet") else []
    done = call(tmp_path, f"experiment={name}", *more, small=FEW)
    assert done.returncode == 0, done.stderr
    [file] = (tmp_path / "outputs").glob("*/front.json")
    front = json.loads(file.read_text())
    assert front["points"]
    assert (file.parent / "best" / "model.safetensors").exists()

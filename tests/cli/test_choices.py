"""What may be chosen in the place of the defaults, and one's own objects."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import jsonschema
import optuna
import pytest
from conftest import ROOT
from runs import SMALL, STUDY, call, scores

OVERHEAD = """
from dataclasses import dataclass
from ranksearch.cost.macs import MacsCost


@dataclass(frozen=True)
class Overhead(MacsCost):
    '''Two layers in the place of one take longer to start.'''
    unit: str = "ns"
    start: int = 10_000

    def at_rank(self, spec, rank, scheme):
        return spec.macs_at(rank, scheme) + self.start
"""


def test_a_search_may_count_another_cost_than_macs(tmp_path: Path) -> None:
    (tmp_path / "overhead.py").write_text(OVERHEAD)
    done = call(tmp_path, "cost._target_=overhead.Overhead", "constraint.speedup=1.2", "finalize.time_batches=[2]")
    assert done.returncode == 0, done.stderr
    study = tmp_path / "outputs" / STUDY.replace("1.5x", "1.2x")
    for file, schema in (("front.json", "front-1.json"), ("best/plan.json", "plan-1.json")):
        content = json.loads((study / file).read_text())
        jsonschema.validate(content, json.loads((ROOT / "docs" / "schemas" / schema).read_text()))
    with (study / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    dense = json.loads((study / "front.json").read_text())["dense"]["cost"]
    for row in rows:
        plan = json.loads(row["plan"])
        assert row["cost_unit"] == "ns"
        assert int(row["cost"]) == int(row["macs"]) + 10_000 * len(plan) <= dense / 1.2
        assert float(row["speedup"]) == pytest.approx(dense / int(row["cost"]))
    assert re.search(r"^ +time +speedup +MACs +in MACs", done.stdout, re.M)
    assert re.search(r"finalize: wall-clock time, batch 2: .* [\d.]+x \+- \d+ %", done.stdout)
    assert "Wall-clock time" in (study / "report.html").read_text()
    loaded = optuna.load_study(study_name=study.name, storage=f"sqlite:///{tmp_path / 'outputs' / 'ranksearch.db'}")
    assert loaded.metric_names == ["accuracy", "ns"]


TUNING = """
from dataclasses import dataclass, replace
import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class LastLayer:
    steps: int
    batch_size: int
    rate: float

    def lengthened(self, steps, learning_rate):
        return replace(self, steps=steps)

    def fine_tune(self, model, batches, teacher=None, on_step=None, checkpoint=None):
        optimizer = torch.optim.Adam(model.fc.parameters(), self.rate)
        for step in range(1, self.steps + 1):
            images, labels = next(batches)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            on_step(step, loss.item())
        model.eval()
"""


def test_a_fine_tuning_of_one_s_own_serves(tmp_path: Path) -> None:
    (tmp_path / "mytuning.py").write_text(TUNING)
    (tmp_path / "my_conf" / "fine_tune").mkdir(parents=True)
    settings = "_target_: mytuning.LastLayer\nsteps: 2\nbatch_size: 32\nrate: 0.001\n"
    (tmp_path / "my_conf" / "fine_tune" / "mine.yaml").write_text(settings)
    small = [f"hydra.searchpath=[file://{tmp_path / 'my_conf'}]", *SMALL]
    done = call(tmp_path, "fine_tune=mine", "study.n_trials=2", small=small)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "outputs" / STUDY / "trials.csv").open(newline="") as file:
        assert {row["fine_tune_steps"] for row in csv.DictReader(file)} == {"2"}
    entries = json.loads((tmp_path / "outputs" / STUDY / "best" / "plan.json").read_text())
    jsonschema.validate(entries, json.loads((ROOT / "docs" / "schemas" / "plan-1.json").read_text()))
    assert (entries["fine_tune_steps"], entries["learning_rate"]) == (3, None)
    done = call(tmp_path, "fine_tune=mine", "fine_tune._target_=mytuning.replace", small=small)
    assert done.returncode == 2
    assert "fine_tune._target_=mytuning.replace failed" in done.stderr


def test_accuracy_alone_may_be_the_objective(tmp_path: Path) -> None:
    done = call(tmp_path, "study.objective=accuracy", "pruner=median")
    assert done.returncode == 0, done.stderr
    assert len(scores(tmp_path)) == 3
    again = call(tmp_path)
    assert again.returncode == 2
    assert "was made with other settings (objective: accuracy before, front now)" in again.stderr


@pytest.mark.parametrize(
    ("sampler", "proxy"),
    [
        pytest.param("random", "fisher", marks=pytest.mark.slow),
        pytest.param("tpe", "mixed", marks=pytest.mark.slow),
        pytest.param("nsgaii", "probes", marks=pytest.mark.slow),
    ],
)
def test_other_samplers_and_proxies_serve(tmp_path: Path, sampler: str, proxy: str) -> None:
    done = call(tmp_path, f"sampler={sampler}", f"proxy={proxy}")
    assert done.returncode == 0, done.stderr
    assert [row[1] for row in scores(tmp_path)] == ["COMPLETE"] * 3

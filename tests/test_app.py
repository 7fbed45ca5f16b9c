"""The command line, as a person meets it: real runs on real digits, made small."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import jsonschema
import optuna
import pytest
import torch
from conftest import ROOT
from hydra.core.global_hydra import GlobalHydra

import ranksearch
import ranksearch.artifacts
from ranksearch.app import main
from ranksearch.artifacts import COLUMNS
from ranksearch.cost import count_macs

BRIEF = [
    "baseline.steps=40",
    "calibration.images=128",
    "fine_tune.steps=2",
    "finalize.steps=3",
    "study.closed_form_trials=2",
    "study.n_trials=3",
]
SMALL = ["model.depth=8", "dataset.image_size=8", *BRIEF]
STUDY = "resnet20-digits-1.5x-s0"


def command(*overrides: str, small: list[str] = SMALL) -> list[str]:
    flags = [word for word in overrides if word.startswith("-")]
    rest = [word for word in overrides if not word.startswith("-")]
    return [sys.executable, "-W", "ignore", "-m", "ranksearch", *flags, *small, *rest]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def call(folder: Path, *overrides: str, small: list[str] = SMALL) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, which has imported everything already."""
    words = command(*overrides, small=small)[5:]
    out, err, code, root = io.StringIO(), io.StringIO(), 0, logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(action="ignore"),
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


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("run")
    return folder, spawn(folder)


def test_a_run_ends_well_and_says_what_it_did(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = ran
    assert done.returncode == 0, done.stderr
    assert "no pretrained weights asked for, so resnet20 on digits is trained from scratch" in done.stdout
    assert len(re.findall(r"^trial \d+ \(\d of 3\): [\d.]+% at [\d.]+x in .* s left$", done.stdout, re.M)) == 3
    assert re.search(r"^dense +[\d.]+ M +1.00x .*%.*%$", done.stdout, re.M)
    assert re.search(r"^picked: trial \d .*%.*%$", done.stdout, re.M)
    assert f"written to outputs/{STUDY}: trials.csv, front.json, report.html, run.json, best/" in done.stdout
    [log] = (folder / "outputs" / STUDY / "runs").glob("*/ranksearch.log")
    assert "picked: trial" in log.read_text()


def test_json_artifacts_meet_their_schemas(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    study = ran[0] / "outputs" / STUDY
    for file, schema in (("front.json", "front-1.json"), ("best/plan.json", "plan-1.json")):
        content = json.loads((study / file).read_text())
        jsonschema.validate(content, json.loads((ROOT / "docs" / "schemas" / schema).read_text()))
    points = json.loads((study / "front.json").read_text())["points"]
    assert [point["macs"] for point in points] == sorted(point["macs"] for point in points)


def test_the_table_of_trials_agrees_with_the_study(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    outputs = ran[0] / "outputs"
    with (outputs / STUDY / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{outputs / 'ranksearch.db'}")
    assert study.metric_names == ["accuracy", "MACs"]
    for row, trial in zip(rows, study.trials, strict=True):
        assert [float(row["validation_accuracy"]), float(row["cost"])] == trial.values
        assert (row["cost_unit"], row["cost"]) == ("MACs", row["macs"])
        plan = json.loads(row["plan"])
        assert {name: entry["latent_size"] for name, entry in plan.items()}.items() <= trial.params.items()
        assert {name.split(".")[0] for name in trial.params} == {"layer1", "layer2", "layer3"}


def test_the_written_network_costs_what_its_plan_says(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    best = ran[0] / "outputs" / STUDY / "best"
    plan = json.loads((best / "plan.json").read_text())
    network = ranksearch.load(best)
    assert count_macs(network, plan["input_shape"]) == plan["macs"]
    assert network(torch.zeros(1, *plan["input_shape"])).shape == (1, 10)
    assert plan["dense_macs"] / plan["macs"] >= 1.5


def test_schemes_are_in_the_trials_the_tables_the_report_and_the_profile(
    ran: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    outputs = ran[0] / "outputs"
    trial = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{outputs / 'ranksearch.db'}").trials[0]
    with (outputs / STUDY / "trials.csv").open(newline="") as file:
        plan = json.loads(next(csv.DictReader(file))["plan"])
    assert {entry["scheme"] for entry in plan.values()} - {"full"}
    assert {f"{name}:scheme": entry["scheme"] for name, entry in plan.items()}.items() <= trial.params.items()
    page = (outputs / STUDY / "report.html").read_text()
    assert all(f">{entry['scheme']}<" in page or entry["scheme"] in page for entry in plan.values())
    done = call(ran[0], "task=profile")
    assert done.returncode == 0, done.stderr
    with (outputs / STUDY / "profile.csv").open(newline="") as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    for name, entry in plan.items():  # the first trial is the closed form at the same budget
        assert {key: str(value) for key, value in entry.items()}.items() <= rows[name].items()
        assert re.search(rf"^{name} .* {entry['scheme']} {entry['latent_size']} +\d+%", done.stdout, re.M)
        assert int(entry["latent_size"]) <= int(rows[name][f"break_even_{entry['scheme']}"])
    assert rows["conv1"]["scheme"] == "dense"
    for row in rows.values():
        for scheme in ("full", "vertical", "horizontal", "pointwise"):
            if row[f"break_even_{scheme}"]:
                assert int(row[f"break_even_in_time_{scheme}"]) <= int(row[f"break_even_{scheme}"])
    with (outputs / STUDY / "predicted_front.csv").open(newline="") as file:
        speedups = [float(row["speedup"]) for row in csv.DictReader(file)]
    assert speedups == sorted(set(speedups))
    assert speedups[0] >= 1.5
    assert "space: conv1: dense (space.stem=dense)" in done.stdout
    total = rows.pop("whole network")
    saved = sum(int(row["macs"]) - int(row["macs_of_plan"]) for row in rows.values())
    assert int(total["macs"]) - int(total["macs_of_plan"]) == saved


def test_another_trial_can_be_finalized(ran: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    shutil.copytree(ran[0] / "outputs", tmp_path / "outputs")
    done = call(tmp_path, "task=finalize", "pick.trial=1", "finalize.seeds=2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^picked: trial 1 .* +\d+\.\d+% \+- \d+\.\d+ over 2 seeds$", done.stdout, re.M)
    entries = json.loads((tmp_path / "outputs" / STUDY / "best" / "plan.json").read_text())
    jsonschema.validate(entries, json.loads((ROOT / "docs" / "schemas" / "plan-1.json").read_text()))
    assert (entries["trial"], entries["fine_tune_seeds"]) == (1, [0, 1])
    assert scores(tmp_path) == scores(ran[0])  # no trial was added
    done = call(tmp_path, "task=finalize", "pick.speedup=99")
    assert done.returncode == 2
    assert re.search(r"^ranksearch: pick.speedup=99 exceeds \d.*: lower it", done.stderr, re.M)


OVERHEAD = """
from dataclasses import dataclass
from ranksearch.cost import MacsCost


@dataclass(frozen=True)
class Overhead(MacsCost):
    '''Two layers in the place of one take longer to start.'''
    unit: str = "ns"
    start: int = 10_000

    def at_rank(self, spec, rank, scheme):
        return spec.macs_at(rank, scheme) + self.start
"""


def test_a_search_may_count_another_cost_than_macs(tmp_path: Path) -> None:
    (tmp_path / "mycost.py").write_text(OVERHEAD)
    done = call(tmp_path, "cost._target_=mycost.Overhead", "constraint.speedup=1.2", "finalize.time_batches=[2]")
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
    assert re.search(r"finalize: by the clock, batch 2: .* [\d.]+x \+- \d+ %", done.stdout)
    assert "By the clock" in (study / "report.html").read_text()
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
    assert "fine_tune: mytuning.replace failed" in done.stderr


def test_what_a_search_ends_with_can_be_exported(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = call(ran[0], "task=export")
    assert done.returncode == 0, done.stderr
    file = ran[0] / "outputs" / STUDY / "best" / "export" / "plain" / "network.py"
    assert f"export: written to outputs/{file.relative_to(ran[0] / 'outputs')}" in done.stdout
    network = ranksearch.load(ran[0] / "outputs" / STUDY / "best")
    scope: dict[str, Any] = {"__name__": "there", "__file__": str(file)}
    exec(file.read_text(), scope)
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(scope["load"]()(images), network(images))


def test_the_run_says_where_and_in_which_precision_it_runs(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    said = ran[1].stdout.splitlines()
    assert re.fullmatch(r"device: cpu \(.+, \d+ threads\)", said[0])
    assert "fine-tuning: in float32" in said


def test_the_run_says_what_it_was_made_with(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder = ran[0] / "outputs" / STUDY
    record, plan = (json.loads((folder / name).read_text()) for name in ("run.json", "best/plan.json"))
    assert record["versions"]["torch"] == torch.__version__
    assert (record["seed"], record["device"]["type"]) == (0, "cpu")
    assert record["settings"]["fine_tune"]["steps"] == 2
    assert record["settings_hash"] == plan["settings_hash"]
    data = record["data"]
    assert data["train"] + data["validation"] + data["test"] == 1797
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert head.returncode != 0 or record["git_revision"].removesuffix("+") == head.stdout.strip()


def test_the_report_and_the_log_say_how_to_load_the_network(
    ran: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    page = (ran[0] / "outputs" / STUDY / "report.html").read_text()
    assert f"ranksearch.load(&#34;outputs/{STUDY}/best&#34;)" in page
    assert f'load it with ranksearch.load("outputs/{STUDY}/best")' in ran[1].stdout


def test_a_report_is_made_at_any_time_from_the_study_alone(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder = ran[0] / "outputs" / STUDY
    files = {name: (folder / name).read_bytes() for name in ("report.html", "front.json", "trials.csv")}
    for name in files:
        (folder / name).unlink()
    done = call(ran[0], "task=report", "quiet=true", small=[])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {name: (folder / name).read_bytes() for name in files} == files
    logs = (folder / "runs").glob("*/ranksearch.log")
    assert any("written to" in log.read_text() and "device:" not in log.read_text() for log in logs)
    done = call(ran[0], "task=report", "study.name=resnet20-digits-1.5x", small=[])
    assert done.returncode == 2
    assert done.stderr == f"ranksearch: there is no study 'resnet20-digits-1.5x' in this storage: use {STUDY}\n"


def test_running_again_continues_and_reads_neither_baseline_nor_test_split_again(
    ran: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    first = call(tmp_path, "study.n_trials=2")
    best = tmp_path / "outputs" / STUDY / "best" / "plan.json"
    written = best.stat().st_mtime_ns
    more = call(tmp_path, "study.n_trials=3")
    assert (first.returncode, more.returncode) == (0, 0)
    assert "2 of 3 trials finished" in more.stdout
    assert "baseline: read from" in more.stdout
    assert "already holds trial" in more.stdout or best.stat().st_mtime_ns != written
    assert re.findall(r"^trial (\d) \(", more.stdout, re.M) == ["2"]
    assert scores(tmp_path) == scores(ran[0])  # a run without a stop, from the same seed
    done = call(tmp_path, "study.n_trials=3")
    assert "3 of 3 trials finished" in done.stdout
    assert "already holds trial" in done.stdout


def scores(folder: Path) -> list[tuple[str, ...]]:
    columns = ("number", "state", "validation_accuracy", "macs", "validation_loss", "plan")
    with (folder / "outputs" / STUDY / "trials.csv").open(newline="") as file:
        return [tuple(row[name] for name in columns) for row in csv.DictReader(file)]


def test_ctrl_c_ends_soon_keeps_what_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("study.n_trials=500"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C, these tests perhaps among them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("trial 2 "):
            break
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait() == 130
    assert time.monotonic() - asked < 30  # a hang, not a slow machine
    assert "run the same command again to go on" in rest
    assert "Traceback" not in rest
    kept = [row for row in scores(tmp_path) if row[1] == "COMPLETE"]
    assert len(kept) >= 3
    assert (tmp_path / "outputs" / STUDY / "front.json").exists()
    done = call(tmp_path, f"study.n_trials={len(kept) + 1}")
    assert done.returncode == 0
    assert [row for row in scores(tmp_path) if row[1] == "COMPLETE"][: len(kept)] == kept


def test_a_multirun_makes_a_study_of_each_combination(tmp_path: Path) -> None:
    done = call(tmp_path, "-m", "constraint.speedup=2,3", "study.n_trials=2")
    assert done.returncode == 0, done.stderr
    names = optuna.get_all_study_names(f"sqlite:///{tmp_path / 'outputs' / 'ranksearch.db'}")
    assert sorted(names) == ["resnet20-digits-2.0x-s0", "resnet20-digits-3.0x-s0"]
    assert all((tmp_path / "outputs" / name / "best" / "plan.json").exists() for name in names)
    done = call(tmp_path, "task=report", f"study.name=[{','.join(names)}]", small=[])
    assert done.returncode == 0, done.stderr
    assert re.search(r"^study +counts +dense +at 1.5x .* hypervolume$", done.stdout, re.M)
    assert all(re.search(rf"^{name} +MACs +.*%", done.stdout, re.M) for name in names)
    compared = tmp_path / "outputs" / "+".join(names)
    assert all(name in (compared / "comparison.html").read_text() for name in names)
    assert (compared / "fronts.svg").exists()


def test_accuracy_alone_may_be_the_objective(tmp_path: Path) -> None:
    done = call(tmp_path, "objective=accuracy", "pruner=median")
    assert done.returncode == 0, done.stderr
    assert len(scores(tmp_path)) == 3
    again = call(tmp_path)
    assert again.returncode == 2
    assert "was made with other settings (objective: accuracy before, front now)" in again.stderr


@pytest.mark.parametrize(
    ("sampler", "proxy"),
    [
        ("random", "fisher"),
        pytest.param("tpe", "mixed", marks=pytest.mark.slow),
        pytest.param("nsgaii", "probes", marks=pytest.mark.slow),
    ],
)
def test_other_samplers_and_proxies_serve(tmp_path: Path, sampler: str, proxy: str) -> None:
    done = call(tmp_path, f"sampler={sampler}", f"proxy={proxy}")
    assert done.returncode == 0, done.stderr
    assert [row[1] for row in scores(tmp_path)] == ["COMPLETE"] * 3


BAD = {
    "model=resnet5": r"model=resnet5 does not exist: use one of .*resnet18, resnet20",
    "modle=resnet50": r"'modle' is not a key of the configuration: use model",
    "fine_tune.stepz=3": r"'fine_tune.stepz' is not a key of the configuration: use steps",
    "model.wieghts=x": r"'model.wieghts' is not a key of the configuration: use ",
    "+extra=3": r"extra=3 is not a key of the configuration: take it out",
    "study.n_trials=many": r"study.n_trials=many: Value 'many' .* Integer",
    "study.n_trials=0": r"study.n_trials=0 leaves nothing to do: use 1 or more",
    "study.n_trials": r"study.n_trials",
    "constraint.speedup=0.5": r"constraint.speedup=0.5 is below 1",
    "constraint.speedup=100": r"constraint.speedup=100 exceeds [\d.]+, the highest that the space reaches",
    "space.rules=[{match: layer9.*, keep: dense}]": r"'layer9.\*' matches no layer: did you mean 'layer",
    "space.rules=[{match: layer1.*, low: 0}]": r"latent size 0 is out of range: give an int >= 1, or a fraction",
    "space.rules=[{match: layer1.*, high: 1.5}]": r"latent size 1.5 is out of range",
    "space.rules=[{match: layer1.*, low: 40}]": r"40 for 'layer1.0.conv1' exceeds .* rank 23 of scheme 'vertical'",
    "space.rules=[{match: layer1.*, schemes: [diagonal]}]": r"scheme 'diagonal' is unknown: use one of full, vertical",
    "space.rules=[{match: layer1.*, schemes: []}]": r"'layer1.\*' has no schemes: name some of full, vertical",
    "space.rules=[{match: layer1.*, lwo: 4}]": r"'lwo' is not a key of the configuration: use low",
    "space.stem=maybe": r"space.stem=maybe is unknown: use dense or search",
    "fine_tune.learning_rate=0": r"fine_tune.learning_rate=0(.0)? is out of range: use above 0",
    "model=torchvision": r"model.(name|architecture) is not set: add model.(name|architecture)=",
    "model=torchvision model.name=resnet51": r"torchvision has no model 'resnet51': use .*resnet50",
    "dataset=fake dataset.images=9": r"dataset.images=9 leave some class out: use 40 or more",
    "dataset=imagenet": r"dataset.root is not set: add dataset.root=",
    "dataset=imagenet dataset.root=/nowhere": r"root=/nowhere lacks the folder 'train': expected /nowhere/train",
    "dataset._target_=nowhere.build": r"dataset._target_=nowhere.build cannot be imported",
    "sampler._target_=nowhere.Sampler": r"sampler._target_=nowhere.Sampler cannot be imported",
    "model.depth=21": r"model.depth=21 is not 6n \+ 2",
    "device=quantum": r"device=quantum cannot be used",
    "task=dance": r"task=dance is unknown: use search, finalize, profile, export",
    "model._target_=collections.Counter ~model.depth": r"_target_=collections.Counter gives a Counter: it must",
    "dataset._target_=collections.Counter": r"collections.Counter gives a Counter: it must give a Splits",
    "pruner=median": r"pruner=MedianPruner cannot serve two objectives: use pruner=none, or objective=accuracy",
    "pruner=median objective=accuracy fine_tune=none": r"pruner=MedianPruner has nothing to judge",
    "task=export format=tensorflow": r"format=tensorflow is unknown: use plain, torch_export, onnx, state_dict",
    "task=finalize": r"there is no study 'resnet20-digits-1.5x-s0' to finalize a trial of in outputs\S*db: name its",
    "task=report": r"there is no study 'resnet20-digits-1.5x-s0' to report on in outputs\S*db: name its",
    "task=dashboard": r"there is no study 'resnet20-digits-1.5x-s0' to look at in outputs\S*db: name its",
    "task=report study.name=2024": r"there is no study '2024' to report on",
    "study.name=[a,b]": r"study.name=a, b are several: give one, or compare them with task=report",
    "dashboard.port=99999": r"dashboard.port=99999 is out of range: use 0 to 65535",
    "task=export": r"plan.json does not exist: name the folder that a search wrote",
    "pick.trial=1 pick.speedup=2": r"pick.trial=1 cannot go with speedup: give one of them",
    "objective=speed": r"objective=speed is unknown: use front, accuracy",
    "pruning.rungs=[1.5]": r"pruning.rungs=\[1.5\] are out of range: use shares from 0 to below 1",
    "+sampler.layer_spread=0": r"sampler.layer_spread=0 is out of range: use a number above 0",
    "fine_tune.autocast=half": r"fine_tune.autocast=half is unknown: use auto, off, bfloat16",
    "fine_tune.steps=many": r"fine_tune.steps=many: Value 'many' .* Integer",
    "fine_tune=none fine_tune.stepz=3": r"'fine_tune.stepz' is not a key of the configuration: use steps",
    "fine_tune._target_=collections.Counter": r"fine_tune._target_",
    "+fine_tune._target_=collections.Counter": r"fine_tune",
    "proxy=fihser": r"proxy=fihser does not exist: use one of fisher, mixed, probes, relative",
    "proxy=fisher proxy.power=2": r"proxy.power=2 is out of range: use 0 to 1",
    "space.multiple_of=0": r"space.multiple_of=0 is out of range: use 1 or more",
    "calibration.sequential_images=1": r"calibration.sequential_images=1 is too few: use 2 or more, or 0",
    "seed=-1": r"seed=-1 is out of range: use 0 to",
    "seed=99999999999999999999": r"seed=99999999999999999999 is out of range",
    "dataset.image_size=big": r"dataset: ranksearch.image_sets.digits failed",
    "fine_tune.label_smoothing=2": r"fine_tune.label_smoothing=2.0 is out of range: use 0 to 1",
    "study.name=../elsewhere": r"study.name=../elsewhere cannot name a folder",
    "sampler=random sampler._target_=optuna.samplers.CmaEsSampler": r"sampler=CmaEsSampler cannot serve this search",
    "storage._target_=builtins.dict": r"storage._target_=builtins.dict gives a dict: it must give a BaseStorage",
    "cost=latency latency.dtype=float8": r"latency.dtype=float8 is unknown: use float32, bfloat16, float16",
    "latency.batch_size=0": r"latency.batch_size=0 is out of range: use 1 or more",
    "finalize.time_batches=[0]": r"finalize.time_batches=\[0\] are out of range: use 1 or more",
    "cost._target_=builtins.dict": r"cost._target_=builtins.dict gives a dict: it must give a CostModel",
    "outputs=/proc/nowhere": r"/proc/nowhere\S* cannot be written",
    "~model._target_": r"model has no _target_",
    "space.rules=[{match: conv1, low: 40}]": r"latent size 40 for 'conv1' exceeds its break-even rank",
    "model=resnet50 model.weights=IMAGENET1K_V9": r"IMAGENET1K_V9 is unknown for resnet50: use one of IMAGENET1K_V1",
}


@pytest.mark.parametrize("wrong", BAD)
def test_bad_input_ends_with_2_one_line_and_nothing_written(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [wrong] if "[" in wrong else wrong.split()
    monkeypatch.setattr(sys, "argv", ["ranksearch", *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        main()
    GlobalHydra.instance().clear()
    said = capfd.readouterr().err.strip()
    assert ended.value.code == 2
    assert re.fullmatch(rf"ranksearch: [^\n]*{BAD[wrong]}[^\n]*", said)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("in the way")
    done = call(tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"ranksearch: \S*outputs\S* cannot be written \(.*\): choose another folder.*\n", done.stderr)


@pytest.mark.parametrize("where", ["write_report", pytest.param("write_trials", marks=pytest.mark.slow)])
def test_a_full_disk_loses_nothing_that_finished(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["ranksearch", *SMALL])
    monkeypatch.setattr(ranksearch.artifacts, where, full)
    with pytest.raises(SystemExit) as ended:
        main()
    GlobalHydra.instance().clear()
    assert ended.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        "ranksearch: the disk of outputs is full, what finished is kept: make room and run this again"
    )
    monkeypatch.undo()
    done = call(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 trials finished" in done.stdout
    assert "already holds trial" in done.stdout


def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "outputs" / "ranksearch.db").mkdir(parents=True)
    done = call(tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(
        r"ranksearch: the study database \S*ranksearch.db cannot be opened .*: move it away.*\n", done.stderr
    )
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["ranksearch.db"]


def test_a_wrong_command_shows_no_traceback(tmp_path: Path) -> None:
    done = call(tmp_path, "constraint.speedup=100")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_fine_tuning_fails_the_trials_and_says_so(tmp_path: Path) -> None:
    done = call(tmp_path, "fine_tune.learning_rate=1e30", "fine_tune.max_gradient_norm=1e30")
    assert done.returncode == 2
    assert [row[1] for row in scores(tmp_path)] == ["FAIL"] * 3
    assert re.fullmatch(r"ranksearch: none of 3 trials completed \(the last: the loss .*\n", done.stderr)


def test_what_stands_behind_the_environment_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    done = call(tmp_path, "storage.path=${oc.env:SECRET}.db", "study.n_trials=1")
    assert done.returncode == 0, done.stderr
    texts = [
        file for file in (tmp_path / "outputs").rglob("*") if file.suffix in (".html", ".json", ".yaml", ".log", ".csv")
    ]
    assert len(texts) > 5
    assert not any("hunter2" in file.read_text() for file in texts)


def test_a_network_that_is_not_whole_is_made_again(
    ran: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    shutil.copytree(ran[0] / "outputs", tmp_path / "outputs")
    weights = tmp_path / "outputs" / STUDY / "best" / "model.safetensors"
    weights.unlink()
    assert call(tmp_path, "study.n_trials=1").returncode == 0
    assert weights.exists()
    (tmp_path / "outputs" / "ranksearch.db").unlink()
    done = call(tmp_path, "study.n_trials=1", "fine_tune.learning_rate=0.03")
    assert "finalize: fine-tuning trial 0" in done.stdout

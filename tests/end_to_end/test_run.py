"""One run from its beginning to its artifacts."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import optuna
import pytest
import torch
from conftest import ROOT
from runs import STUDY, Ran, call

import ranksearch
import ranksearch.report.artifacts
from ranksearch.cost.macs import count_macs
from ranksearch.plan import SCHEMES
from ranksearch.report.artifacts import COLUMNS


def test_a_run_ends_well_and_says_what_it_did(ran: Ran) -> None:
    folder, done = ran
    assert done.returncode == 0, done.stderr
    assert "no pretrained weights requested, so resnet20 on digits is trained from scratch" in done.stdout
    assert len(re.findall(r"^trial \d+ \(\d of 3\): [\d.]+% at [\d.]+x in .* s left$", done.stdout, re.M)) == 3
    assert re.search(r"^dense +[\d.]+ M +1.00x .*%.*%$", done.stdout, re.M)
    assert re.search(r"^picked: trial \d .*%.*%$", done.stdout, re.M)
    assert f"written to outputs/{STUDY}: trials.csv, front.json, report.html, run.json, best/" in done.stdout
    logs = [log.read_text() for log in (folder / "outputs" / STUDY / "runs").glob("*/ranksearch.log")]
    assert any("picked: trial" in log for log in logs)


def test_json_artifacts_meet_their_schemas(ran: Ran) -> None:
    study = ran[0] / "outputs" / STUDY
    for file, schema in (("front.json", "front-1.json"), ("best/plan.json", "plan-1.json")):
        content = json.loads((study / file).read_text())
        jsonschema.validate(content, json.loads((ROOT / "docs" / "schemas" / schema).read_text()))
    points = json.loads((study / "front.json").read_text())["points"]
    assert [point["macs"] for point in points] == sorted(point["macs"] for point in points)


def test_the_table_of_trials_agrees_with_the_study(ran: Ran) -> None:
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


def test_the_written_network_costs_what_its_plan_says(ran: Ran) -> None:
    best = ran[0] / "outputs" / STUDY / "best"
    plan = json.loads((best / "plan.json").read_text())
    network = ranksearch.load(best)
    assert count_macs(network, plan["input_shape"]) == plan["macs"]
    assert network(torch.zeros(1, *plan["input_shape"])).shape == (1, 10)
    assert plan["dense_macs"] / plan["macs"] >= 1.5


def first_plan(folder: Path) -> dict[str, Any]:
    with (folder / "trials.csv").open(newline="") as file:
        return dict(json.loads(next(csv.DictReader(file))["plan"]))


def test_a_trial_s_parameters_are_the_schemes_of_its_plan(ran: Ran) -> None:
    outputs = ran[0] / "outputs"
    trial = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{outputs / 'ranksearch.db'}").trials[0]
    plan = first_plan(outputs / STUDY)
    assert {entry["scheme"] for entry in plan.values()} - {"full"}
    assert {f"{name}:scheme": entry["scheme"] for name, entry in plan.items()}.items() <= trial.params.items()


@pytest.fixture(scope="module")
def profiled(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What `mode=profile` says and writes, beside a search that is finished."""
    folder = tmp_path_factory.mktemp("profiled")
    shutil.copytree(ran[0] / "outputs", folder / "outputs")
    done = call(folder, "mode=profile")
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "outputs" / STUDY


def profile_rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "profile.csv").open(newline="") as file:
        return {row["layer"]: row for row in csv.DictReader(file)}


def test_the_profile_shows_a_plan_within_the_constraint_and_what_stays_dense(profiled: tuple[str, Path]) -> None:
    said, folder = profiled
    rows = profile_rows(folder)
    planned = {name: row for name, row in rows.items() if row["scheme"] in SCHEMES}
    for name, row in planned.items():
        assert re.search(rf"^{name} .* {row['scheme']} {row['latent_size']} +\d+%", said, re.M)
    whole = rows["whole network"]
    assert int(whole["macs"]) >= 1.5 * int(whole["macs_of_plan"])
    assert rows["conv1"]["scheme"] == "dense"
    assert "space: conv1: dense, space.stem=dense (" in said


def test_no_latent_size_of_the_profile_is_beyond_its_break_even_rank(profiled: tuple[str, Path]) -> None:
    for row in profile_rows(profiled[1]).values():
        if row["scheme"] in SCHEMES:
            assert int(row["latent_size"]) <= int(row[f"break_even_{row['scheme']}"])
        for scheme in SCHEMES:
            if row[f"break_even_{scheme}"]:
                assert int(row[f"break_even_in_time_{scheme}"]) <= int(row[f"break_even_{scheme}"])


def test_what_the_network_saves_is_what_its_layers_save(profiled: tuple[str, Path]) -> None:
    rows = profile_rows(profiled[1])
    whole, *layers = rows.pop("whole network"), *rows.values()
    saved = [int(row["macs"]) - int(row["macs_of_plan"]) for row in (whole, *layers)]
    assert saved[0] == sum(saved[1:]) > 0


def test_the_predicted_front_begins_at_the_constraint(profiled: tuple[str, Path]) -> None:
    with (profiled[1] / "predicted_front.csv").open(newline="") as file:
        speedups = [float(row["speedup"]) for row in csv.DictReader(file)]
    assert speedups == sorted(set(speedups))
    assert speedups[0] >= 1.5


def test_what_a_search_ends_with_can_be_exported(ran: Ran) -> None:
    done = call(ran[0], "mode=export")
    assert done.returncode == 0, done.stderr
    file = ran[0] / "outputs" / STUDY / "best" / "export" / "plain" / "network.py"
    assert f"export: written to outputs/{file.relative_to(ran[0] / 'outputs')}" in done.stdout
    network = ranksearch.load(ran[0] / "outputs" / STUDY / "best")
    scope: dict[str, Any] = {"__name__": "there", "__file__": str(file)}
    exec(file.read_text(), scope)
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(scope["load"]()(images), network(images))


def test_the_run_says_where_and_in_which_precision_it_runs(ran: Ran) -> None:
    said = ran[1].stdout.splitlines()
    assert re.fullmatch(r"device: cpu \(.+, \d+ threads\)", said[0])
    assert "fine-tuning: in float32" in said


def test_the_run_says_what_it_was_made_with(ran: Ran) -> None:
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


def test_the_report_and_the_log_say_how_to_load_the_network(ran: Ran) -> None:
    page = (ran[0] / "outputs" / STUDY / "report.html").read_text()
    assert f"ranksearch.load(&#34;outputs/{STUDY}/best&#34;)" in page
    assert f'load it with ranksearch.load("outputs/{STUDY}/best")' in ran[1].stdout


def test_a_report_is_made_at_any_time_from_the_study_alone(ran: Ran) -> None:
    folder = ran[0] / "outputs" / STUDY
    files = {name: (folder / name).read_bytes() for name in ("report.html", "front.json", "trials.csv")}
    for name in files:
        (folder / name).unlink()
    done = call(ran[0], "mode=report", "quiet=true", small=[])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {name: (folder / name).read_bytes() for name in files} == files
    logs = (folder / "runs").glob("*/ranksearch.log")
    assert any("written to" in log.read_text() and "device:" not in log.read_text() for log in logs)
    done = call(ran[0], "mode=report", "study.name=resnet20-digits-1.5x", small=[])
    assert done.returncode == 2
    assert (
        done.stderr
        == f"ranksearch: there is no study 'resnet20-digits-1.5x' to report on in this storage: use {STUDY}\n"
    )


def test_what_stands_behind_the_environment_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    done = call(tmp_path, "storage.path=${oc.env:SECRET}.db", "study.n_trials=1")
    assert done.returncode == 0, done.stderr
    texts = [
        file for file in (tmp_path / "outputs").rglob("*") if file.suffix in (".html", ".json", ".yaml", ".log", ".csv")
    ]
    assert len(texts) > 5
    assert not any("hunter2" in file.read_text() for file in texts)

"""Any number of processes work on one study: none is in another's way, and what a killed one finished is kept."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import ROOT
from runs import call, command, environment
from servers import PASSWORD, SERVERS, Server

from ranksearch.cli.config import RunConfig
from ranksearch.cli.modes import search
from ranksearch.cli.run_context import RunContext
from ranksearch.device import choose_device
from ranksearch.locks import exclusive, try_exclusive
from ranksearch.storage import journal, sqlite

Start = Callable[[str], Server]
WORKERS = 3
# The default run kills with a file, and joins by a journal, where a launcher starts the workers.
KILLED = ["sqlite", *(pytest.param(storage, marks=pytest.mark.slow) for storage in ("postgresql", "journal", "mysql"))]
JOINED = [pytest.param(storage, marks=pytest.mark.slow) for storage in ("postgresql", "sqlite", "journal", "mysql")]


def kill_at_random(where: str, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    script = [sys.executable, "-W", "error::UserWarning", str(ROOT / "tests" / "support" / "faults.py")]
    done = subprocess.run(
        [*script, where, str(folder), str(kills), str(seed)], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("storage", KILLED)
def test_processes_killed_at_random_lose_and_double_nothing(
    storage: str, kills: int, tmp_path: Path, start_server: Start
) -> None:
    where = start_server(storage).create() if storage in SERVERS else storage
    found = kill_at_random(where, tmp_path, kills, seed=kills)
    assert found["finished"] >= 8, found
    assert found["failed"] == 0, found  # those that were left alone ended well, with nothing mended by hand
    assert found["lost"] == found["told_twice"] == found["duplicates"] == 0, found
    assert found["whole"], found
    assert found["halves"] == [], found
    assert found["running"] == 0, found
    assert 0 <= found["overshoot"] < 4, found  # the trials that were under way
    assert found["closed_form"] == found["queued"] > 0, found


@pytest.mark.parametrize("storage", JOINED)
def test_the_same_command_joins_a_study_and_leaves_it(storage: str, tmp_path: Path, start_server: Start) -> None:
    settings, variables = [f"storage={storage}"], environment()
    if storage in SERVERS:
        url = start_server(storage).create()
        settings, variables = ["storage=rdb"], {**variables, "RANKSEARCH_STORAGE": url}
    started = [
        subprocess.Popen(
            command("study.n_trials=8", "study.name=big", *settings),
            cwd=tmp_path,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(WORKERS)
    ]
    said = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0] * WORKERS, said
    folder = tmp_path / "outputs"
    written = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    assert not any(PASSWORD.encode() in content for content in written)
    assert PASSWORD not in str(said)
    assert len(list((folder / "cache").glob("baseline-*.safetensors"))) == 1
    trained = sum("training the dense network" in out for out, _ in said)
    assert trained == 1
    finalized = sum("finalize: fine-tuning trial" in out for out, _ in said)
    assert 1 <= finalized <= WORKERS
    assert sum("another process is finalizing the study" in out for out, _ in said) + finalized == WORKERS
    assert (folder / "big" / "best" / "model.safetensors").exists()
    where: Any = variables.get("RANKSEARCH_STORAGE")
    if storage not in SERVERS:
        opened = {"sqlite": sqlite, "journal": journal}[storage]
        where = opened(str(folder / ("ranksearch.db" if storage == "sqlite" else "ranksearch.journal")))
    study = optuna.load_study(study_name="big", storage=where)
    completed = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    plans = {json.dumps(trial.params, sort_keys=True) for trial in completed}
    assert len(plans) == len(completed)
    assert 8 <= sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials) <= 8 + WORKERS - 1
    assert sum(trial.user_attrs.get("closed_form", False) for trial in completed) == 2
    for held in (where, getattr(study._storage, "_backend", None)):
        if hasattr(held, "engine"):
            study._storage.remove_session()
            held.engine.dispose()


def test_a_password_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_STORAGE", f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/mine")
    done = call(tmp_path, "storage=rdb")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "postgresql at 127.0.0.1, database 'mine', cannot be opened" in done.stderr
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(PASSWORD.encode() in content for content in (*written, done.stdout.encode(), done.stderr.encode()))


def test_a_password_on_the_command_line_is_refused(tmp_path: Path) -> None:
    url = f"storage.url=postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/mine"
    done = call(tmp_path, "storage=rdb", url)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "holds a password" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_address_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKSEARCH_STORAGE", raising=False)
    done = call(tmp_path, "storage=rdb")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "RANKSEARCH_STORAGE" in done.stderr


def test_one_process_holds_a_lock_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    path, order = tmp_path / "a folder" / "lock", tmp_path / "order"
    code = f"""
import pathlib, sys
from ranksearch.locks import exclusive, try_exclusive
path, order = pathlib.Path({str(path)!r}), pathlib.Path({str(order)!r})
with try_exclusive(path) as ours:
    assert not ours
print("locked", flush=True)
with exclusive(path, "holds it"):
    order.write_text(order.read_text() + "mine ")
    print("mine", flush=True)
    sys.stdin.read()
"""
    with try_exclusive(path) as ours:
        assert ours
        other = subprocess.Popen(
            [sys.executable, "-c", code], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "locked\n"  # however long it takes to start
        time.sleep(1)  # in which it would write, if it did not wait
        order.write_text("ours ")
    assert other.stdout.readline() == "mine\n"
    assert order.read_text() == "ours mine "
    with try_exclusive(path) as ours:
        assert not ours
    other.kill()
    with exclusive(path, "holds it"):
        other.wait()
    other.stdin.close()
    other.stdout.close()


def test_gpus_are_dealt_out_by_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.empty", lambda *args, **kwargs: None)
    assert [str(choose_device("auto", worker)) for worker in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert str(choose_device("cuda:1", 2)) == "cuda:1"


LAUNCHED = [
    pytest.param(["hydra/launcher=workers", "hydra.launcher.n_jobs=2"], id="joblib"),
    pytest.param(
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"], id="submitit_local", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_launchers_start_workers_of_one_study(launcher: list[str], tmp_path: Path) -> None:
    overrides = ["worker=range(0,2)", "study.name=big", "study.n_trials=6", "storage=journal", *launcher]
    done = subprocess.run(command("-m", *overrides), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    study = optuna.load_study(study_name="big", storage=journal(str(tmp_path / "outputs" / "ranksearch.journal")))
    assert 6 <= sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials) <= 6 + 1
    [table] = (tmp_path / "outputs" / "sweeps").glob("*/sweep.csv")
    assert {line.split(",")[0] for line in table.read_text().splitlines()} == {"job", "0", "1"}
    assert (tmp_path / "outputs" / "big" / "best" / "model.safetensors").exists()


def test_a_sweep_is_summed_up_and_no_failed_job_takes_others_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up = search.set_up

    def prepared(config: RunConfig, launch: Any) -> RunContext:
        if config.constraint.speedup == 2:
            raise ZeroDivisionError("a fault of ours")
        return set_up(config, launch)

    monkeypatch.setattr(search, "set_up", prepared)
    done = call(tmp_path, "-m", "constraint.speedup=1.5,1000,2,3", "study.n_trials=2")
    assert done.returncode == 1  # which nobody foresaw
    assert re.search(r"job 1 \(constraint.speedup=1000\) failed: constraint.speedup=1000 exceeds", done.stderr)
    assert "job 2 (constraint.speedup=2) failed: ZeroDivisionError: a fault of ours" in done.stderr
    assert "2 of 4 jobs failed" in done.stderr
    [folder] = (tmp_path / "outputs" / "sweeps").iterdir()
    assert "Traceback" in (folder / "2" / "ranksearch.log").read_text()
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    ends = {row["job"]: row["status"] for row in rows}
    assert ends == {"0": "done", "1": "failed", "2": "failed", "3": "done"}
    assert all(float(row["speedup"]) >= 3 for row in rows if row["job"] == "3")
    names = ["resnet20-digits-1.5x-s0", "resnet20-digits-3.0x-s0"]
    for study in names:
        front = json.loads((tmp_path / "outputs" / study / "front.json").read_text())
        assert sum(row["study"] == study for row in rows) == len(front["points"])
        assert study in (folder / "sweep.html").read_text()
    assert "exceeds" in (folder / "sweep.html").read_text()
    done = call(tmp_path, "mode=report", f"study.name=[{','.join(names)}]", small=[])
    assert done.returncode == 0, done.stderr
    assert re.search(r"^study +counts +dense +at 1.5x .* hypervolume$", done.stdout, re.M)
    assert all(re.search(rf"^{name} +MACs +.*%", done.stdout, re.M) for name in names)
    compared = tmp_path / "outputs" / "+".join(names)
    assert all(name in (compared / "comparison.html").read_text() for name in names)
    assert (compared / "fronts.svg").exists()


def test_a_fault_of_ours_ends_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> RunContext:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(search, "set_up", broken)
    with pytest.raises(ZeroDivisionError):  # which Python ends with 1, and shows
        call(tmp_path)


@pytest.mark.slow
def test_two_processes_calibrate_alike_to_the_last_bit() -> None:
    code = """
import hashlib
from faults import make_context
from ranksearch.allocation.closed_form import closed_form
context = make_context()
[plan] = closed_form(context, [context.budget])
seen = hashlib.sha256(repr((sorted(context.errors.items()), plan.to_json())).encode())
for name, value in context.build(plan).state_dict().items():
    seen.update(name.encode() + value.numpy().tobytes())
print(len(context.errors), seen.hexdigest())
"""
    variables = {**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'support'}"}
    script = [sys.executable, "-W", "ignore", "-c", code]
    said = [subprocess.run(script, env=variables, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert said[0] == said[1]
    assert int(said[0].split()[0]) > 1

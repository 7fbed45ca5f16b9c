"""What ends a trial or its process on the way costs no other, and nothing that finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from servers import Server
from sqlalchemy.exc import OperationalError
from studies import SETTINGS, start

from ranksearch.errors import DivergedError
from ranksearch.results.trials import count_finished, read_trials
from ranksearch.storage import rdb, sqlite
from ranksearch.study import loop
from ranksearch.study.context import SearchContext
from ranksearch.study.create import open_study
from ranksearch.study.evaluate import evaluate_plan


def break_the_second(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the second plan's evaluation raise an error, and all others do their work."""
    calls = []

    def sometimes(*args: Any, **options: Any) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise error
        return evaluate_plan(*args, **options)

    monkeypatch.setattr(loop, "evaluate_plan", sometimes)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DivergedError("the loss became nan at step 1 of 2: lower learning_rate"), "nan at step 1"),
        (torch.OutOfMemoryError("no room"), "out of memory (no room): lower"),
    ],
)
def test_what_breaks_a_trial_fails_it_and_no_other(
    error: Exception, reason: str, context: SearchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    break_the_second(monkeypatch, error)
    records = read_trials(start(context, 4))
    assert [record.state for record in records] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert reason in records[1].reason


def test_an_interrupted_trial_is_not_counted_and_its_plan_comes_first_again(
    context: SearchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = open_study("s", InMemoryStorage(), SETTINGS)
    break_the_second(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        start(context, 3, study)
    assert count_finished(study.trials) == 1
    start(context, 3, study)
    records = read_trials(study)
    assert [record.state for record in records] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert count_finished(study.trials) == 3
    assert records[2].closed_form
    assert study.trials[2].params == study.trials[1].params


def test_a_killed_process_loses_no_finished_trial(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import optuna, time
        from ranksearch.study.create import open_study
        from ranksearch.storage import sqlite

        study = open_study("s", sqlite({str(tmp_path / "db")!r}), {{}})
        def objective(trial):
            trial.suggest_int("layer", 1, 10)
            if trial.number == 5:
                print("ready", flush=True)
                time.sleep(60)
            return 0.5, 1.0
        study.optimize(objective, n_trials=10)
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    states = [trial.state.name for trial in open_study("s", sqlite(str(tmp_path / "db")), {}).trials]
    assert states == ["COMPLETE"] * 5 + ["RUNNING"]


@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
@pytest.mark.parametrize("fault", ["stopped", pytest.param("held still", marks=pytest.mark.slow)])
def test_a_server_that_is_away_in_the_middle_of_a_trial_costs_no_trial(
    context: SearchContext, server: Server, fault: str, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, back = (server.stop, server.resume) if fault == "stopped" else (server.freeze, server.thaw)
    calls: list[object] = []
    later = threading.Timer(seconds, back)

    def interrupted(*args: Any, **options: Any) -> object:
        calls.append(args)
        if len(calls) == 2:
            away()
            later.start()
        return evaluate_plan(*args, **options)

    monkeypatch.setattr(loop, "evaluate_plan", interrupted)
    storage = rdb(server.create(), heartbeat_seconds=1)
    study = start(context, 3, open_study("s", storage, SETTINGS))
    later.join()
    assert [record.state for record in read_trials(study)] == ["COMPLETE"] * 3
    assert len(calls) == 3
    storage.remove_session()
    storage.engine.dispose()


def test_a_trial_that_a_lost_connection_ends_is_tried_again(
    context: SearchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off = StorageInternalError()
    cut_off.__cause__ = OperationalError("SELECT", {}, Exception("terminating connection"), connection_invalidated=True)
    break_the_second(monkeypatch, cut_off)
    study = start(context, 3)
    states = [record.state for record in read_trials(study)]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].params in [trial.params for trial in study.trials[2:]]


def test_a_result_that_a_lost_connection_takes_does_not_end_the_worker(
    context: SearchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study("s", InMemoryStorage(), SETTINGS)
    told, tell = [], study._storage.set_trial_state_values

    def cut_off(trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        told.append(state)
        if told.count(TrialState.COMPLETE) == 2 and state == TrialState.COMPLETE:
            lost = OperationalError("UPDATE", {}, Exception("terminating connection"), connection_invalidated=True)
            raise StorageInternalError from lost
        return tell(trial_id, state, values)

    monkeypatch.setattr(study._storage, "set_trial_state_values", cut_off)
    start(context, 3, study)
    assert sorted(record.state for record in read_trials(study)) == ["COMPLETE"] * 3 + ["RUNNING"]

"""A study keeps what finished, continues, and never lets an infeasible plan touch a weight."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import optuna
import pytest
import torch
from optuna import Study
from optuna.exceptions import StorageInternalError
from optuna.pruners import ThresholdPruner
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from servers import Server
from sqlalchemy.exc import OperationalError
from torch import nn

from ranksearch import search
from ranksearch.closed_form import closed_form_budgets
from ranksearch.errors import DivergedError, UserError
from ranksearch.plan import RankPlan
from ranksearch.problem import Problem
from ranksearch.pruning import PruningSettings
from ranksearch.records import TrialRecord, finished, front, read_trials
from ranksearch.search import closed_form_plans, queue_closed_form, run_trials
from ranksearch.storage import rdb, sqlite
from ranksearch.study import OBJECTIVES, StudySettings, open_study
from ranksearch.training import Recipe
from ranksearch.trial import TrialResult, evaluate_plan

SETTINGS = {"model": {"depth": 8}, "seed": 0}


def start(problem: Problem, n_trials: int, study: Study | None = None, closed_form: int = 2) -> Study:
    study = study or open_study("s", InMemoryStorage(), SETTINGS)
    settings = StudySettings("s", n_trials, closed_form)
    queue_closed_form(study, problem, settings)
    run_trials(study, problem, settings, RandomSampler(seed=0), lambda record: None)
    return study


def test_the_closed_form_comes_first_at_budgets_from_the_constraint_down(problem: Problem) -> None:
    study = open_study("s", InMemoryStorage(), SETTINGS)
    plans = closed_form_plans(study, problem, closed_form_budgets(problem.space, problem.budget, 4))
    costs = [problem.space.cost.of(plan) for plan in plans]
    assert costs == sorted(costs, reverse=True)
    assert 0.9 * problem.budget < costs[0] <= problem.budget
    records = read_trials(start(problem, 6, closed_form=4))
    assert [record.closed_form for record in records] == [True] * 4 + [False] * 2
    assert [record.result.plan for record in records[:4] if record.result] == plans


def test_a_study_that_goes_on_does_not_compare_plans_again(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    study, budgets = open_study("s", InMemoryStorage(), SETTINGS), closed_form_budgets(problem.space, problem.budget, 2)
    plans = closed_form_plans(study, problem, budgets)
    monkeypatch.setattr("ranksearch.search.closed_form", None)
    assert closed_form_plans(study, problem, budgets) == plans


def test_every_trial_records_the_plan_that_it_built(problem: Problem) -> None:
    study = start(problem, 4)
    for trial, record in zip(study.trials, read_trials(study), strict=True):
        assert record.result is not None
        assert record.feasible
        assert problem.space.plan(trial.params) == record.result.plan
        assert trial.values == [record.result.accuracy, record.result.cost]
        assert record.result.cost == problem.space.cost.of(record.result.plan) <= problem.budget
        assert record.result.speedup == problem.space.cost.dense / record.result.cost


def test_the_same_seed_repeats_the_same_numbers(problem: Problem) -> None:
    def numbers() -> list[object]:
        results = [record.result for record in read_trials(start(problem, 4))]
        return [dataclasses.replace(result, seconds={}) for result in results if result is not None]

    assert numbers() == numbers()


def test_a_study_continues_up_to_its_total(problem: Problem, tmp_path: Path) -> None:
    def again(n_trials: int) -> Study:
        return start(problem, n_trials, open_study("s", sqlite(str(tmp_path / "db")), SETTINGS))

    first = [trial.values for trial in again(3).trials]
    study = again(5)
    assert [trial.values for trial in study.trials[:3]] == first
    assert finished(study.trials) == len(study.trials) == 5
    assert len(again(5).trials) == 5


@pytest.mark.parametrize("kind", ["infeasible", "outside the space", "outside the space: 'diagonal'"])
def test_plans_that_may_not_be_built_are_pruned_untouched(
    problem: Problem, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study("s", InMemoryStorage(), SETTINGS)
    values = problem.space.values(RankPlan())
    if kind == "outside the space":
        values[next(iter(values))] = -5
    if "diagonal" in kind:
        values[next(name for name in values if name.endswith(":scheme"))] = "diagonal"
    study.enqueue_trial(values)
    monkeypatch.setattr(search, "evaluate_plan", lambda *args: pytest.fail("a weight was touched"))
    # Optuna warns of an enqueued value that no sampler would draw.
    with pytest.warns(UserWarning, match="out of range") if kind == "outside the space" else nullcontext():
        start(problem, 1, study, closed_form=0)
    [record] = read_trials(study)
    assert record.state == "PRUNED"
    assert not record.feasible
    assert record.reason.startswith(kind)
    assert front([record]) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DivergedError("the loss became nan at step 1 of 2: lower learning_rate"), "nan at step 1"),
        (torch.OutOfMemoryError("no room"), "out of memory (no room): lower"),
    ],
)
def test_what_breaks_a_trial_fails_it_and_no_other(
    error: Exception, reason: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def sometimes(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise error
        return evaluate_plan(*args)  # type: ignore[arg-type]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    monkeypatch.setattr(search, "evaluate_plan", sometimes)
    records = read_trials(start(problem, 4))
    assert [record.state for record in records] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert reason in records[1].reason


def test_an_interrupted_trial_is_not_counted_and_its_plan_comes_first_again(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate_plan(*args)  # type: ignore[arg-type]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = open_study("s", InMemoryStorage(), SETTINGS)
    monkeypatch.setattr(search, "evaluate_plan", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(problem, 3, study)
    assert finished(study.trials) == 1
    start(problem, 3, study)
    records = read_trials(study)
    assert [record.state for record in records] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert finished(study.trials) == 3
    assert records[2].closed_form
    assert study.trials[2].params == study.trials[1].params


def test_a_killed_process_loses_no_finished_trial(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import optuna, time
        from ranksearch.study import open_study
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
@pytest.mark.parametrize("fault", ["stopped", "held still"])
def test_a_server_that_is_away_in_the_middle_of_a_trial_costs_no_trial(
    problem: Problem, server: Server, fault: str, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, back = (server.stop, server.resume) if fault == "stopped" else (server.freeze, server.thaw)
    calls: list[object] = []
    later = threading.Timer(seconds, back)

    def interrupted(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            away()
            later.start()
        return evaluate_plan(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "evaluate_plan", interrupted)
    storage = rdb(server.create(), heartbeat_seconds=1)
    study = start(problem, 3, open_study("s", storage, SETTINGS))
    later.join()
    assert [record.state for record in read_trials(study)] == ["COMPLETE"] * 3
    assert len(calls) == 3
    storage.remove_session()
    storage.engine.dispose()


def test_a_trial_that_a_lost_connection_ends_is_tried_again(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def cut_off(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            lost = OperationalError("SELECT", {}, Exception("terminating connection"), connection_invalidated=True)
            raise StorageInternalError from lost
        return evaluate_plan(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "evaluate_plan", cut_off)
    study = start(problem, 3)
    states = [record.state for record in read_trials(study)]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].params in [trial.params for trial in study.trials[2:]]


def test_a_result_that_a_lost_connection_takes_does_not_end_the_worker(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
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
    start(problem, 3, study)
    assert sorted(record.state for record in read_trials(study)) == ["COMPLETE"] * 3 + ["RUNNING"]


def record(number: int, accuracy: float, macs: int, feasible: bool = True) -> TrialRecord:
    result = TrialResult(RankPlan(), macs, 1.0, macs, 1, 0.0, accuracy, 0.0, {})
    return TrialRecord(number, "COMPLETE", feasible, False, result, "", 0.0)


def test_one_objective_is_accuracy_at_the_budget(problem: Problem) -> None:
    study = start(problem, 5, open_study("s", InMemoryStorage(), SETTINGS, "accuracy"), closed_form=4)
    assert [len(trial.values) for trial in study.trials] == [1] * 5
    records = read_trials(study)
    assert [record.closed_form for record in records] == [True, False, False, False, False]
    assert study.best_trial.number in {record.number for record in records if record.feasible}
    assert study.best_value == max(record.result.accuracy for record in records if record.result is not None)


def third_behind(problem: Problem, study: Study, monkeypatch: pytest.MonkeyPatch) -> list[TrialRecord]:
    """Three trials, of which the third costs most and falls behind the others at its second rung."""
    started: list[RankPlan] = []

    def behind(
        problem: Problem, plan: RankPlan, recipe: Recipe, rungs: set[int], on_rung: Callable[[int, float], None]
    ) -> tuple[nn.Module, TrialResult]:
        started.append(plan)
        falls = len(started) == 3
        return evaluate_plan(
            problem, plan, recipe, rungs, lambda step, _: on_rung(step, 0.1 if falls and step > 0 else 0.9)
        )

    monkeypatch.setattr(search, "evaluate_plan", behind)
    dearest = problem.space.allocate(problem.errors, problem.budget)
    for plan in (problem.space.cheapest, problem.space.cheapest, dearest):
        study.enqueue_trial(problem.space.values(plan))
    pruning = PruningSettings(rungs=[0.0, 0.5])
    run_trials(study, problem, StudySettings("s", 3, 0), RandomSampler(seed=0), lambda record: None, pruning)
    return read_trials(study)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_trial_well_behind_is_pruned_and_says_against_which(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    study = open_study("s", InMemoryStorage(), SETTINGS, objective)
    records = third_behind(problem, study, monkeypatch)
    assert [record.state for record in records] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert records[2].reason == "well behind: 10.00 % after 1 steps, where trial 1 had 90.00 % and costs no more"
    assert study.trials[2].user_attrs["rungs"] == {"0": 0.9, "1": 0.1}
    assert len(front(records)) == 1


def test_optunas_pruners_serve_one_objective(problem: Problem) -> None:
    study = open_study("s", InMemoryStorage(), SETTINGS, "accuracy")
    study.pruner = ThresholdPruner(lower=1.01)
    pruning = PruningSettings(rungs=[0.5], lead=1.0)
    run_trials(study, problem, StudySettings("s", 2, 1), RandomSampler(seed=0), lambda record: None, pruning)
    records = read_trials(study)
    assert [record.state for record in records] == ["PRUNED", "PRUNED"]
    assert all(record.reason.startswith("ThresholdPruner: ") for record in records)
    assert all(list(trial.intermediate_values) == [1] for trial in study.trials)


def test_looking_on_the_way_changes_no_number(problem: Problem) -> None:
    plan = problem.space.allocate(problem.errors, problem.budget)
    _, plain = evaluate_plan(problem, plan, problem.fine_tuning)
    seen: dict[int, float] = {}
    _, watched = evaluate_plan(problem, plan, problem.fine_tuning, {0, 1}, seen.__setitem__)
    assert list(seen) == [0, 1]
    assert seen[0] == plain.accuracy_before
    assert dataclasses.replace(plain, seconds={}) == dataclasses.replace(watched, seconds={})


def test_a_study_is_continued_with_the_same_settings_only() -> None:
    storage = optuna.storages.InMemoryStorage()
    open_study("this", storage, {"model": {"depth": 8}})
    assert open_study("this", storage, {"model": {"depth": 8, "input_size": None}}).trials == []  # a new key, not set
    for other in ({"model": {"depth": 14}}, {"model": {"depth": 8, "input_size": 32}}, {"model": {}}):
        with pytest.raises(UserError, match=r"made with other settings \(model\."):
            open_study("this", storage, other)

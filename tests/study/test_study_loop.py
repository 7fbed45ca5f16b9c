"""A study keeps what finished, continues, and never lets an infeasible plan touch a weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.pruners import ThresholdPruner
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from studies import SETTINGS, start
from torch import nn

from ranksearch.allocation.closed_form import closed_form_budgets
from ranksearch.allocation.lagrangian import allocate
from ranksearch.errors import UserError
from ranksearch.plan import RankPlan
from ranksearch.results.pareto import pareto_front
from ranksearch.results.trials import FeasibleTrial, TrialRecord, TrialResult, count_finished, read_trials
from ranksearch.storage import sqlite
from ranksearch.study import loop
from ranksearch.study.context import SearchContext
from ranksearch.study.create import open_study
from ranksearch.study.evaluate import evaluate_plan
from ranksearch.study.loop import closed_form_plans, run_trials
from ranksearch.study.settings import OBJECTIVES, PruningSettings, StudySettings
from ranksearch.training.recipe import Recipe


def test_the_closed_form_comes_first_at_budgets_from_the_constraint_down(context: SearchContext) -> None:
    storage = InMemoryStorage()
    open_study("s", storage, SETTINGS)
    plans = closed_form_plans("s", storage, context, closed_form_budgets(context.space, context.budget, 4))
    costs = [context.space.cost.total(plan) for plan in plans]
    assert costs == sorted(costs, reverse=True)
    assert 0.9 * context.budget < costs[0] <= context.budget
    records = read_trials(start(context, 6, closed_form=4))
    assert [record.closed_form for record in records] == [True] * 4 + [False] * 2
    assert [record.result.plan for record in records[:4] if record.result] == plans


def test_a_study_that_goes_on_does_not_compare_plans_again(
    context: SearchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, budgets = InMemoryStorage(), closed_form_budgets(context.space, context.budget, 2)
    open_study("s", storage, SETTINGS)
    plans = closed_form_plans("s", storage, context, budgets)
    monkeypatch.setattr("ranksearch.study.loop.closed_form", None)
    assert closed_form_plans("s", storage, context, budgets) == plans


def test_every_trial_records_the_plan_that_it_built(context: SearchContext) -> None:
    study = start(context, 4)
    for trial, record in zip(study.trials, read_trials(study), strict=True):
        assert record.result is not None
        assert record.feasible
        assert context.space.plan(trial.params) == record.result.plan
        assert trial.values == [record.result.accuracy, record.result.cost]
        assert record.result.cost == context.space.cost.total(record.result.plan) <= context.budget
        assert record.result.speedup == context.space.cost.dense / record.result.cost


def test_the_same_seed_repeats_the_same_numbers(context: SearchContext) -> None:
    def numbers() -> list[object]:
        results = [record.result for record in read_trials(start(context, 4))]
        return [dataclasses.replace(result, seconds={}) for result in results if result is not None]

    assert numbers() == numbers()


def test_a_study_continues_up_to_its_total(context: SearchContext, tmp_path: Path) -> None:
    def again(n_trials: int) -> Study:
        return start(context, n_trials, open_study("s", sqlite(str(tmp_path / "db")), SETTINGS))

    first = [trial.values for trial in again(3).trials]
    study = again(5)
    assert [trial.values for trial in study.trials[:3]] == first
    assert count_finished(study.trials) == len(study.trials) == 5
    assert len(again(5).trials) == 5


@pytest.mark.parametrize("kind", ["infeasible", "outside the space", "outside the space: 'diagonal'"])
def test_plans_that_may_not_be_built_are_pruned_untouched(
    context: SearchContext, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study("s", InMemoryStorage(), SETTINGS)
    values = context.space.values(RankPlan())
    if kind == "outside the space":
        values[next(iter(values))] = -5
    if "diagonal" in kind:
        values[next(name for name in values if name.endswith(":scheme"))] = "diagonal"
    study.enqueue_trial(values)
    monkeypatch.setattr(loop, "evaluate_plan", lambda *args, **_: pytest.fail("a weight was touched"))
    # Optuna warns of an enqueued value that no sampler would draw.
    with pytest.warns(UserWarning, match="out of range") if kind == "outside the space" else nullcontext():
        start(context, 1, study, closed_form=0)
    [record] = read_trials(study)
    assert record.state == "PRUNED"
    assert not record.feasible
    assert record.reason.startswith(kind)
    assert pareto_front([record]) == []


def record(number: int, accuracy: float, macs: int, feasible: bool = True) -> TrialRecord:
    result = TrialResult(RankPlan(), macs, 1.0, macs, 1, 0.0, accuracy, 0.0, {})
    return (FeasibleTrial if feasible else TrialRecord)(number, "COMPLETE", False, result, "", 0.0)


def test_one_objective_is_accuracy_at_the_budget(context: SearchContext) -> None:
    study = start(context, 5, open_study("s", InMemoryStorage(), SETTINGS, "accuracy"), closed_form=4)
    assert [len(trial.values) for trial in study.trials] == [1] * 5
    records = read_trials(study)
    assert [record.closed_form for record in records] == [True, False, False, False, False]
    assert study.best_trial.number in {record.number for record in records if record.feasible}
    assert study.best_value == max(record.result.accuracy for record in records if record.result is not None)


def third_behind(context: SearchContext, study: Study, monkeypatch: pytest.MonkeyPatch) -> list[TrialRecord]:
    """Three trials, of which the third costs most and falls behind the others at its second rung."""
    started: list[RankPlan] = []

    def behind(
        context: SearchContext,
        plan: RankPlan,
        recipe: Recipe,
        *,
        rungs: set[int],
        on_rung: Callable[[int, float], None],
    ) -> tuple[nn.Module, TrialResult]:
        started.append(plan)
        falls = len(started) == 3
        at = lambda step, _: on_rung(step, 0.1 if falls and step > 0 else 0.9)  # noqa: E731
        return evaluate_plan(context, plan, recipe, rungs=rungs, on_rung=at)

    monkeypatch.setattr(loop, "evaluate_plan", behind)
    dearest = allocate(context.space, context.errors, context.budget)
    for plan in (context.space.cheapest, context.space.cheapest, dearest):
        study.enqueue_trial(context.space.values(plan))
    pruning = PruningSettings(rungs=[0.0, 0.5])
    run_trials(study, context, StudySettings("s", 3, 0), RandomSampler(seed=0), lambda record: None, pruning=pruning)
    return read_trials(study)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_trial_well_behind_is_pruned_and_says_against_which(
    context: SearchContext, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    study = open_study("s", InMemoryStorage(), SETTINGS, objective)
    records = third_behind(context, study, monkeypatch)
    assert [record.state for record in records] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert records[2].reason == "well behind: 10.00 % after 1 steps, where trial 1 had 90.00 % and costs no more"
    assert study.trials[2].user_attrs["rungs"] == {"0": 0.9, "1": 0.1}
    assert len(pareto_front(records)) == 1


def test_optunas_pruners_serve_one_objective(context: SearchContext) -> None:
    study = open_study("s", InMemoryStorage(), SETTINGS, "accuracy")
    study.pruner = ThresholdPruner(lower=1.01)
    pruning = PruningSettings(rungs=[0.5], lead=1.0)
    run_trials(study, context, StudySettings("s", 2, 1), RandomSampler(seed=0), lambda record: None, pruning=pruning)
    records = read_trials(study)
    assert [record.state for record in records] == ["PRUNED", "PRUNED"]
    assert all(record.reason.startswith("ThresholdPruner: ") for record in records)
    assert all(list(trial.intermediate_values) == [1] for trial in study.trials)


def test_looking_on_the_way_changes_no_number(context: SearchContext) -> None:
    plan = allocate(context.space, context.errors, context.budget)
    _, plain = evaluate_plan(context, plan, context.fine_tuner)
    seen: dict[int, float] = {}
    _, watched = evaluate_plan(context, plan, context.fine_tuner, rungs={0, 1}, on_rung=seen.__setitem__)
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


@pytest.mark.parametrize(
    ("directions", "attributes", "trials"),
    [
        (["maximize"], {}, 0),
        (["maximize"], {}, 2),
        (["maximize", "minimize"], {}, 2),
        (["minimize", "maximize"], {}, 0),
        (["maximize", "minimize"], {"mine": 1}, 0),
        (["maximize", "minimize"], {"settings": "mine"}, 1),
    ],
)
def test_a_study_of_another_program_is_not_written_to(
    directions: list[str], attributes: dict[str, Any], trials: int
) -> None:
    storage = InMemoryStorage()
    study = optuna.create_study(study_name="mine", storage=storage, directions=directions)
    for key, value in attributes.items():
        study.set_user_attr(key, value)
    study.optimize(lambda trial: [trial.suggest_float("x", 0, 1)] * len(directions), n_trials=trials)

    def state() -> object:
        system = storage.get_study_system_attrs(study._study_id)
        return dict(study.user_attrs), dict(system), [(trial.state, trial.params) for trial in study.trials]

    before = state()
    for _ in range(2):
        with pytest.raises(UserError, match=r"study 'mine' was not made by ranksearch: choose another study\.name"):
            open_study("mine", storage, {"seed": 0})
        assert state() == before


def test_more_closed_form_trials_than_trials_build_no_more_than_are_used(context: SearchContext) -> None:
    budgets = closed_form_budgets(context.space, context.budget, 10**9, first=3)
    assert len(budgets) == 3
    assert budgets == closed_form_budgets(context.space, context.budget, 10**9, first=5)[:3]

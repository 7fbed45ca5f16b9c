"""A small study that was really searched, for tests that look at it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna import Study
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage

from ranksearch.facts import StudyFacts, keep_facts
from ranksearch.guided import GuidedSampler
from ranksearch.plan import LayerSpec
from ranksearch.problem import Problem
from ranksearch.records import TrialRecord, read_trials
from ranksearch.review.dashboard import DashboardPage
from ranksearch.search import queue_closed_form, run_trials
from ranksearch.study import StudySettings, open_study

SETTINGS = {"model": {"depth": 8}, "seed": 0}
COMMAND = "python -m ranksearch model.depth=8"


@dataclass(frozen=True)
class Searched:
    """A study and where it lies."""

    outputs: Path
    storage: BaseStorage
    name: str
    facts: StudyFacts
    trials: int

    @property
    def study(self) -> optuna.Study:
        return optuna.load_study(study_name=self.name, storage=self.storage)

    @property
    def records(self) -> list[TrialRecord]:
        return read_trials(self.study)

    @property
    def folder(self) -> Path:
        return self.outputs / self.name


def invented_facts(names: Iterable[str], fine_tune_steps: int = 0, trials: int = 9) -> StudyFacts:
    """Of a network that costs 100, with layers alike."""
    layers = tuple(LayerSpec(name, "conv2d", 8, 8, 4, (3, 3)) for name in names)
    return StudyFacts(
        "python -m ranksearch",
        "m",
        "d",
        (3, 8, 8),
        layers,
        0.9,
        100,
        100,
        10,
        "MACs",
        2.0,
        50,
        fine_tune_steps,
        0,
        trials,
    )


def search_small(problem: Problem, outputs: Path, storage: BaseStorage, trials: int = 4) -> Searched:
    """Search without any fine-tuning, as the command line does."""
    name = "small"
    problem = replace(problem, fine_tuning=replace(problem.fine_tuning, steps=0))
    study = open_study(name, storage, {"seed": 0})
    settings = StudySettings(name, trials, 2)
    facts = StudyFacts.of(problem, COMMAND, "resnet8", "digits", 1.5, trials)
    keep_facts(study, facts)
    shown = DashboardPage(study, facts, outputs / name, outputs)
    queue_closed_form(study, problem, settings)
    run_trials(
        study,
        problem,
        settings,
        GuidedSampler(0),
        lambda _: shown.refresh_if_due(read_trials(study)),
        on_result=shown.trial,
    )
    shown.refresh()
    return Searched(outputs, storage, name, facts, trials)


def start(problem: Problem, n_trials: int, study: Study | None = None, closed_form: int = 2) -> Study:
    """Search, from the closed form on, with a sampler that knows nothing."""
    study = study or open_study("s", InMemoryStorage(), SETTINGS)
    settings = StudySettings("s", n_trials, closed_form)
    queue_closed_form(study, problem, settings)
    run_trials(study, problem, settings, RandomSampler(seed=0), lambda record: None)
    return study

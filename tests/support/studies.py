"""A small study that was really searched, for tests that look at it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna import Study
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage

from ranksearch.plan import LayerSpec
from ranksearch.report.dashboard import DashboardPage
from ranksearch.results.metadata import StudyMetadata, write_metadata
from ranksearch.results.trials import TrialRecord, read_trials
from ranksearch.samplers.thompson import ThompsonSampler
from ranksearch.study.context import SearchContext
from ranksearch.study.create import open_study
from ranksearch.study.loop import enqueue_closed_form, run_trials
from ranksearch.study.settings import StudySettings

SETTINGS = {"model": {"depth": 8}, "seed": 0}
COMMAND = "python -m ranksearch model.builder.depth=8"


@dataclass(frozen=True)
class Searched:
    """A study and where it lies."""

    outputs: Path
    storage: BaseStorage
    name: str
    metadata: StudyMetadata
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


def invented_facts(names: Iterable[str], fine_tune_steps: int = 0, trials: int = 9) -> StudyMetadata:
    """Of a network that costs 100, with layers alike."""
    layers = tuple(LayerSpec(name, "conv2d", 8, 8, 4, (3, 3)) for name in names)
    return StudyMetadata(
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


def search_small(context: SearchContext, outputs: Path, storage: BaseStorage, trials: int = 4) -> Searched:
    """Search without any fine-tuning, as the command line does."""
    name = "small"
    context = replace(context, fine_tuner=replace(context.fine_tuner, steps=0))
    study = open_study(name, storage, {"seed": 0})
    settings = StudySettings(name, trials, 2)
    metadata = context.describe(command=COMMAND, model="resnet8", dataset="digits", speedup=1.5, trials=trials)
    write_metadata(storage, name, metadata)
    shown = DashboardPage(study, metadata, outputs / name, outputs)
    enqueue_closed_form(study, storage, context, settings)
    run_trials(
        study,
        context,
        settings,
        ThompsonSampler(0),
        lambda _: shown.refresh_if_due(read_trials(study)),
        on_result=shown.trial,
    )
    shown.refresh()
    return Searched(outputs, storage, name, metadata, trials)


def start(context: SearchContext, n_trials: int, study: Study | None = None, closed_form: int = 2) -> Study:
    """Search, from the closed form on, with a sampler that learns nothing."""
    study = study or open_study("s", InMemoryStorage(), SETTINGS)
    settings = StudySettings("s", n_trials, closed_form)
    enqueue_closed_form(study, study._storage, context, settings)
    run_trials(study, context, settings, RandomSampler(seed=0), lambda record: None)
    return study

"""What a search may look at, and what it may touch."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import CPU
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from studies import SETTINGS
from torch.utils.data import Dataset

from ranksearch.results.trials import read_trials
from ranksearch.runtimes.eager import Eager
from ranksearch.study.context import SearchContext, SearchInputs, build_context
from ranksearch.study.create import open_study
from ranksearch.study.finalize import finalize
from ranksearch.study.loop import enqueue_closed_form, run_trials
from ranksearch.study.select_trial import select_trial
from ranksearch.study.settings import CalibrationSettings, FinalizeSettings, PickSettings, StudySettings


class Counting(Dataset[tuple[Any, Any]]):
    """Counts how often an example was read."""

    def __init__(self, examples: Any) -> None:
        self.examples, self.reads = examples, 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.reads += 1
        return self.examples[index]


def test_nothing_before_the_end_reads_a_test_image_and_nothing_touches_the_dense_network(
    base_context: SearchContext, tmp_path: Path
) -> None:
    model, tested = copy.deepcopy(base_context.model), Counting(base_context.splits.test)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    splits = replace(base_context.splits, test=tested)
    look = tested.reads  # of the splits themselves, at one image's shape
    few = CalibrationSettings(64, 16)
    inputs = SearchInputs(model, splits, base_context.space, base_context.budget, base_context.fine_tuner, 0, CPU)
    context, storage, settings = build_context(inputs, few), InMemoryStorage(), StudySettings("s", 2, 1)
    study = open_study("s", storage, SETTINGS)
    enqueue_closed_form(study, storage, context, settings)
    run_trials(study, context, settings, RandomSampler(seed=0), lambda record: None)
    picked = select_trial(read_trials(study), PickSettings(), context.baseline.accuracy)
    assert tested.reads == look <= 1
    builder = {"_target_": "ranksearch.models.cifar_resnet", "depth": 8, "num_classes": 10}
    end = FinalizeSettings(2, repeats=2)
    finalize(context, picked, end, tmp_path, study="s", runtime=Eager(), builder=builder, compared={})
    # Dense, before and after the fine-tuning: once each.
    assert tested.reads == look + 3 * len(tested)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes

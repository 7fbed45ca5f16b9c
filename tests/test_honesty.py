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

from ranksearch.finalize import FinalizeSettings, finalize
from ranksearch.latency import MeasuredLatency
from ranksearch.picking import PickSettings, pick
from ranksearch.problem import CalibrationSettings, Problem, calibrate
from ranksearch.records import read_trials
from ranksearch.search import queue_closed_form, run_trials
from ranksearch.study import StudySettings, open_study


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
    base_problem: Problem, tmp_path: Path
) -> None:
    model, tested = copy.deepcopy(base_problem.model), Counting(base_problem.splits.test)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    splits = replace(base_problem.splits, test=tested)
    look = tested.reads  # of the splits themselves, at one image's shape
    few = CalibrationSettings(64, 16)
    problem = calibrate(model, splits, base_problem.space, few, base_problem.budget, base_problem.fine_tuning, 0, CPU)
    study, settings = open_study("s", InMemoryStorage(), SETTINGS), StudySettings("s", 2, 1)
    queue_closed_form(study, problem, settings)
    run_trials(study, problem, settings, RandomSampler(seed=0), lambda record: None)
    picked = pick(read_trials(study), PickSettings(), problem.baseline.accuracy)
    assert tested.reads == look <= 1
    builder = {"_target_": "ranksearch.models.cifar_resnet", "depth": 8, "num_classes": 10}
    finalize(problem, "s", picked, FinalizeSettings(2), MeasuredLatency(repeats=2), builder, {}, tmp_path)
    # Dense, before and after the fine-tuning: once each.
    assert tested.reads == look + 3 * len(tested)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes

"""The shape of a configuration: every key that has a type of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ranksearch.baseline import BaselineSettings
from ranksearch.constraint import Constraint
from ranksearch.errors import SettingError
from ranksearch.export import FORMATS
from ranksearch.finalize import FinalizeSettings
from ranksearch.latency import MeasuredLatency
from ranksearch.picking import PickSettings
from ranksearch.problem import CalibrationSettings
from ranksearch.pruning import PruningSettings
from ranksearch.review.serving import DashboardSettings
from ranksearch.rules import SpaceSettings
from ranksearch.schema import by_name
from ranksearch.study import OBJECTIVES, StudySettings
from ranksearch.training import Recipe

# Keys of a model that say what to call it, what images it gets, and what becomes of it once it is built.
NOT_OF_THE_BUILDER = ("name", "smallest_input", "input_size", "checkpoint", "num_classes", "rules")
TASKS = ("search", "finalize", "profile", "export", "report", "dashboard")


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Keys of type ``Any`` are open: a ``_target_`` and whatever that takes. Without a ``_target_``, ``fine_tune`` holds
    the settings of a `training.Recipe`.
    """

    model: Any
    dataset: Any
    space: SpaceSettings
    cost: Any
    constraint: Constraint
    proxy: Any
    sampler: Any
    pruner: Any
    fine_tune: Any
    storage: Any
    study: StudySettings
    baseline: BaselineSettings
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    finalize: FinalizeSettings = field(default_factory=FinalizeSettings)
    latency: MeasuredLatency = field(default_factory=MeasuredLatency)
    pick: PickSettings = field(default_factory=PickSettings)
    pruning: PruningSettings = field(default_factory=PruningSettings)
    dashboard: DashboardSettings = field(default_factory=DashboardSettings)
    task: str = "search"
    objective: str = "front"
    format: str = "plain"
    seed: int = 0
    device: str = "auto"
    worker: int = 0
    quiet: bool = False
    outputs: str = "outputs"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise SettingError("task", self.task, f"is unknown: use {', '.join(TASKS)}")
        if self.task != "report" and not isinstance(self.study.name, str):
            advice = "are several: give one, or compare them with task=report"
            raise SettingError("study.name", ", ".join(self.study.names), advice)
        if self.format not in FORMATS:
            raise SettingError("format", self.format, f"is unknown: use {', '.join(FORMATS)}")
        if self.objective not in OBJECTIVES:
            raise SettingError("objective", self.objective, f"is unknown: use {', '.join(OBJECTIVES)}")
        for what, limit in (("seed", 2**31), ("worker", 10**6)):
            if not 0 <= getattr(self, what) < limit:
                raise SettingError(what, getattr(self, what), f"is out of range: use 0 to {limit - 1}")


# What Hydra merges and checks, with every key's type.
Schemas = by_name((RunConfig, Recipe), __name__, "Schemas")

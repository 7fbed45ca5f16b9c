"""The shape of a configuration: every key that has a type of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
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
from ranksearch.rules import Rule, SpaceSettings
from ranksearch.schema import by_name, freeze
from ranksearch.study import OBJECTIVES, StudySettings
from ranksearch.training import Recipe
from ranksearch.values import check_value


@dataclass(frozen=True)
class ModelSettings:
    """The keys of a model that its builder does not get.

    Attributes:
        name: what to call it.
        smallest_input: height and width that smaller images are enlarged to.
        input_size: height and width that images are brought to.
        checkpoint: a file of trained weights.
        num_classes: outputs; None for the data set's.
        rules: of the space, for this network's layers.
    """

    name: str
    smallest_input: int | None = None
    input_size: int | None = None
    checkpoint: str | None = None
    num_classes: int | None = None
    rules: list[Rule] | None = None

    def __post_init__(self) -> None:
        for what in ("smallest_input", "input_size", "num_classes"):
            value = getattr(self, what)
            if value is not None and not 1 <= value <= LARGEST:
                raise SettingError(what, value, f"is out of range: use 1 to {LARGEST}")


# Pixels, and classes.
LARGEST = 10**6
NOT_OF_THE_BUILDER = tuple(entry.name for entry in fields(ModelSettings))
# Groups whose settings are those of what their _target_ names.
OPEN = ("model", "dataset", "cost", "proxy", "sampler", "pruner", "fine_tune", "storage")
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
        for group in OPEN:
            if not isinstance(settings := getattr(self, group), Mapping):
                said = "null" if settings is None else settings
                raise SettingError(group, said, "is no group of settings: choose a file of its folder in conf/")
        for group in ("model", "dataset"):
            name = getattr(self, group).get("name")
            if not isinstance(name, str | int | float) or not str(name).strip():
                raise SettingError(f"{group}.name", "null" if name is None else name, "is no name: give it one")
        if not self.outputs.strip():
            raise SettingError("outputs", "", "is empty, which would put everything at the root: name a folder, or .")
        self.of_model()
        if (seed := self.sampler.get("seed")) is not None:
            check_value("sampler.seed", int, seed)
            if seed < 0:
                raise SettingError("sampler.seed", seed, "is out of range: use 0 or more")
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

    def of_model(self) -> ModelSettings:
        """The keys of the model that its builder does not get, checked.

        Raises:
            SettingError: one is of another type, or out of its range.
        """
        own = {key: value for key, value in self.model.items() if key in NOT_OF_THE_BUILDER}
        try:
            found: ModelSettings = freeze(ModelSettings, {**own, "name": str(own["name"])})
        except SettingError as error:
            raise error.inside("model") from None
        return found


# What Hydra merges and checks, with every key's type.
Schemas = by_name((RunConfig, Recipe), __name__, "Schemas")

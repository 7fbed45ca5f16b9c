"""The shape of a configuration: every key, with its type and its default; SettingError if a value is out of range."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from ranksearch.errors import SettingError
from ranksearch.formats import NAMES
from ranksearch.report.dashboard_server import DashboardSettings
from ranksearch.search_space.constraint import Constraint
from ranksearch.search_space.rules import Rule, SpaceSettings
from ranksearch.study.settings import (
    CalibrationSettings,
    FinalizeSettings,
    PickSettings,
    ProfileSettings,
    PruningSettings,
    StudySettings,
)
from ranksearch.training.recipe import BaselineSettings, Recipe
from ranksearch.validation import check_value

LARGEST = 10**6  # pixels, and classes
MODES = ("search", "finalize", "profile", "export", "report", "dashboard")
UNKNOWN = "is not a key of the configuration: remove it"  # of keys that were added with a plus
OPEN = ("dataset", "cost", "runtime", "proxy", "sampler", "fine_tune", "storage")  # groups with a _target_


@dataclass
class ModelSettings:
    """The dense network.

    Attributes:
        name: name of the network.
        builder: what builds it: a ``_target_`` and its arguments.
        smallest_input: height and width that smaller images are enlarged to.
        input_size: height and width that images are resized to.
        checkpoint: file of trained weights.
        num_classes: number of outputs; None for the data set's.
        rules: rules of the space for the layers of this network, after those of the configuration.
    """

    name: str
    builder: Any
    smallest_input: int | None = None
    input_size: int | None = None
    checkpoint: str | None = None
    num_classes: int | None = None
    rules: list[Rule] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise SettingError("name", self.name, "is not a name: give one")
        if not isinstance(self.builder, Mapping):
            raise SettingError("builder", self.builder, "is not a group of settings: give a _target_ and arguments")
        for name in ("smallest_input", "input_size", "num_classes"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LARGEST:
                raise SettingError(name, value, f"is out of range: use 1 to {LARGEST}")


@dataclass
class ExportSettings:
    """How a finished network is exported: ``format`` is one of `formats.NAMES`."""

    format: str = NAMES[0]

    def __post_init__(self) -> None:
        if self.format not in NAMES:
            raise SettingError("format", self.format, f"is unknown: use {', '.join(NAMES)}")


@dataclass
class RunConfig:
    """A whole run.

    Keys of type ``Any`` are open: a ``_target_`` and its arguments. Without a ``_target_``, ``fine_tune`` is a
    `training.Recipe`.
    """

    model: ModelSettings
    dataset: Any
    space: SpaceSettings
    cost: Any
    runtime: Any
    constraint: Constraint
    proxy: Any
    sampler: Any
    pruner: PruningSettings
    fine_tune: Any
    storage: Any
    study: StudySettings
    baseline: BaselineSettings
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    pick: PickSettings = field(default_factory=PickSettings)
    finalize: FinalizeSettings = field(default_factory=FinalizeSettings)
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    dashboard: DashboardSettings = field(default_factory=DashboardSettings)
    mode: str = "search"
    seed: int = 0
    device: str = "auto"
    worker: int = 0
    quiet: bool = False
    outputs: str = "outputs"

    def __post_init__(self) -> None:
        for group in OPEN:
            settings = getattr(self, group)
            if not isinstance(settings, Mapping) and not is_dataclass(settings):
                value = "null" if settings is None else settings
                raise SettingError(group, value, "is not a group of settings: choose a file from its folder in conf/")
        name = self.dataset.get("name")
        if not isinstance(name, str | int | float) or not str(name).strip():
            raise SettingError("dataset.name", "null" if name is None else name, "is not a name: give one")
        require_outputs(self.outputs)
        if (seed := self.sampler.get("seed")) is not None:
            check_value("sampler.seed", int, seed)
            if seed < 0:
                raise SettingError("sampler.seed", seed, "is out of range: use 0 or more")
        if self.mode not in MODES:
            raise SettingError("mode", self.mode, f"is unknown: use {', '.join(MODES)}")
        if self.mode != "report" and not isinstance(self.study.name, str):
            advice = "are several names: give one, or compare them with mode=report"
            raise SettingError("study.name", ", ".join(self.study.names), advice)
        for key, limit in (("seed", 2**31), ("worker", 10**6)):
            if not 0 <= getattr(self, key) < limit:
                raise SettingError(key, getattr(self, key), f"is out of range: use 0 to {limit - 1}")


def require_outputs(outputs: object) -> None:
    """Raise SettingError if the folder of all outputs has no name."""
    if not str(outputs).strip():
        raise SettingError("outputs", "", "is empty, which would mean the root folder: name a folder, or .")


def make_config(cfg: DictConfig) -> RunConfig:
    """Turn a composed configuration, without Hydra's own settings, into checked settings."""
    values: dict[str, Any] = {}
    hints = get_type_hints(RunConfig)
    if added := [str(key) for key in cfg if key not in hints]:
        raise SettingError(added[0], cfg[added[0]], UNKNOWN)
    for entry in fields(RunConfig):
        node = cfg[entry.name]
        try:
            value = OmegaConf.to_object(node) if OmegaConf.is_config(node) else node
        except SettingError as error:
            raise error.inside(entry.name) from None
        if entry.name == "fine_tune" and isinstance(value, dict) and "_target_" not in value:
            value = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), value))
        _check(entry.name, hints[entry.name], value)
        values[entry.name] = value
    return RunConfig(**values)


def _check(key: str, hint: Any, value: Any) -> None:
    """Check a value and, inside settings, each of their values."""
    if is_dataclass(value):
        hints = get_type_hints(type(value))
        for name, entry in vars(value).items():
            if name not in hints:
                raise SettingError(f"{key}.{name}", entry, UNKNOWN)
            _check(f"{key}.{name}", hints[name], entry)
    elif isinstance(value, list) and any(is_dataclass(entry) for entry in value):
        for index, entry in enumerate(value):
            _check(f"{key}[{index}]", Any, entry)
    else:
        check_value(key, hint, value)

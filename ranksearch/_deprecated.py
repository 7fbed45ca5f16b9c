"""Names of version 0.1.0, which keep working for one release with a DeprecationWarning.

A module that moved is found by a finder at the end of `sys.meta_path`, so that imports, ``_target_`` entries of
configurations and settings of stored studies that name it still resolve.
"""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

# Old module -> the modules that its names are in now, all below ranksearch.
MOVED: Mapping[str, tuple[str, ...]] = {
    "callback": ("cli.sweep_callback",),
    "datasets": ("data.splits", "data.loaders"),
    "fine_tuning": ("training.recipe",),
    "guided": ("samplers.thompson",),
    "image_folders": ("data.image_folders",),
    "image_sets": ("data.builtin",),
    "latency": ("cost.latency",),
    "proxies": ("allocation.sensitivity",),
    "rules": ("search_space.rules",),
}
RENAMED = {"FineTuning": "FineTuner", "GuidedSampler": "ThompsonSampler", "MeasuredLatency": "Latency"}
PUBLIC = {"ranksearch.cost.latency.Latency": "ranksearch.cost.Latency"}  # moved name -> where a package has it


class _MovedModules(MetaPathFinder, Loader):
    """Finds modules of version 0.1.0 that have moved."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, module = fullname.partition(".")
        return spec_from_loader(fullname, self) if package == "ranksearch" and module in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = _moved_names(module.__name__)  # type: ignore[method-assign]  # as PEP 562 has it


def install() -> None:
    """Let modules that have moved be imported under their old names; called by `import ranksearch`."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())


def _moved_names(old_module: str) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a module whose names have moved."""

    def get(name: str) -> Any:
        home = None if name.startswith("_") else _home(old_module.partition(".")[2], name)
        if home is None:
            raise AttributeError(f"module '{old_module}' has no attribute '{name}'")
        module, new = home
        warn(f"{old_module}.{name}", f"{module.__name__}.{new}")
        return getattr(module, new)

    return get


def _home(old_module: str, name: str) -> tuple[ModuleType, str] | None:
    """Return the module that a name of a moved module is in now, and its name there; None if it is gone."""
    new = RENAMED.get(name, name)
    modules = (import_module(f"ranksearch.{home}") for home in MOVED.get(old_module, ()))
    return next(((module, new) for module in modules if hasattr(module, new)), None)


def warn(old: str, new: str) -> None:
    """Warn that a name has moved."""
    warnings.warn(f"{old} is deprecated: use {new}", DeprecationWarning, stacklevel=3)


def current_target(target: str) -> str:
    """Return the present dotted name of what a ``_target_`` of version 0.1.0 names."""
    old_module, _, name = target.removeprefix("ranksearch.").rpartition(".")
    if not target.startswith("ranksearch."):
        return target
    home = _home(old_module, name)
    if home is None:
        return target
    present = f"{home[0].__name__}.{home[1]}"
    return PUBLIC.get(present, present)


def upgrade_settings(settings: Any) -> Any:
    """Bring settings that a study of version 0.1.0 has stored into the present shape.

    Args:
        settings: plain JSON values; those of the present version are returned as they are.
    """
    if not isinstance(settings, Mapping):
        return settings
    upgraded = {group: _with_current_targets(values) for group, values in settings.items()}
    model, cost = upgraded.get("model"), upgraded.get("cost")
    if isinstance(model, Mapping) and "_target_" in model:
        own = ("name", "smallest_input", "input_size", "checkpoint", "num_classes", "rules")
        builder = {key: value for key, value in model.items() if key not in own}
        upgraded["model"] = {**{key: value for key, value in model.items() if key in own}, "builder": builder}
    if isinstance(cost, Mapping) and "dtype" in cost:
        kept = {key: value for key, value in cost.items() if key not in ("dtype", "channels_last")}
        eager = {"precision": cost["dtype"], "channels_last": cost.get("channels_last", True)}
        upgraded["cost"] = {**kept, "runtime": {"_target_": "ranksearch.runtimes.eager.Eager", **eager}}
    return upgraded


def _with_current_targets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: current_target(entry) if key == "_target_" and isinstance(entry, str) else _with_current_targets(entry)
            for key, entry in value.items()
        }
    return [_with_current_targets(entry) for entry in value] if isinstance(value, list) else value

"""Objects from settings: a ``_target_`` called with its arguments, and its result checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.errors import InstantiationException
from optuna.storages import BaseStorage

from ranksearch.cli.config import RunConfig
from ranksearch.errors import SettingError, UserError
from ranksearch.validation import check_arguments, check_value


def build(group: str, settings: Any, kind: type[Any] | tuple[type[Any], ...], **extra: Any) -> Any:
    """Call the ``_target_`` of a group; UserError if it fails, or does not return what it should.

    Args:
        group: name of the group, for errors.
        settings: ``_target_`` and its arguments, plain values.
        kind: type of the result, or several; errors name the first.
        **extra: further arguments.
    """
    if not isinstance(settings, Mapping) or "_target_" not in settings:
        raise UserError(f"{group} has no _target_: give it the dotted name of the callable that builds it")
    target = settings["_target_"]
    if unknown := {"_args_", "_partial_", "_recursive_"} & set(settings):
        advice = "is not supported: remove it, and name every argument"
        raise SettingError(f"{group}.{min(unknown)}", settings[min(unknown)], advice)
    if (located := _locate(target)) is None:
        advice = "cannot be imported: check the spelling, and that it is on the Python path"
        raise SettingError(f"{group}._target_", target, advice)
    check_arguments(group, located, {**settings, **extra})
    try:
        built = hydra.utils.instantiate({"_convert_": "all", **settings}, **extra)
    except SystemExit as error:
        raise SettingError(f"{group}._target_", target, f"ended the process ({error}): let it raise instead") from error
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, SettingError):
            raise cause.inside(group) from None
        if isinstance(cause, UserError):
            raise cause from None
        reason = f"{type(cause).__name__}: {cause}" if cause else str(error)
        raise SettingError(f"{group}._target_", target, f"failed ({reason}): check its settings") from error
    if not isinstance(built, kind):
        first = kind[0] if isinstance(kind, tuple) else kind
        returned = f"returns a {type(built).__name__}, not a {first.__name__}: name a callable that returns one"
        raise SettingError(f"{group}._target_", target, returned)
    return built


def _locate(target: object) -> Any:
    """Import what a dotted name stands for; None if that fails."""
    if not isinstance(target, str):
        return None
    try:
        return hydra.utils.get_object(target)
    except Exception:  # anything that a user's module raises
        return None


def open_existing_storage(config: RunConfig, purpose: str) -> BaseStorage:
    """Open the storage of studies that exist already; errors say ``there is no study 'x' to <purpose>``."""
    if "path" in config.storage:
        check_value("storage.path", str, config.storage["path"])
    path = Path(config.storage.get("path", "/"))
    if str(config.storage.get("_target_")).startswith("ranksearch.storage.") and not path.exists():
        missing = f"there is no study '{', '.join(config.study.names)}' to {purpose} in {path}"
        raise UserError(f"{missing}: name its storage, or run mode=search first")
    return cast(BaseStorage, build("storage", config.storage, BaseStorage))

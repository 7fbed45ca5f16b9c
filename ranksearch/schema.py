"""From frozen dataclasses to what Hydra can merge and check, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from functools import cache
from types import SimpleNamespace, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ranksearch.errors import SettingError
from ranksearch.values import check_value


@cache
def mergeable(settings: type) -> type:
    """Make the mutable twin of a settings class: the same keys, types and defaults, without its checks.

    OmegaConf holds a frozen dataclass read-only, so that no override could reach it.
    """
    entries = []
    hints = get_type_hints(settings)
    for entry in fields(settings):
        kind = _twin(hints[entry.name])
        default: Any = field(default="???")  # what OmegaConf calls a value that is still missing
        if is_dataclass(kind):
            assert isinstance(kind, type)
            default = field(default_factory=kind)
        elif entry.default is not MISSING:
            default = field(default=entry.default)
        elif entry.default_factory is not MISSING:
            default = field(default_factory=entry.default_factory)
        entries.append((entry.name, kind, default))
    return make_dataclass(settings.__name__, entries, kw_only=True)


def by_name(roots: Iterable[type], module: str, namespace: str) -> SimpleNamespace:
    """Make the twins of settings classes and of all that they hold, as attributes of a namespace.

    Other processes find a class by its name; one made at run time would reach them as a copy that is another class.

    Args:
        roots: settings classes.
        module: that holds the namespace.
        namespace: its name there.
    """
    found: dict[str, type] = {}
    waiting = list(roots)
    while waiting:
        settings = waiting.pop()
        twin = found[settings.__name__] = mergeable(settings)
        twin.__module__, twin.__qualname__ = module, f"{namespace}.{settings.__name__}"
        hints = get_type_hints(settings).values()
        held = [get_args(hint)[0] if get_origin(hint) is list else hint for hint in hints]
        waiting += [hint for hint in held if is_dataclass(hint) and isinstance(hint, type)]
    return SimpleNamespace(**found)


def _twin(hint: Any) -> Any:
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return mergeable(hint)
    if get_origin(hint) is list:
        return list[_twin(get_args(hint)[0])]  # type: ignore[misc]  # a type made at run time
    return hint


def freeze(hint: Any, value: Any) -> Any:
    """Make a frozen dataclass, with its checks, from plain dicts and lists.

    Args:
        hint: the dataclass, or the type of one of its fields.
        value: what a configuration holds for it.

    Raises:
        SettingError: a value is out of its range; its key is given from ``hint`` down.
    """
    if is_dataclass(hint) and isinstance(value, Mapping):
        assert isinstance(hint, type)
        hints = get_type_hints(hint)
        entries = {}
        for name, entry in value.items():
            if name not in hints:
                raise SettingError(str(name), entry, "is not a key of the configuration: take it out")
            if is_dataclass(hints[str(name)]) and not isinstance(entry, Mapping):
                raise SettingError(str(name), entry, "is no group of settings: give name: value pairs")
            check_value(str(name), hints[str(name)], entry)
            try:
                entries[str(name)] = freeze(hints[str(name)], entry)
            except SettingError as error:
                raise error.inside(str(name)) from None
        return hint(**entries)
    if get_origin(hint) in (Union, UnionType) and value is not None:
        several = [each for each in get_args(hint) if each is not type(None)]
        return freeze(several[0], value) if len(several) == 1 else value
    if get_origin(hint) is list and isinstance(value, list | tuple):
        return [freeze(get_args(hint)[0], entry) for entry in value]
    return value

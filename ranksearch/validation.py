"""Validation of configuration values against the type hints of their receivers, before any of these is called."""

import inspect
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from os import PathLike
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ranksearch.errors import DamagedError, SettingError, UserError, first_line, shorten

LIMIT = 2**31  # exclusive bound on the magnitude of integer settings: counts, sizes, seeds
WIDE_LIMIT = 2**63  # wider bound for arguments of objects that a configuration names


def check_value(key: str, hint: Any, value: Any, limit: int = LIMIT) -> None:
    """Raise unless a value has a type, in its JSON representation.

    Args:
        key: name of the setting.
        hint: expected type; types without a JSON representation are not checked.
        value: value of the setting.
        limit: exclusive bound on the magnitude of integers.

    Raises:
        SettingError: the value has another type, is NaN, or exceeds the limit.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and math.isnan(value):
            raise SettingError(key, value, "is not a number: give one")
        if isinstance(value, int) and abs(value) >= limit:
            raise SettingError(key, value, f"is out of range: use less than {limit}")
    if not _fits(hint, value):
        raise SettingError(key, "null" if value is None else value, f"has the wrong type: give {_called(hint)}")


def check_arguments(group: str, target: Any, settings: Mapping[str, Any]) -> None:
    """Raise unless a callable accepts the settings as arguments.

    Args:
        group: name of the group of settings, for error messages.
        target: the callable; what its signature leaves open is not checked.
        settings: arguments by name.

    Raises:
        SettingError: the callable has no argument of a name, or one of another type.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # a built-in without a signature
        return
    hints = _hints(target)
    names = [name for name, each in parameters.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    takes_any = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
    for name, value in ((str(key), value) for key, value in settings.items()):
        if name.startswith("_"):
            continue
        if name in parameters:
            check_value(f"{group}.{name}", hints.get(name, Any), value, WIDE_LIMIT)
        elif not takes_any:
            valid = ", ".join(other for other in names if other != "self") or "none"
            called = getattr(target, "__name__", type(target).__name__)
            raise SettingError(f"{group}.{name}", value, f"is not a setting of {called}: use {valid}")


Value = TypeVar("Value")


def from_record(kind: type[Value], record: Any) -> Value:
    """Build a frozen dataclass from a record that may be damaged or come from an untrusted source.

    Args:
        kind: the dataclass.
        record: field values by name; nested values are dataclasses already, or of JSON types.

    Raises:
        DamagedError: the record has other fields, or values of other types.
    """
    if not isinstance(record, Mapping):
        raise DamagedError(f"{kind.__name__} is a {type(record).__name__}")
    hints = _hints(kind)
    if unknown := [str(name) for name in record if name not in hints]:
        raise DamagedError(f"{kind.__name__} has an unknown '{shorten(unknown[0])}'")
    try:
        for name, value in record.items():
            check_value(f"{kind.__name__}.{name}", hints[name], value, WIDE_LIMIT)
        return kind(**record)
    except (UserError, TypeError) as error:  # a field is missing
        raise DamagedError(first_line(error)) from None


def _hints(target: Any) -> Mapping[str, Any]:
    owner = target.__init__ if inspect.isclass(target) and not is_dataclass(target) else target
    try:
        return get_type_hints(owner)
    except Exception:  # such as names imported for type checking only
        return {}


def _fits(hint: Any, value: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar | str):
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(each, value) for each in inner)
    if origin is Literal:
        return value in inner
    if hint in (None, type(None)):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str or (inspect.isclass(hint) and issubclass(hint, PathLike)):
        return isinstance(value, str)
    if origin is tuple and Ellipsis not in inner:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(_fits, inner, value))
    if (origin or hint) in (list, Sequence, Iterable, tuple):
        each = inner[0] if inner else Any
        return isinstance(value, list | tuple) and all(_fits(each, entry) for entry in value)
    if (origin or hint) in (dict, Mapping):
        each = inner[1] if len(inner) > 1 else Any
        return isinstance(value, Mapping) and all(_fits(each, entry) for entry in value.values())
    if is_dataclass(hint) and inspect.isclass(hint) and not isinstance(value, Mapping):
        return isinstance(value, hint)  # a mapping is converted to a dataclass later
    return True


def _called(hint: Any) -> str:
    """Return the plain-language name of a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_called(each) for each in inner))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if (origin or hint) in (list, Sequence, Iterable, tuple):
        return "a list"
    if (origin or hint) in (dict, Mapping):
        return "a group of settings"
    names: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if hint in (None, type(None)):
        return "null"
    return names.get(hint, getattr(hint, "__name__", str(hint)))

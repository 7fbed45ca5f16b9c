"""Passwords in settings: refused where they would be written down, and kept out of every message."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import unquote

# From the scheme of an address to the last @ before white space or a quote: users escape the @ of a password or not.
ADDRESS = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*://)(?P<user>[^\s\"'<>]*)@")
WHOLE = re.compile(r"[\s\"']*[a-zA-Z][\w+.-]*://(?P<user>[^/?]*)@", re.DOTALL)
SECRET_NAME = r"(?:\w*(?:password|passwd|passphrase|secret|token|api_?key)|pwd|pass)"
QUERY = re.compile(rf"(?P<key>[?&]{SECRET_NAME}=)(?P<value>[^&\s\"'<>]+)", re.IGNORECASE)
SECRET_KEY = re.compile(SECRET_NAME, re.IGNORECASE)
# Shorter ones are found within addresses alone: replaced anywhere, they would take messages apart.
SHORTEST = 4
HIDDEN = "***"


def literal(text: str) -> str:
    """A setting as it was written, with nothing for an environment variable but what stands there as its default."""
    innermost = re.compile(r"\$\{\s*(?:oc\.env:[^,{}]*,(?P<default>[^{}]*)|[^{}]*)\}")
    while (found := innermost.search(text)) is not None:
        text = text[: found.start()] + (found["default"] or "").strip().strip("\"'") + text[found.end() :]
    return text


def passwords_in(text: str) -> set[str]:
    """What stands for a password in the addresses of a text, as it is written and decoded."""
    found = {match["value"] for match in QUERY.finditer(text)}
    whole = WHOLE.match(text)  # whose password may hold what ends an address within a text
    for match in (*ADDRESS.finditer(text), *((whole,) if whole else ())):
        _, colon, password = match["user"].partition(":")
        if colon and password:
            found.add(password)
    return found | {unquote(password) for password in found}


def holds_password(text: str) -> bool:
    """Whether a setting, as a person wrote it, holds a password of its own."""
    return bool(passwords_in(literal(text)))


def is_secret(key: str, value: object) -> bool:
    """Whether a key is named as a password's is, and has a value of its own."""
    return isinstance(value, str) and bool(SECRET_KEY.fullmatch(key)) and bool(literal(value))


def has_unescaped_at(url: str) -> bool:
    """Whether a password in an address holds an @, which ends it for whoever reads the address."""
    return url.partition("?")[0].count("@") > 1


class Redactor(logging.Filter):
    """Hides passwords in texts and in log records.

    Args:
        secrets: that are known.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        known = {text for secret in secrets for text in (secret, unquote(secret)) if len(text) >= SHORTEST}
        self.secrets = frozenset(known)
        self._longest_first = sorted(known, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without passwords."""
        for secret in self._longest_first:
            text = text.replace(secret, HIDDEN)
        text = ADDRESS.sub(lambda match: f"{match['scheme']}{HIDDEN}@" if ":" in match["user"] else match[0], text)
        return QUERY.sub(lambda match: f"{match['key']}{HIDDEN}", text)

    def filter(self, record: logging.LogRecord) -> bool:
        """Hide them in a record; it is logged all the same."""
        record.msg, record.args = self(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = self("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        elif record.exc_text:
            record.exc_text = self(record.exc_text)
        return True

    def hook(self, write: Callable[[str], object]) -> Callable[..., None]:
        """An exception hook that writes tracebacks without passwords."""

        def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            write(self("".join(traceback.format_exception(kind, error, trace))))

        return report


def leaves(settings: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested mappings and lists, with its dotted key."""
    if isinstance(settings, Mapping):
        entries: Iterable[tuple[Any, Any]] = settings.items()
    elif isinstance(settings, list | tuple):
        entries = enumerate(settings)
    else:
        yield path, settings
        return
    for key, value in entries:
        yield from leaves(value, f"{path}.{key}" if path else str(key))

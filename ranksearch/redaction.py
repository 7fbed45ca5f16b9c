"""Passwords in settings: detection, and redaction of messages."""

import logging
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import unquote

# From the scheme to the last @ before white space or a quote, since users may leave an @ in a password unescaped.
ADDRESS = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*://)(?P<user>[^\s\"'<>]*)@")
WHOLE = re.compile(r"[\s\"']*[a-zA-Z][\w+.-]*://(?P<user>[^/?]*)@", re.DOTALL)
SECRET_NAME = r"(?:\w*(?:password|passwd|passphrase|secret|token|api_?key)|pwd|pass)"
QUERY = re.compile(rf"(?P<key>[?&]{SECRET_NAME}=)(?P<value>[^&\s\"'<>]+)", re.IGNORECASE)
SECRET_KEY = re.compile(SECRET_NAME, re.IGNORECASE)
SHORTEST = 4  # shorter secrets are hidden in addresses only: replaced everywhere, they would garble messages
HIDDEN = "***"


def literal(text: str) -> str:
    """Return a setting as written, with interpolations replaced by their defaults, or by nothing."""
    innermost = re.compile(r"\$\{\s*(?:oc\.env:[^,{}]*,(?P<default>[^{}]*)|[^{}]*)\}")
    while (match := innermost.search(text)) is not None:
        text = text[: match.start()] + (match["default"] or "").strip().strip("\"'") + text[match.end() :]
    return text


def passwords_in(text: str) -> set[str]:
    """Return the passwords in the addresses of a text, as written and URL-decoded."""
    # The whole text as well, as its password may contain characters that end an address in a text.
    users = [match["user"] for match in (*ADDRESS.finditer(text), WHOLE.match(text)) if match]
    passwords = {match["value"] for match in QUERY.finditer(text)} | {user.partition(":")[2] for user in users} - {""}
    return passwords | {unquote(password) for password in passwords}


def holds_password(text: str) -> bool:
    """Return whether a setting, as the user wrote it, contains a literal password."""
    return bool(passwords_in(literal(text)))


def is_secret(key: str, value: object) -> bool:
    """Return whether a key is named like that of a password and has a literal value."""
    return isinstance(value, str) and bool(SECRET_KEY.fullmatch(key)) and bool(literal(value))


def has_unescaped_at(url: str) -> bool:
    """Return whether an address holds an unescaped @, as in a password, which would end the password early."""
    return url.partition("?")[0].count("@") > 1


class Redactor(logging.Filter):
    """Filter that hides passwords in texts and log records.

    Args:
        secrets: known passwords.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        variants = (text for secret in secrets for text in (secret, unquote(secret)))
        self.secrets = frozenset(text for text in variants if len(text) >= SHORTEST)
        self._longest_first = sorted(self.secrets, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text with passwords hidden."""
        for secret in self._longest_first:
            text = text.replace(secret, HIDDEN)
        text = ADDRESS.sub(lambda match: f"{match['scheme']}{HIDDEN}@" if ":" in match["user"] else match[0], text)
        return QUERY.sub(lambda match: f"{match['key']}{HIDDEN}", text)

    def filter(self, record: logging.LogRecord) -> bool:
        """Hide passwords in a record, and return True so that it is logged."""
        record.msg, record.args = self(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = self("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        elif record.exc_text:
            record.exc_text = self(record.exc_text)
        return True

    def hook(self, write: Callable[[str], object]) -> Callable[..., None]:
        """Return an exception hook that writes tracebacks without passwords."""

        def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            write(self("".join(traceback.format_exception(kind, error, trace))))

        return report


def leaves(settings: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value in nested mappings and lists, with its dotted key."""
    if not isinstance(settings, Mapping | list | tuple):
        yield path, settings
        return
    entries: Iterable[tuple[Any, Any]] = settings.items() if isinstance(settings, Mapping) else enumerate(settings)
    for key, value in entries:
        yield from leaves(value, f"{path}.{key}" if path else str(key))

"""Exceptions that ranksearch raises deliberately."""

from __future__ import annotations

from errno import EDQUOT, ENOSPC


class UserError(Exception):
    """An error that the user can fix; the message is one line with the value, the limit and the remedy."""


class SettingError(UserError, ValueError):
    """A setting that is out of range.

    Args:
        key: name of the setting.
        value: value of the setting.
        advice: the limit and the remedy.
    """

    def __init__(self, key: str, value: object, advice: str) -> None:
        text = str(value)
        super().__init__(f"{key}={shorten(text, 300 if '/' in text else 80)} {advice}")  # longer for paths
        self.key, self.value, self.advice = key, value, advice

    def inside(self, group: str) -> SettingError:
        """Return the same error with the key qualified by a group."""
        return SettingError(f"{group}.{self.key}", self.value, self.advice)


class PlanError(UserError, ValueError):
    """A plan, latent size or artifact that does not fit the model."""


class DataError(UserError, ValueError):
    """Data that cannot be processed: an image, a label, or a tensor that is misshapen, empty or not finite."""


class DamagedError(Exception):
    """A file whose content is damaged or cannot be read."""


class DivergedError(Exception):
    """A training loss that is not finite; the message is its value, a colon and the remedy in a trial."""

    @property
    def reason(self) -> str:
        """The part of the message about the loss, without the remedy."""
        return str(self).partition(":")[0]


class BehindError(Exception):
    """A trial that is not worth fine-tuning."""


def shorten(text: str, longest: int = 80) -> str:
    """Return a text in one line of at most ``longest`` characters, with the middle elided if needed."""
    text = " ".join(text.split()) if "\n" in text else text
    if len(text) <= longest:
        return text
    kept = (longest - 5) // 2
    return f"{text[:kept]} ... {text[-kept:]}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_full_disk(error: BaseException | None) -> bool:
    """Return whether an error, or one in its chain of causes, reports a full disk."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT)
        if full or "disk is full" in str(error):  # SQLite's message
            return True
        error = error.__cause__ or error.__context__
    return False

"""The errors that ranksearch raises on purpose."""

from __future__ import annotations

from errno import EDQUOT, ENOSPC


class UserError(Exception):
    """Something that the person at the keyboard can mend: one line with the value, the limit and the remedy."""


class SettingError(UserError, ValueError):
    """A setting out of its range.

    Args:
        key: of the setting.
        value: that it has.
        advice: the limit and the remedy.
    """

    def __init__(self, key: str, value: object, advice: str) -> None:
        text = str(value)
        super().__init__(f"{key}={shorten(text, 300 if '/' in text else 80)} {advice}")  # a path is wanted whole
        self.key = key
        self.value = value
        self.advice = advice

    def inside(self, group: str) -> SettingError:
        """The same error, with the key as it is written from outside the group."""
        return SettingError(f"{group}.{self.key}", self.value, self.advice)


class PlanError(UserError, ValueError):
    """A plan, a latent size or an artifact that does not fit the model."""


class DataError(UserError, ValueError):
    """Tensors that a layer or a solver cannot work with: of another shape, empty, or not finite."""


class DamagedError(Exception):
    """A file that is not as it was written."""


class DivergedError(Exception):
    """A training loss that is no longer a finite number; what it was, then the remedy in a trial."""

    @property
    def reason(self) -> str:
        """What the loss was, for those who have another remedy."""
        return str(self).partition(":")[0]


class BehindError(Exception):
    """A trial that is not worth its fine-tuning."""


def shorten(text: str, longest: int = 80) -> str:
    """A text in one line of at most so many characters, its middle left out where it has more."""
    text = " ".join(text.split()) if "\n" in text else text
    if len(text) <= longest:
        return text
    kept = (longest - 5) // 2
    return f"{text[:kept]} ... {text[-kept:]}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line; the name of its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that there is no room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
            return True
        if "disk is full" in str(error):  # as SQLite says it
            return True
        error = error.__cause__ or error.__context__
    return False

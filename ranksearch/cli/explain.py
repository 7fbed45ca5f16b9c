"""One-line explanations of Hydra's errors."""

import argparse
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ranksearch.errors import first_line, shorten

UNREADABLE = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError)  # errors of a configuration
MOVED_KEYS = {  # key of version 0.1.0 -> its replacement
    "task": "mode=search, finalize, profile, export, report or dashboard, for task will name what a network is for",
    "format": "export.format",
    "objective": "study.objective",
    "pruning": "the keys of pruner: pruner.rungs, pruner.lead, pruner.rivals",
    "latency": "runtime for precision and memory format, cost or profile for batch_size, repeats and cache",
}


def explain(error: BaseException, arguments: argparse.Namespace | None = None) -> str:
    """Return one line that says what Hydra could not read, and how to correct it."""
    cause = error.__cause__ or error.__context__
    for each in (error, cause):
        if isinstance(each, UnicodeDecodeError | yaml.YAMLError):
            return _explain_file(each, arguments)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={shorten(choice)} does not exist: use one of {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return _explain_override(error)
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        problem = " ".join((cause.msg or str(cause)).split("\n")[0].split())
        if problem.startswith("Key "):
            return _explain_key(cause.full_key or "", cause.parent_node)
        merged = shorten(str(error).removeprefix("Error merging override "), 120)
        return f"{merged} cannot be used ({shorten(problem, 160)}): give a value of that type"
    first, _, missing = first_line(error).partition("Missing mandatory value: ")
    if missing:
        return f"{missing} is not set: add {missing}=... to the command"
    return f"the command cannot be parsed ({shorten(first, 200)}): see python -m ranksearch --help"


def _explain_key(key: str, parent: object) -> str:
    """Name the replacement of a key of version 0.1.0, or keys of similar spelling."""
    group, _, name = key.partition(".")
    if key in MOVED_KEYS or group in MOVED_KEYS:
        return f"'{shorten(key)}' has moved: use {MOVED_KEYS.get(key) or MOVED_KEYS[group]}"
    if group == "model" and re.fullmatch(r"\w+", name):
        return f"'{shorten(key)}' is not a key of model: arguments of its builder are model.builder.{shorten(name)}"
    names = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    near = get_close_matches(key.rpartition(".")[2], names, n=3) or names
    return f"'{shorten(key)}' is not a key of the configuration: use {', '.join(near)}"


def explain_words(words: Sequence[str], loader: ConfigLoader, error: Exception) -> str:
    """Name the word of a command that Hydra failed on, if its error does not."""
    for word in words:
        key, _, value = word.partition("=")
        if not key.strip("+~"):
            return f"'{shorten(word)}' has no key: write key=value"
        options = loader.get_group_options(key.strip("+~"))
        if options and value not in options:
            return f"{key}={shorten(value)} is not a file of this group: use one of {', '.join(options)}"
    return f"the command cannot be parsed ({shorten(first_line(error), 200)}): see python -m ranksearch --help"


def quote(value: str) -> str:
    """Quote a value for Hydra's grammar."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _explain_override(error: OverrideParseException) -> str:
    """Explain how to write a word that Hydra's grammar does not accept."""
    key, _, value = str(error.override).partition("=")
    if value and re.fullmatch(r"[+~]{0,2}[\w./@-]+", key) and not value.startswith(("[", "{", "'", '"', "$")):
        return (
            f"{key}={shorten(value)} cannot be parsed, because it has characters that are special to Hydra: "
            f"quote it inside the shell's quotes, '{key}={shorten(quote(value), 200)}'"
        )
    return f"the command cannot be parsed ({shorten(first_line(error), 120)}): see python -m ranksearch --help"


def _explain_file(error: UnicodeDecodeError | yaml.YAMLError, arguments: argparse.Namespace | None) -> str:
    """Name the configuration file that is damaged, and the line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    file = getattr(mark, "name", None) or getattr(error, "name", None)
    where = f" at line {mark.line + 1}" if mark is not None else ""
    if isinstance(error, UnicodeDecodeError) or not file or file.startswith("<"):
        unreadable = _undecodable(arguments)
        file, where = (str(unreadable), "") if unreadable is not None else (file or "a configuration file", where)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or first_line(error)
    return f"{file} cannot be read{where} ({shorten(str(problem), 120)}): make it valid YAML in UTF-8"


def _undecodable(arguments: argparse.Namespace | None) -> Path | None:
    """Return the first of the user's configuration files that is not readable as UTF-8."""
    own = [] if arguments is None else [arguments.config_dir, arguments.config_path]
    for folder in filter(None, own):
        for file in sorted(Path(folder).rglob("*.yaml")):
            try:
                file.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                return file
    return None

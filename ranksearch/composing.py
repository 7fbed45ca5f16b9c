"""The configuration composed before Hydra writes anything, and its errors told in one line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from omegaconf.resolvers import oc

from ranksearch.config import Schemas
from ranksearch.errors import UserError, first_line, shorten
from ranksearch.redaction import holds_password, is_secret, leaves, passwords_in
from ranksearch.study import study_folder

PACKAGE = Path(__file__).resolve().parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
NAME = "config"
# What a configuration cannot be read for.
UNREADABLE = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError)


def register_schemas() -> None:
    """Tell Hydra the types of all keys, which the first entries of the defaults lists in `conf/` name."""
    ConfigStore.instance().store("schema", Schemas.RunConfig)
    ConfigStore.instance().store("recipe", Schemas.Recipe, group="fine_tune")
    OmegaConf.register_new_resolver("study_folder", study_folder, replace=True)


def read_words(words: Sequence[str]) -> argparse.Namespace:
    """Read a command as Hydra does.

    Raises:
        UserError: it is no command of Hydra's, or holds a password.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"the command cannot be read ({shorten(message)}): see python -m ranksearch --help")

    parser.error = refuse  # type: ignore[method-assign]  # argparse would write its usage in several lines
    arguments = parser.parse_args(list(words))
    if arguments.experimental_rerun is not None:
        raise UserError("--experimental-rerun unpickles a file, which may run anything: give the overrides again")
    for word in arguments.overrides:
        key, equals, value = word.partition("=")
        if equals and holds_password(value):
            raise _written_down(key)
    return arguments


def runs(arguments: argparse.Namespace) -> bool:
    """Whether a command does anything but show something."""
    shown = (arguments.help, arguments.hydra_help, arguments.cfg, arguments.info, arguments.shell_completion)
    return not any(shown)


def compose(arguments: argparse.Namespace) -> DictConfig:
    """Compose a command's configuration, with Hydra's own settings; nothing is written.

    Raises:
        UserError: it holds a password, which would be written down, or cannot be read.
    """
    several = arguments.multirun or any(word.startswith("hydra.mode=") for word in arguments.overrides)
    with _loader(arguments) as loader:
        try:
            mode = RunMode.MULTIRUN if several else RunMode.RUN
            cfg = loader.load_configuration(arguments.config_name or NAME, arguments.overrides, mode)
        except UNREADABLE as error:
            raise UserError(explain(error, arguments)) from error
        except Exception as error:  # of a word that Hydra does not foresee, such as a number for a group's file
            raise UserError(_explain_words(arguments.overrides, loader, error)) from error
    several = arguments.multirun or cfg.hydra.mode == RunMode.MULTIRUN
    _check_hydra(cfg)
    cfg.hydra.mode = RunMode.MULTIRUN if several else RunMode.RUN
    HydraConfig.instance().set_config(cfg)
    return cfg


def compose_jobs(arguments: argparse.Namespace, cfg: DictConfig) -> Iterator[DictConfig]:
    """The configuration of every job of a sweep, as Hydra's own sweeper makes them; nothing is written.

    Args:
        arguments: of the command.
        cfg: of the sweep as a whole.

    Raises:
        UserError: one cannot be read.
    """
    if not str(OmegaConf.select(cfg, "hydra.sweeper._target_")).endswith(".BasicSweeper"):
        return
    with _loader(arguments) as loader:
        try:
            words = list(arguments.overrides)
            params = OmegaConf.to_container(cfg.hydra.sweeper.params or OmegaConf.create({}), resolve=False)
            words += [f"{key}={value}" for key, value in cast(dict[str, Any], params).items()]
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(words)
            jobs = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
            for job in jobs:
                yield loader.load_sweep_config(cfg, job)
        except UNREADABLE as error:
            raise UserError(explain(error, arguments)) from error
        except (ValueError, TypeError, AssertionError) as error:
            reason = shorten(first_line(error), 160)
            raise UserError(f"the sweep cannot be read ({reason}): mend its overrides") from error


@contextmanager
def _loader(arguments: argparse.Namespace) -> Iterator[ConfigLoader]:
    """What composes the configurations of a command."""
    folder = str(CONF) if arguments.config_path is None else os.path.abspath(arguments.config_path)
    path = create_config_search_path(folder)
    if arguments.config_dir is not None:
        own = os.path.abspath(arguments.config_dir)
        if not os.path.isdir(own):
            raise UserError(f"--config-dir {arguments.config_dir} is no folder: name one that holds configurations")
        path.prepend("command-line", f"file://{own}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2("ranksearch", path).config_loader
    finally:
        GlobalHydra.instance().clear()


def _check_hydra(cfg: DictConfig) -> None:
    """Raise if one of Hydra's own settings cannot be what Hydra will take it for, once it is writing.

    Raises:
        UserError: it cannot.
    """
    kinds: dict[str, type | tuple[type, ...]] = {
        "job.chdir": (bool, type(None)),
        "job.env_set": DictConfig,
        "job.name": str,
        "output_subdir": (str, type(None)),
        "run.dir": str,
        "sweep.dir": str,
        "verbose": (bool, str, ListConfig),
    }
    for key, kind in kinds.items():
        try:
            value = OmegaConf.select(cfg.hydra, key)
            if key.startswith("job."):  # which Hydra reads where there is nothing but its own settings
                value = OmegaConf.select(OmegaConf.masked_copy(cfg, "hydra"), f"hydra.{key}")
                if isinstance(value, DictConfig):
                    OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            missing = str(error).partition("Missing mandatory value: ")[2].splitlines()
            if missing:
                raise UserError(f"{missing[0]} is not set: add {missing[0]}=... to the command") from None
            raise UserError(f"hydra.{key} cannot be read ({shorten(first_line(error), 160)}): mend it") from None
        if not isinstance(value, kind) or value == "":
            said = shorten(str(value))
            raise UserError(f"hydra.{key}={said} is of another type: leave it as it is, or see Hydra's own")


def known_secrets(cfg: DictConfig) -> set[str]:
    """The passwords that a configuration gets from the environment.

    Args:
        cfg: composed, with Hydra's own settings.

    Raises:
        UserError: one stands in the configuration itself, or reaches other keys than the storage's: either would be
            written down with it.
    """
    for key, value in leaves(OmegaConf.to_container(cfg, resolve=False)):
        if isinstance(value, str) and (holds_password(value) or is_secret(key.rpartition(".")[2], value)):
            raise _written_down(key)
        if isinstance(value, str) and not key.startswith("storage.") and _carries(value):
            raise UserError(f"{key} holds a password, which would be written down: take its interpolation out")
    for key, value in _resolved(cfg, environment=False):
        if isinstance(value, str) and passwords_in(value):
            raise _written_down(key)
    values = [(key, value) for key, value in _resolved(cfg, environment=True) if isinstance(value, str)]
    secrets = {password for _, value in values for password in passwords_in(value)}
    secrets |= {value for key, value in values if is_secret(key.rpartition(".")[2], value) and value}
    secrets |= passwords_in(os.environ.get("RANKSEARCH_STORAGE", ""))
    for key, value in values:
        if not key.startswith("storage.") and any(secret in value for secret in secrets):
            raise UserError(f"{key} holds a password, which would be written down: take its interpolation out")
    return secrets


def _carries(value: str) -> bool:
    """Whether a setting names an environment variable, or the storage's address, that holds a password.

    Seen in what is written, for some settings can be resolved only once Hydra is writing.
    """
    secret = passwords_in(os.environ.get("RANKSEARCH_STORAGE", ""))
    held = [os.environ.get(name.strip(), "") for name in re.findall(r"\$\{\s*oc\.env:([^,{}]*)", value)]
    held += [os.environ.get("RANKSEARCH_STORAGE", "")] if re.search(r"\$\{\s*\.*storage\.url", value) else []
    return any(passwords_in(text) or any(password in text for password in secret) for text in held if text)


def _written_down(key: str) -> UserError:
    advice = "put the address into RANKSEARCH_STORAGE, and take storage.url out"
    if key.lstrip("+~") != "storage.url":
        advice = "put it into an environment variable, and name that as ${oc.env:NAME}"
    return UserError(f"{key} holds a password, which would be written down with the configuration: {advice}")


def _resolved(cfg: DictConfig, environment: bool) -> list[tuple[str, Any]]:
    """Every value that can be resolved, with its key; environment variables count as empty, or as what they are."""

    def empty(name: str, default: Any = "") -> str:
        return str(default)

    def walk(node: Any, path: str) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
            try:
                value = node[key]
            except Exception:  # missing, or an interpolation of something that is; whatever a resolver raises
                continue
            name = f"{path}.{key}" if path else str(key)
            found += walk(value, name) if isinstance(value, DictConfig | ListConfig) else [(name, value)]
        return found

    if environment:
        return walk(cfg, "")
    OmegaConf.register_new_resolver("oc.env", empty, replace=True)
    try:
        return walk(cfg, "")
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A configuration without Hydra's own settings."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """A configuration without Hydra's own settings, as plain values.

    Raises:
        UserError: a value is missing, or cannot be resolved.
    """
    cfg = without_hydra(cfg)
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(f"{missing[0]} is not set: add {missing[0]}=... to the command")
        return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    except InterpolationResolutionError as error:
        unset = re.search(r"Environment variable '(\w+)' not found", str(error))
        reason = f"{unset[1]} is not set in the environment" if unset else shorten(first_line(error), 200)
        remedy = f"export {unset[1]}=..." if unset else "mend the interpolation"
        raise UserError(f"{error.full_key} cannot be read ({reason}): {remedy}") from None
    except OmegaConfBaseException as error:
        raise UserError(
            f"{error.full_key or 'the configuration'} cannot be read ({first_line(error)}): mend it"
        ) from None


def explain(error: BaseException, arguments: argparse.Namespace | None = None) -> str:
    """Say in one line what Hydra could not read, and what would be right."""
    cause = error.__cause__
    if isinstance(error, UnicodeDecodeError | yaml.YAMLError):
        return _explain_file(error, arguments)
    if isinstance(cause, UnicodeDecodeError | yaml.YAMLError):
        return _explain_file(cause, arguments)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={shorten(choice)} does not exist: use one of {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return _explain_override(error)
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        what = " ".join((cause.msg or str(cause)).split("\n")[0].split())
        key = cause.full_key or ""
        known = [str(name) for name in cause.parent_node] if isinstance(cause.parent_node, DictConfig) else []
        near = get_close_matches(key.rpartition(".")[2], known, n=3) or known
        if what.startswith("Key "):
            return f"'{shorten(key)}' is not a key of the configuration: use {', '.join(near)}"
        merged = shorten(str(error).removeprefix("Error merging override "), 120)
        return f"{merged} cannot be used ({shorten(what, 160)}): give a value of that type"
    first, _, missing = first_line(error).partition("Missing mandatory value: ")
    if missing:
        return f"{missing} is not set: add {missing}=... to the command"
    return f"the command cannot be read ({shorten(first, 200)}): see python -m ranksearch --help"


def _explain_words(words: Sequence[str], loader: ConfigLoader, error: Exception) -> str:
    """Which word of a command Hydra failed over, where its error does not say so."""
    for word in words:
        key, _, value = word.partition("=")
        if not key.strip("+~"):
            return f"'{shorten(word)}' names no key: write key=value"
        options = loader.get_group_options(key.strip("+~"))
        if options and value not in options:
            return f"{key}={shorten(value)} names no file of this group: use one of {', '.join(options)}"
    return f"the command cannot be read ({shorten(first_line(error), 200)}): see python -m ranksearch --help"


def _explain_override(error: OverrideParseException) -> str:
    """What to type instead of a word that Hydra's grammar does not take."""
    word = str(error.override)
    key, equals, value = word.partition("=")
    simple = re.fullmatch(r"[+~]{0,2}[\w./@-]+", key)
    if equals and simple and value and not value.startswith(("[", "{", "'", '"', "$")):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return (
            f"{key}={shorten(value)} cannot be read, for it has characters that mean something to Hydra: "
            f"put it into quotes inside the shell's, '{key}=\"{shorten(quoted, 200)}\"'"
        )
    reason = shorten(first_line(error), 120)
    return f"the command cannot be read ({reason}): see python -m ranksearch --help"


def _explain_file(error: UnicodeDecodeError | yaml.YAMLError, arguments: argparse.Namespace | None) -> str:
    """Which file of configurations is damaged, and where."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    file = getattr(mark, "name", None) or getattr(error, "name", None)
    where = f" at line {mark.line + 1}" if mark is not None else ""
    if isinstance(error, UnicodeDecodeError) or not file or file.startswith("<"):
        found = _undecodable(arguments)
        file, where = (str(found), "") if found is not None else (file or "a file of configurations", where)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or first_line(error)
    return f"{file} cannot be read{where} ({shorten(str(problem), 120)}): mend it, as YAML in UTF-8"


def _undecodable(arguments: argparse.Namespace | None) -> Path | None:
    """The first file of one's own configurations that is not UTF-8."""
    own = [] if arguments is None else [arguments.config_dir, arguments.config_path]
    for folder in filter(None, own):
        for file in sorted(Path(folder).rglob("*.yaml")):
            try:
                file.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                return file
    return None

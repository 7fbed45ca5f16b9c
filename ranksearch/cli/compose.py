"""Composition and resolution of the configuration, before Hydra writes anything."""

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from ranksearch.cli.config import RunConfig
from ranksearch.cli.explain import UNREADABLE, explain, explain_words
from ranksearch.cli.secrets import password_error
from ranksearch.errors import UserError, first_line, shorten
from ranksearch.redaction import holds_password
from ranksearch.study.settings import study_folder
from ranksearch.training.recipe import Recipe

PACKAGE = Path(__file__).resolve().parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
NAME = "config"


def register_schemas() -> None:
    """Register a resolver and the schemas of all keys, which come first in the defaults lists in `conf/`."""
    ConfigStore.instance().store("schema", RunConfig)
    ConfigStore.instance().store("recipe", Recipe, group="fine_tune")
    OmegaConf.register_new_resolver("study_folder", study_folder, replace=True)


def read_words(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command as Hydra does; UserError if it is malformed, asks for an unsafe rerun, or holds a password."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"the command cannot be read ({shorten(message)}): see python -m ranksearch --help")

    parser.error = refuse  # type: ignore[method-assign]  # argparse would write its usage in several lines
    arguments = parser.parse_args(list(words))
    if arguments.experimental_rerun is not None:
        raise UserError("--experimental-rerun unpickles a file, which may run anything: give the overrides again")
    for word in arguments.overrides:
        key, _, value = word.partition("=")
        if holds_password(value):
            raise password_error(key)
    return arguments


def runs(arguments: argparse.Namespace) -> bool:
    """Return whether a command does more than print information."""
    return not any((arguments.help, arguments.hydra_help, arguments.cfg, arguments.info, arguments.shell_completion))


def compose(arguments: argparse.Namespace) -> DictConfig:
    """Compose a command's configuration, with Hydra's own settings; nothing is written."""
    several = arguments.multirun or any(word.startswith("hydra.mode=") for word in arguments.overrides)
    with _loader(arguments) as loader:
        try:
            mode = RunMode.MULTIRUN if several else RunMode.RUN
            cfg = loader.load_configuration(arguments.config_name or NAME, arguments.overrides, mode)
        except UNREADABLE as error:
            raise UserError(explain(error, arguments)) from error
        except Exception as error:  # words that Hydra does not handle, such as a number for a group's file
            raise UserError(explain_words(arguments.overrides, loader, error)) from error
    several = arguments.multirun or cfg.hydra.mode == RunMode.MULTIRUN
    _check_hydra(cfg)
    cfg.hydra.mode = RunMode.MULTIRUN if several else RunMode.RUN
    HydraConfig.instance().set_config(cfg)
    return cfg


def compose_jobs(arguments: argparse.Namespace, cfg: DictConfig) -> Iterator[DictConfig]:
    """Yield the configuration of every job of a sweep, if Hydra's basic sweeper makes them; nothing is written."""
    if not str(OmegaConf.select(cfg, "hydra.sweeper._target_")).endswith(".BasicSweeper"):
        return
    with _loader(arguments) as loader:
        try:
            params = OmegaConf.to_container(cfg.hydra.sweeper.params or OmegaConf.create({}), resolve=False)
            swept = [f"{key}={value}" for key, value in cast(dict[str, Any], params).items()]
            parsed = OverridesParser.create(config_loader=loader).parse_overrides([*arguments.overrides, *swept])
            [jobs] = BasicSweeper.split_arguments(parsed, None)  # one batch, as its size has no limit
            for job in jobs:
                yield loader.load_sweep_config(cfg, job)
        except UNREADABLE as error:
            raise UserError(explain(error, arguments)) from error
        except (ValueError, TypeError, AssertionError) as error:
            reason = shorten(first_line(error), 160)
            raise UserError(f"the sweep cannot be read ({reason}): fix its overrides") from error


@contextmanager
def _loader(arguments: argparse.Namespace) -> Iterator[ConfigLoader]:
    """Yield the config loader of a command."""
    folder = str(CONF) if arguments.config_path is None else os.path.abspath(arguments.config_path)
    path = create_config_search_path(folder)
    if arguments.config_dir is not None:
        own = os.path.abspath(arguments.config_dir)
        if not os.path.isdir(own):
            raise UserError(f"--config-dir {arguments.config_dir} is not a folder: name one with configurations")
        path.prepend("command-line", f"file://{own}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2("ranksearch", path).config_loader
    finally:
        GlobalHydra.instance().clear()


def _check_hydra(cfg: DictConfig) -> None:
    """Raise UserError if one of Hydra's own settings is missing, unreadable or of a type that Hydra cannot use."""
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
            if key.startswith("job."):  # Hydra resolves these from its own settings alone
                value = OmegaConf.select(OmegaConf.masked_copy(cfg, "hydra"), f"hydra.{key}")
                if isinstance(value, DictConfig):
                    OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            if missing := str(error).partition("Missing mandatory value: ")[2].splitlines():
                raise UserError(f"{missing[0]} is not set: add {missing[0]}=... to the command") from None
            raise UserError(f"hydra.{key} cannot be read ({shorten(first_line(error), 160)}): fix it") from None
        if not isinstance(value, kind) or value == "":
            text = shorten(str(value))
            raise UserError(f"hydra.{key}={text} has the wrong type: remove it, or see the documentation of Hydra")


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return a configuration without Hydra's own settings."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration without Hydra's own settings, as plain values; UserError if one is missing."""
    cfg = without_hydra(cfg)
    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise UserError(f"{missing[0]} is not set: add {missing[0]}=... to the command")
        return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    except InterpolationResolutionError as error:
        unset = re.search(r"Environment variable '(\w+)' not found", str(error))
        reason = f"{unset[1]} is not set in the environment" if unset else shorten(first_line(error), 200)
        remedy = f"export {unset[1]}=..." if unset else "fix the interpolation"
        raise UserError(f"{error.full_key} cannot be resolved ({reason}): {remedy}") from None
    except OmegaConfBaseException as error:
        key = error.full_key or "the configuration"
        raise UserError(f"{key} cannot be read ({first_line(error)}): fix it") from None

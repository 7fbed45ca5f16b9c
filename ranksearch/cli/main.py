"""The command line, from the words of a command to the work of its mode.

A run has two steps. In the first, which writes nothing, the configuration is composed and searched for passwords, and
every object is built, so that whatever the user got wrong is reported there. Only then does Hydra make the run's folder
and its records, and the second step does the work.
"""

import argparse
import io
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from errno import EACCES, EEXIST, EISDIR, ENOSPC, ENOTDIR, EPERM, EROFS
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ranksearch.cli.compose import CONF, compose, compose_jobs, read_words, register_schemas, resolve, without_hydra
from ranksearch.cli.compose import runs as runs_something
from ranksearch.cli.config import make_config, require_outputs
from ranksearch.cli.explain import UNREADABLE, explain, quote
from ranksearch.cli.interrupts import exit_on_interrupt
from ranksearch.cli.logs import EarlyLog, quiet_optuna, redact_logs
from ranksearch.cli.overwrite_guard import ELSEWHERE, require_own_run, require_own_sweep
from ranksearch.cli.run_context import Launch, Work
from ranksearch.cli.secrets import environment_secrets, known_secrets
from ranksearch.errors import UserError, first_line, is_full_disk, shorten
from ranksearch.redaction import Redactor
from ranksearch.report.sweep import JobOutcome, write_outcome

log = logging.getLogger(__name__)

LONGEST_LINE = 1000  # characters of a line that reports an error
UNWRITABLE = (EACCES, EEXIST, EISDIR, ENOSPC, ENOTDIR, EPERM, EROFS)  # errors that another folder avoids
Start = Callable[..., Callable[[], None]]  # what `hydra.main` makes of the function that does the work


def main() -> None:
    """Run the command line; ends the process with 0, 1, 2 or 130 as README.md says."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises its errors, which are then explained in one line each
    logging.raiseExceptions = False  # a log that cannot be written is no reason to fill the terminal
    sys.path.insert(0, os.getcwd())  # for the user's own model and data, however ranksearch is started
    register_schemas()
    redactor = Redactor(environment_secrets())
    sys.excepthook = redactor.hook(lambda text: sys.stderr.write(text))
    try:
        _command(sys.argv[1:], redactor)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever reads the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or what is left to write would raise again
    except UserError as error:
        sys.exit(_complain(str(error), redactor))
    except UNREADABLE as error:
        sys.exit(_complain(explain(error), redactor))
    except OSError as error:
        if error.filename and error.errno in UNWRITABLE:
            sys.exit(_complain(f"{error.filename} cannot be written ({error.strerror}): {ELSEWHERE}", redactor))
        raise


def _command(words: list[str], redactor: Redactor) -> None:
    """Run a command, or show what it asks Hydra to show."""
    arguments = read_words(words)
    start = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    if not runs_something(arguments):
        with suppress(UserError):  # of what is only shown
            redactor = Redactor(known_secrets(compose(arguments)) | redactor.secrets)
        _show(start(lambda _: None), redactor)
        return
    cfg = compose(arguments)
    redactor = Redactor(known_secrets(cfg) | redactor.secrets)
    sys.excepthook = redactor.hook(lambda text: sys.stderr.write(text))
    with _explained(cfg, redactor):
        require_outputs(cfg.outputs)
        if cfg.hydra.mode == RunMode.MULTIRUN:
            _run_sweep(arguments, cfg, start)
        else:
            _run_once(cfg, start, redactor)


def _show(show: Callable[[], None], redactor: Redactor) -> None:
    """Print what Hydra is asked to show, without passwords."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            show()
    finally:
        print(redactor(text.getvalue()), end="")


@contextmanager
def _explained(cfg: DictConfig, redactor: Redactor) -> Iterator[None]:
    """End the process with 2 and one line for errors that the user can fix."""
    try:
        yield
    except UserError as error:
        sys.exit(_complain(str(error), redactor))
    except Exception as error:
        if not is_full_disk(error):
            raise
        outputs = f"the disk of {cfg.outputs} is full, finished trials are kept: free some space and run this again"
        sys.exit(_complain(outputs, redactor))


def _run_once(cfg: DictConfig, start: Start, redactor: Redactor) -> None:
    """Run one job: every check, then Hydra's folder, then the work."""
    folder = Path(cfg.hydra.run.dir)
    require_own_run(folder, cfg.hydra.output_subdir, f"{cfg.hydra.job.name}.log")
    try:
        Callbacks(cfg)
    except Exception as error:  # anything that a user's callback raises
        raise UserError(f"hydra.callbacks cannot be built ({shorten(first_line(error), 160)}): fix them") from error
    early = EarlyLog(cfg, redactor)
    with ExitStack() as stack:
        with early.listening():
            work = _prepare(cfg, stack, folder, live=True)

        def run(_: DictConfig) -> None:
            early.replay()
            redact_logs(redactor, cfg.quiet)
            with _explained(cfg, redactor):  # or Hydra would report it as well
                work()

        start(run)()


def _run_sweep(arguments: argparse.Namespace, cfg: DictConfig, start: Start) -> None:
    """Run a sweep, once every job's configuration can be read and holds no password."""
    folder = Path(cfg.hydra.sweep.dir)
    require_own_sweep(folder)
    for job in compose_jobs(arguments, cfg):
        known_secrets(job)
    # One folder for all jobs, whatever they set outputs to.
    sys.argv = [*sys.argv, f"hydra.sweep.dir={quote(str(folder))}"]
    try:
        start(_run_job)()
    except (HydraException, ValueError, AssertionError, RuntimeError) as error:  # of a sweeper, or a launcher
        reason = shorten(first_line(error), 200)
        raise UserError(f"the sweep cannot be run ({reason}): see hydra.sweeper and hydra.launcher") from error


def _run_job(cfg: DictConfig) -> None:
    """Run one job of a sweep and write its outcome, so that the other jobs run whatever happens to this one."""
    hydra_config, status, reason = HydraConfig.get(), 0, None
    # A launcher may pickle this function to a file, so passwords come from the environment of its own process.
    redactor = Redactor(environment_secrets())
    try:
        redactor = Redactor(known_secrets(cfg))
        redact_logs(redactor, cfg.quiet)
        with ExitStack() as stack:
            _prepare(cfg, stack, folder=None, live=False)()
    except UserError as error:
        reason = redactor(str(error))
        status = _complain(reason, redactor)
    except Exception as error:
        log.exception("job %s failed", hydra_config.job.num)
        status, reason = 1, redactor(f"{type(error).__name__}: {first_line(error)}")
    study, folder = "", str(cfg.outputs)
    with suppress(OmegaConfBaseException):  # of a name that cannot be resolved
        study = str(cfg.study.name)
        folder = str(Path(folder) / study)
    outcome = JobOutcome(int(hydra_config.job.num), _overrides(), study, folder, status, reason)
    write_outcome(Path(hydra_config.runtime.output_dir), outcome)


def _prepare(cfg: DictConfig, stack: ExitStack, folder: Path | None, live: bool) -> Work:
    """Make every check of a run and return its work; see `Launch`. A UserError leaves nothing written."""
    resolved, plain = resolve(cfg), without_hydra(cfg)
    config = make_config(plain)
    quiet_optuna()
    # Unresolved, because what ${oc.env:...} resolves to belongs in no file.
    settings = cast(dict[str, Any], OmegaConf.to_container(plain, resolve=False))
    launch = Launch(resolved, settings, _command_line(), folder, live and not config.quiet, stack)
    with exit_on_interrupt():
        mode = import_module(f"ranksearch.cli.modes.{config.mode}")  # of which most load torch
    return cast(Work, mode.prepare(config, launch))


def _complain(message: str, redactor: Redactor) -> int:
    print(f"ranksearch: {shorten(' '.join(redactor(message).split()), LONGEST_LINE)}", file=sys.stderr)
    return 2


def _command_line() -> str:
    """Return the command that repeats this run, one job alone if it is one of a sweep."""
    sources = HydraConfig.get().runtime.config_sources
    folders = [word for s in sources if s.provider == "command-line" for word in ("--config-dir", s.path)]
    return shlex.join(["python", "-m", "ranksearch", *folders, *_overrides()])


def _overrides() -> list[str]:
    """Return the overrides as the user wrote them: what ${oc.env:...} resolves to belongs in no file."""
    return cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))

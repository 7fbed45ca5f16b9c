"""Hydra in, objects out: the command line.

A run goes in two steps. Whatever a person got wrong shows in the first, which writes nothing: the configuration is
composed, searched for passwords, and every object is built. Only then does Hydra make the run's folder and its records,
and the second step does the work.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from errno import EACCES, EEXIST, EISDIR, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path
from typing import Any, cast

import hydra
import optuna
from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ranksearch.afterwards import prepare_dashboard, prepare_export, prepare_report
from ranksearch.composing import (
    CONF,
    UNREADABLE,
    compose,
    compose_jobs,
    explain,
    known_secrets,
    read_words,
    register_schemas,
    resolve,
    runs,
    without_hydra,
)
from ranksearch.config import RunConfig
from ranksearch.errors import UserError, first_line, is_full_disk, shorten
from ranksearch.ownership import (
    made,
    require_folder,
    require_own_comparison,
    require_own_outputs,
    require_own_run,
    require_own_sweep,
)
from ranksearch.preparing import open_job_study, open_known_storage, prepare
from ranksearch.redaction import Redactor, passwords_in
from ranksearch.schema import freeze
from ranksearch.storage import failures_told
from ranksearch.study import study_folder
from ranksearch.sweep import JobOutcome, write_outcome
from ranksearch.tasks import run_finalize, run_profile, run_search
from ranksearch.terminal import watched

log = logging.getLogger(__name__)

# Of a line that tells what a person can mend.
LONGEST_LINE = 1000
# Of an error that a person can mend by choosing another place.
UNWRITABLE = (EACCES, EEXIST, EISDIR, ENOSPC, ENOTDIR, EPERM, EROFS)
# The work of a run that is ready for it.
Work = Callable[[], None]


def main() -> None:
    """Run the command line; ends the process with 0, 1, 2 or 130 as README.md says."""
    # Hydra then hands its errors on, and they can be told in one line each.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.raiseExceptions = False  # a log that cannot be written is no reason to fill the terminal
    sys.path.insert(0, os.getcwd())  # one's own model and data, whichever way ranksearch is started
    register_schemas()
    redactor = Redactor(passwords_in(os.environ.get("RANKSEARCH_STORAGE", "")))
    sys.excepthook = redactor.hook(lambda text: sys.stderr.write(text))
    try:
        _command(sys.argv[1:], redactor)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has had enough
        _discard_output()
    except UserError as error:
        sys.exit(_complain(str(error), redactor))
    except UNREADABLE as error:
        sys.exit(_complain(explain(error), redactor))
    except OSError as error:
        if error.filename and error.errno in UNWRITABLE:
            advice = "choose another folder with outputs=..."
            sys.exit(_complain(f"{error.filename} cannot be written ({error.strerror}): {advice}", redactor))
        raise


def _command(words: list[str], redactor: Redactor) -> None:
    """Do what a command asks for.

    Raises:
        UserError: something that the person can mend.
    """
    arguments = read_words(words)
    start = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    if not runs(arguments):
        with suppress(UserError):  # of what is only shown
            redactor = Redactor(known_secrets(compose(arguments)) | redactor.secrets)
        _show(start(_nothing), redactor)
        return
    cfg = compose(arguments)
    redactor = Redactor(known_secrets(cfg) | redactor.secrets)
    sys.excepthook = redactor.hook(lambda text: sys.stderr.write(text))
    with _explained(cfg, redactor):
        if cfg.hydra.mode == RunMode.MULTIRUN:
            _sweep(arguments, cfg, start)
        else:
            _single(cfg, start, redactor)


def _sweep(arguments: argparse.Namespace, cfg: DictConfig, start: Callable[..., Callable[[], None]]) -> None:
    """Run a sweep, once every job's configuration can be read and holds no password."""
    _require_outputs(cfg)
    folder = Path(cfg.hydra.sweep.dir)
    require_own_sweep(folder)
    for job in compose_jobs(arguments, cfg):
        known_secrets(job)
    # One folder for all jobs, whatever they set outputs to.
    quoted = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    sys.argv = [*sys.argv, f'hydra.sweep.dir="{quoted}"']
    try:
        start(_run_job)()
    except (HydraException, ValueError, AssertionError, RuntimeError) as error:  # of a sweeper, or a launcher
        reason = shorten(first_line(error), 200)
        raise UserError(f"the sweep cannot be run ({reason}): see hydra.sweeper and hydra.launcher") from error


@contextmanager
def _explained(cfg: DictConfig, redactor: Redactor) -> Iterator[None]:
    """End the process with 2 and one line for what a person can mend."""
    try:
        yield
    except UserError as error:
        sys.exit(_complain(str(error), redactor))
    except Exception as error:
        if not is_full_disk(error):
            raise
        outputs = f"the disk of {cfg.outputs} is full, what finished is kept: make room and run this again"
        sys.exit(_complain(outputs, redactor))


def _nothing(_: DictConfig) -> None:
    """No work."""


def _show(show: Callable[[], None], redactor: Redactor) -> None:
    """Let Hydra print what it is asked for, without passwords."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            show()
    finally:
        print(redactor(text.getvalue()), end="")


def _single(cfg: DictConfig, start: Callable[..., Callable[[], None]], redactor: Redactor) -> None:
    """One run: everything checked, then Hydra's folder, then the work."""
    _require_outputs(cfg)
    folder = Path(cfg.hydra.run.dir)
    require_own_run(folder, cfg.hydra.output_subdir, f"{cfg.hydra.job.name}.log")
    try:
        Callbacks(cfg)
    except Exception as error:  # whatever a callback of one's own raises
        raise UserError(f"hydra.callbacks cannot be built ({shorten(first_line(error), 160)}): mend them") from error
    early = _EarlyLog(cfg, redactor)
    with ExitStack() as stack:
        with early.listening():
            work = _ready(cfg, stack, folder, live=True)

        def run(_: DictConfig) -> None:
            early.replay()
            _redact_logs(redactor)
            if cfg.quiet:
                _silence()
            with _explained(cfg, redactor):  # or Hydra would tell of it as well
                work()

        start(run)()


def _run_job(cfg: DictConfig) -> None:
    """Run one job of a sweep, and leave word of how it ended: the others go on, whatever happens to it.

    A launcher may write this function to a file, so that it learns of passwords from its own environment.
    """
    hydra_config, status, reason = HydraConfig.get(), 0, None
    redactor = Redactor(passwords_in(os.environ.get("RANKSEARCH_STORAGE", "")))
    try:
        redactor = Redactor(known_secrets(cfg))
        _redact_logs(redactor)
        if cfg.quiet:
            _silence()
        _require_outputs(cfg)
        with ExitStack() as stack:
            _ready(cfg, stack, folder=None, live=False)()
    except UserError as error:
        reason = redactor(str(error))
        status = _complain(reason, redactor)
    except Exception as error:
        log.exception("job %s failed", hydra_config.job.num)
        status, reason = 1, redactor(f"{type(error).__name__}: {first_line(error)}")
    study, below = "", str(cfg.outputs)
    with suppress(OmegaConfBaseException):  # of a name that cannot be resolved
        study = str(cfg.study.name)
        below = str(Path(below) / study)
    outcome = JobOutcome(int(hydra_config.job.num), _overrides(), study, below, status, reason)
    write_outcome(Path(hydra_config.runtime.output_dir), outcome)


def _require_outputs(cfg: DictConfig) -> None:
    if not str(cfg.outputs).strip():
        raise UserError("outputs= is empty, which would put everything at the root: name a folder, or . for this one")


def _ready(cfg: DictConfig, stack: ExitStack, folder: Path | None, live: bool) -> Work:
    """Make every check of a run; what is given back does its work.

    Args:
        cfg: its configuration.
        stack: that closes at the end of the run what is opened here.
        folder: of the run, that Hydra will make; None where it stands already.
        live: whether the run has the terminal to itself.

    Raises:
        UserError: something that the person can mend; nothing has been written then.
    """
    plain = resolve(cfg)
    config = freeze(RunConfig, plain)
    outputs = Path(config.outputs)
    if config.task == "export":
        return prepare_export(config)
    if config.task == "dashboard":
        with failures_told():
            return prepare_dashboard(config, open_known_storage(config, "look at"), stack)
    for key, cache in (("latency.cache", config.latency.cache), ("cost.cache", config.cost.get("cache"))):
        if isinstance(cache, str):
            require_folder(key, cache)
    if len(config.study.names) > 1:
        require_own_comparison(outputs / study_folder(config.study.name) / "comparison.html")
    else:
        require_own_outputs(outputs, study_folder(config.study.name))
    if config.task == "report":
        with failures_told():
            return prepare_report(config, open_known_storage(config, "report on"))
    _hush_optuna()
    # Unresolved, for what stands behind ${oc.env:...} belongs in no file.
    settings = cast(dict[str, Any], OmegaConf.to_container(without_hydra(cfg), resolve=False))
    job = prepare(config, plain, settings, _again())
    with ExitStack() as undone:
        if folder is not None:
            undone.enter_context(made(folder))
        study = open_job_study(job) if config.task in ("search", "finalize") else None

    def work() -> None:
        try:
            with failures_told(), watched(live and not config.quiet) as progress:
                if study is None:
                    run_profile(job, progress)
                elif config.task == "finalize":
                    run_finalize(job, progress, study[0])
                else:
                    run_search(job, progress, *study)
        except KeyboardInterrupt:
            log.warning("interrupted: everything finished is kept; run the same command again to go on")
            raise

    return work


class _EarlyLog(logging.Handler):
    """What is logged before Hydra has made a run's log file: shown at once, and written there later."""

    def __init__(self, cfg: DictConfig, redactor: Redactor) -> None:
        super().__init__(logging.DEBUG if cfg.hydra.verbose is True else logging.INFO)
        self._records: list[logging.LogRecord] = []
        self._shown = logging.ERROR if cfg.quiet else self.level
        self.addFilter(redactor)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, and keep it."""
        self._records.append(record)
        if record.levelno >= self._shown:
            print(self.format(record), flush=True)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the place of all other handlers inside the block."""
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level
        root.handlers[:] = [self]
        root.setLevel(self.level)
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)

    def replay(self) -> None:
        """Write all records to the log files that there are now."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                for record in self._records:
                    handler.handle(record)


def _complain(message: str, redactor: Redactor) -> int:
    line = shorten(" ".join(redactor(message).split()), LONGEST_LINE)
    print(f"ranksearch: {line}", file=sys.stderr)
    return 2


def _discard_output() -> None:
    """Let nothing that is still to be written to a closed pipe raise once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _redact_logs(redactor: Redactor) -> None:
    for handler in logging.getLogger().handlers:
        handler.addFilter(redactor)


def _silence() -> None:
    """Leave the terminal to errors; the log file has everything."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)


def _hush_optuna() -> None:
    """Let Optuna speak through our log, and of trials not at all, which ranksearch tells of in its own words."""
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    if HydraConfig.get().verbose is False:
        optuna.logging.set_verbosity(optuna.logging.ERROR)


def _again() -> str:
    """The command that starts this very run again, one job alone where it is one of a sweep."""
    hydra_config = HydraConfig.get()
    own = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    folders = [word for path in own for word in ("--config-dir", path)]
    return shlex.join(["python", "-m", "ranksearch", *folders, *_overrides()])


def _overrides() -> list[str]:
    """As the person wrote them: what stands behind ${oc.env:...} belongs in no file."""
    return cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))

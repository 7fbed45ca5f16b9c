"""Guard against overwriting foreign files: ranksearch's own are replaced, all others stop the run."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ranksearch.cli.config import RunConfig
from ranksearch.errors import UserError, first_line, shorten
from ranksearch.study.settings import study_folder

ELSEWHERE = "choose another folder with outputs=..."  # advice on a place that cannot be written


def _starts(*starts: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(starts)


def _names(*formats: str) -> Callable[[bytes], bool]:
    return lambda head: any(f'"ranksearch.{name}/'.encode() in head for name in formats)


def _is_page(head: bytes) -> bool:
    return b'<meta name="generator" content="ranksearch">' in head or b"<title>ranksearch" in head


# File below a study's folder -> predicate that recognizes ranksearch's own by the first bytes.
OWN_FILES: dict[str, Callable[[bytes], bool]] = {
    "trials.csv": _starts(b"trial,state,"),
    "profile.csv": _starts(b"layer,macs,"),
    "predicted_front.csv": _starts(b"speedup,"),
    "front.json": _names("front"),
    "run.json": _names("run"),
    "report.html": _is_page,
    "best/plan.json": _names("plan"),
}
FOLDERS = ("best", "best/export", "best/unfinished", "pictures", "runs")


def require_own_outputs(outputs: Path, study: str) -> None:
    """Raise UserError if a run of a study would overwrite anything that is not ranksearch's; nothing is written."""
    folder = outputs / study
    _require_folders((outputs, outputs / "cache", outputs / "artifacts", folder, *(folder / name for name in FOLDERS)))
    for name, is_own in OWN_FILES.items():
        file = folder / name
        if file.is_dir():
            raise UserError(f"{file} is a folder, but must be a file: move it away, or choose outputs=...")
        if file.exists() and not is_own(_head(file)):
            raise UserError(f"{file} was not written by ranksearch: move it away, or choose outputs=... or study.name")
    best = folder / "best"
    has_records = any((folder / name).exists() for name in ("run.json", "front.json"))  # checked above
    for name, owned in (("pictures", has_records), ("best/export", (best / "plan.json").exists())):
        if not owned and any(path.is_file() for path in (folder / name).rglob("*")):
            raise UserError(f"{folder / name} was not written by ranksearch: move it away, or choose study.name")
    strange = best.is_dir() and not (best / "plan.json").exists() and (best / "model.safetensors").exists()
    if strange and not (best / "unfinished").is_dir():
        raise UserError(f"{best} has weights but no plan of ranksearch: move it away, or choose outputs=...")


def require_own_artifacts(config: RunConfig) -> None:
    """Raise UserError if a run would overwrite anything that is not ranksearch's; nothing is written."""
    for key, cache in (("profile.cache", config.profile.cache), ("cost.cache", config.cost.get("cache"))):
        if isinstance(cache, str):
            require_folder(key, cache)
    outputs, folder = Path(config.outputs), study_folder(config.study.name)
    if len(config.study.names) > 1:
        require_own_comparison(outputs / folder / "comparison.html")
    else:
        require_own_outputs(outputs, folder)


def require_own_comparison(file: Path) -> None:
    """Raise UserError if a page that compares studies would overwrite a foreign file."""
    _require_folders((file.parent,))
    if file.is_dir() or (file.exists() and not _is_page(_head(file))):
        raise UserError(f"{file} was not written by ranksearch: move it away, or choose outputs=...")


def require_own_sweep(folder: Path) -> None:
    """Raise UserError if a sweep would overwrite foreign files in its folder."""
    _require_folders((folder,))
    own: dict[str, Callable[[bytes], bool]] = {
        "sweep.csv": _starts(b"job,"),
        "sweep.html": _is_page,
        "multirun.yaml": lambda head: b"ranksearch" in head,
    }
    for name, is_own in own.items():
        file = folder / name
        if file.is_dir() or (file.exists() and not is_own(_head(file))):
            raise UserError(f"{file} was not written by ranksearch: choose another hydra.sweep.dir")
    for job in folder.iterdir() if folder.is_dir() else ():
        if job.name.isdigit():
            require_own_run(job)
            outcome = job / "job.json"
            if outcome.exists() and b'"overrides"' not in _head(outcome):
                raise UserError(f"{outcome} was not written by ranksearch: choose another hydra.sweep.dir")


def require_own_run(folder: Path, records: str | None = ".hydra", log: str = "ranksearch.log") -> None:
    """Raise UserError if Hydra's records of a run, or its log file, would replace those of another program."""
    held = [] if records is None else [folder / records]
    _require_folders((folder, *held))
    with suppress(OSError, ValueError):
        if any(b"name: ranksearch" in (path / "hydra.yaml").read_bytes() for path in held):
            return
    files = [path / name for path in held for name in ("config.yaml", "hydra.yaml", "overrides.yaml")]
    for file in (*files, folder / log):
        if file.exists():
            raise UserError(f"{file} is another program's record of a run: choose another hydra.run.dir")


def require_folder(key: str, path: str) -> None:
    """Raise UserError if the path in a setting is a file, lies below one, or is an invalid name."""
    try:
        _require_folders((Path(path),))
    except UserError as error:
        problem = "is a file" if "it is a file" in str(error) else "cannot be a folder's name"
        raise UserError(f"{key}={shorten(path, 160)} {problem}: name a folder") from None


def _require_folders(paths: Iterable[Path]) -> None:
    for path in paths:
        for part in (path, *path.parents):
            try:
                if part.is_dir():
                    break
                occupied = part.exists() or part.is_symlink()
            except (OSError, ValueError) as error:  # a name that is too long, or that no file can have
                name = shorten(str(part), 160)
                raise UserError(f"{name} cannot be written ({first_line(error)[:60]}): {ELSEWHERE}") from None
            if occupied:
                raise UserError(f"{part} cannot be written (it is a file, but a folder is needed): {ELSEWHERE}")


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as content:
            return content.read(4096)  # enough to recognize the file's origin
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): {ELSEWHERE}") from None


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Create a folder; if the block fails, remove the folders created for it that are still empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}): {ELSEWHERE}") from None
        yield
    except BaseException:
        for path in missing:  # innermost first
            with suppress(OSError):
                path.rmdir()
        raise

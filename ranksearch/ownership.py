"""Files that stand where a run would write: ranksearch's own are replaced, all others refuse the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ranksearch.errors import UserError, first_line, shorten

# Of a file that is looked at to tell whose it is.
HEAD = 4096


def _starts(*starts: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(starts)


def _names(*formats: str) -> Callable[[bytes], bool]:
    return lambda head: any(f'"ranksearch.{name}/'.encode() in head for name in formats)


def _is_page(head: bytes) -> bool:
    return b'<meta name="generator" content="ranksearch">' in head or b"<title>ranksearch" in head


# A file below a study's folder -> whether its first bytes are those of ranksearch's own.
OURS: dict[str, Callable[[bytes], bool]] = {
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
    """Raise if what a run of a study would write meets anything that is not ranksearch's; nothing is written.

    Args:
        outputs: folder of all outputs.
        study: name of the folder below it.

    Raises:
        UserError: a file stands in the place of a folder, a folder in that of a file, or a file is another program's.
    """
    folder = outputs / study
    _require_folders((outputs, outputs / "cache", outputs / "artifacts", folder, *(folder / name for name in FOLDERS)))
    for name, is_ours in OURS.items():
        file = folder / name
        if file.is_dir():
            raise UserError(f"{file} is a folder, where a file is to be written: move it away, or choose outputs=...")
        if file.exists() and not is_ours(_head(file)):
            raise UserError(f"{file} was not written by ranksearch: move it away, or choose outputs=... or study.name")
    best = folder / "best"
    ours = any((folder / name).exists() for name in ("run.json", "front.json"))  # which were looked at above
    for name, whose in (("pictures", ours), ("best/export", (best / "plan.json").exists())):
        if not whose and any(path.is_file() for path in (folder / name).rglob("*")):
            raise UserError(f"{folder / name} was not written by ranksearch: move it away, or choose study.name")
    strange = best.is_dir() and not (best / "plan.json").exists() and (best / "model.safetensors").exists()
    if strange and not (best / "unfinished").is_dir():
        raise UserError(f"{best} holds weights without a plan of ranksearch's: move it away, or choose outputs=...")


def require_own_comparison(file: Path) -> None:
    """Raise if a page that compares studies would replace another.

    Raises:
        UserError: it would.
    """
    _require_folders((file.parent,))
    if file.is_dir() or (file.exists() and not _is_page(_head(file))):
        raise UserError(f"{file} was not written by ranksearch: move it away, or choose outputs=...")


def require_own_sweep(folder: Path) -> None:
    """Raise if a sweep would write over files of another program.

    Args:
        folder: of the sweep.

    Raises:
        UserError: it would.
    """
    _require_folders((folder,))
    own: dict[str, Callable[[bytes], bool]] = {
        "sweep.csv": _starts(b"job,"),
        "sweep.html": _is_page,
        "multirun.yaml": lambda head: b"ranksearch" in head,
    }
    for name, is_ours in own.items():
        file = folder / name
        if file.is_dir() or (file.exists() and not is_ours(_head(file))):
            raise UserError(f"{file} was not written by ranksearch: choose another hydra.sweep.dir")
    for job in folder.iterdir() if folder.is_dir() else ():
        if job.name.isdigit():
            require_own_run(job)
            word = job / "job.json"
            if word.exists() and b'"overrides"' not in _head(word):
                raise UserError(f"{word} was not written by ranksearch: choose another hydra.sweep.dir")


def require_own_run(folder: Path, records: str | None = ".hydra", log: str = "ranksearch.log") -> None:
    """Raise if Hydra's records of a run would replace those of another program.

    Args:
        folder: of the run.
        records: the folder of the records below it; None for none.
        log: name of the log file.

    Raises:
        UserError: they would.
    """
    held = None if records is None else folder / records
    _require_folders((folder,) if held is None else (folder, held))
    if held is not None and b"name: ranksearch" in _whole(held / "hydra.yaml"):
        return
    stand = [] if held is None else [held / name for name in ("config.yaml", "hydra.yaml", "overrides.yaml")]
    for file in (*stand, folder / log):
        if file.exists():
            raise UserError(f"{file} is another program's record of a run: choose another hydra.run.dir")


def _whole(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except (OSError, ValueError):
        return b""


def require_folder(key: str, path: str) -> None:
    """Raise if a setting names a file, or what lies below one, where a folder is wanted.

    Args:
        key: of the setting.
        path: its value.

    Raises:
        UserError: it does.
    """
    try:
        _require_folders((Path(path),))
    except UserError as error:
        what = "is a file" if "it is a file" in str(error) else "cannot be a folder's name"
        raise UserError(f"{key}={shorten(path, 160)} {what}: name a folder") from None


def _require_folders(paths: Iterable[Path]) -> None:
    advice = "choose another folder with outputs=..."
    for path in paths:
        for part in (path, *path.parents):
            try:
                if part.is_dir():
                    break
                stands = part.exists() or part.is_symlink()
            except (OSError, ValueError) as error:  # a name that is too long, or that no file can have
                said = shorten(str(part), 160)
                raise UserError(f"{said} cannot be written ({first_line(error)[:60]}): {advice}") from None
            if stands:
                raise UserError(f"{part} cannot be written (it is a file, where a folder is wanted): {advice}")


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as content:
            return content.read(HEAD)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): choose another folder with outputs=...") from None


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder, and where the block fails take away what was made of it, as long as that is empty.

    Raises:
        UserError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove(missing)
        advice = "choose another folder with outputs=..."
        raise UserError(f"{folder} cannot be written ({error.strerror}): {advice}") from None
    try:
        yield
    except BaseException:
        _remove(missing)
        raise


def _remove(folders: Iterable[Path]) -> None:
    """Take empty folders away, the innermost first."""
    for folder in folders:
        with suppress(OSError):
            os.rmdir(folder)

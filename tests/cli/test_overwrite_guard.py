"""A run touches only what is ranksearch's own, and deletes only what it made itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from runs import FAKE, STUDY, call

from ranksearch.cli.overwrite_guard import made, require_own_outputs, require_own_run, require_own_sweep
from ranksearch.errors import UserError
from ranksearch.files import remove_files, replacing, write_json
from ranksearch.storage import journal, sqlite

QUICK = [*FAKE, "study.name=s"]
FOREIGN = {
    "s/trials.csv": "my,own,table\n",
    "s/front.json": '{"my": "own"}',
    "s/run.json": "[]",
    "s/report.html": "<html>mine</html>",
    "s/profile.csv": "my,own\n",
    "s/predicted_front.csv": "my,own\n",
    "s/best/plan.json": '{"format": "mine/1"}',
    "s/best/model.safetensors": "mine",
    "s/best": "a file",
    "s/pictures": "a file",
    "s": "a file",
    "cache": "a file",
    "artifacts": "a file",
    "s/trials.csv/below": "in a folder",
    "s/best/plan.json/below": "in a folder",
}


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_others_refuse_the_run_and_stay_as_they_are(name: str, tmp_path: Path) -> None:
    file = tmp_path / "outputs" / name
    file.parent.mkdir(parents=True)
    file.write_text(FOREIGN[name])
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r": .*(move it away|choose)"):
        require_own_outputs(tmp_path / "outputs", "s")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["s/best", "s/trials.csv"])
def test_so_does_the_command_line(name: str, tmp_path: Path) -> None:
    file = tmp_path / "outputs" / name
    file.parent.mkdir(parents=True)
    file.write_text(FOREIGN[name])
    before = tree(tmp_path)
    done = call(tmp_path, small=QUICK)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (".", ["seed=-1"]),
        (".", ["constraint.speedup=1000"]),
        ("results", ["mode=report"]),
        ("results", ["constraint.speedup=1000"]),
        ("results/new", ["mode=export"]),
        ("results/new", ["constraint.speedup=1000"]),
    ],
)
def test_a_refused_run_costs_nobody_a_byte(where: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "results" / "old").mkdir(parents=True)
    for name in ("notes.txt", "results/thesis.txt", "results/old/data.txt"):
        (tmp_path / name).write_text("years of work")
    (tmp_path / ".hydra").mkdir()
    write_json(tmp_path / ".hydra" / "config.yaml", {"of": "another program"})
    before = tree(tmp_path)
    done = call(tmp_path, f"hydra.run.dir={where}", *words, small=QUICK)
    assert done.returncode == 2
    assert tree(tmp_path) == before


def test_records_of_another_program_s_run_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra:\n  job:\n    name: theirs\n")
    with pytest.raises(UserError, match=r"hydra\.yaml is another program's record of a run: choose another"):
        require_own_run(tmp_path)
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra:\n  job:\n    name: ranksearch\n")
    require_own_run(tmp_path)
    (tmp_path / "sweep.csv").write_text("my,own\n")
    with pytest.raises(UserError, match=r"sweep\.csv was not written by ranksearch"):
        require_own_sweep(tmp_path)


def test_a_folder_is_taken_away_again_only_where_it_was_made_and_is_empty(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "there/new/run", "new"):
        with pytest.raises(ValueError, match="no"), made(tmp_path / name):
            raise ValueError("no")
    assert tree(tmp_path) == {"there": None}

    def fill(folder: Path) -> None:
        with made(folder):
            (folder / "file").write_text("kept")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fill(tmp_path / "new")
    assert (tmp_path / "new" / "file").read_text() == "kept"
    with pytest.raises(UserError, match="cannot be written"), made(tmp_path / "new" / "file" / "below"):
        pass


def test_files_of_known_names_alone_are_removed(tmp_path: Path) -> None:
    for name in ("a.pt", "plain/b.py", "plain/mine.py", "seed-1.checkpoint"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    remove_files(tmp_path, ["a.pt", "plain/b.py", "seed-*.checkpoint", "missing"])
    assert set(tree(tmp_path)) == {"plain", "plain/mine.py"}


def test_what_a_killed_process_left_beside_a_file_goes_and_what_others_keep_there_stays(tmp_path: Path) -> None:
    dead = next(pid for pid in range(2**22, 2**21, -1) if not Path(f"/proc/{pid}").exists())
    prefix = f".file.{os.uname().nodename}."
    for name, inside in (
        (f"{prefix}{dead}", "file"),
        (f"{prefix}{os.getpid()}1x", "file"),
        (f"{prefix}{dead - 1}", "d/f"),
    ):
        (tmp_path / name / inside).parent.mkdir(parents=True)
        (tmp_path / name / inside).write_text("half")
    with replacing(tmp_path / "file") as neighbour:
        neighbour.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert not (tmp_path / f"{prefix}{dead}").exists()
    assert (tmp_path / f"{prefix}{dead - 1}" / "d" / "f").exists()  # a folder, which is none of ours


@pytest.mark.parametrize("empty", ["outputs=''", "outputs=' '"])
@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_empty_outputs_are_no_path_at_the_root(empty: str, mode: list[str], tmp_path: Path) -> None:
    done = call(tmp_path, *mode, empty, small=QUICK)
    assert done.returncode == 2
    assert "outputs" in done.stderr
    assert STUDY not in "".join(os.listdir("/"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["multirun.yaml", "sweep.csv", "0/.hydra/config.yaml", "0/job.json"])
def test_a_sweep_of_another_program_is_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("theirs: 1\n")
    before = tree(tmp_path)
    done = call(tmp_path, "-m", "hydra.sweep.dir=.", "seed=0", small=QUICK)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [["outputs=a,b", "seed=-1"], ["seed=-1", "hydra.sweep.subdir=j"], ["seed=-1,x"], ["model=nope,resnet20"],
     ["seed=range(0,3,0)"], ["outputs='',b", "seed=-1"]],
)  # fmt: skip
def test_a_sweep_whose_jobs_are_all_refused_ends_with_2_and_no_traceback(words: list[str], tmp_path: Path) -> None:
    done = call(tmp_path, "-m", *words, small=QUICK)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert not Path("/sweeps").exists()


def test_a_lock_s_place_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    for name in ("study.db.ranksearch-lock", "study.db.lock", "poetry.lock"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="is in the place of a lock file, but is not one: move it away"):
        sqlite(str(tmp_path / "study.db"))
    with pytest.raises(UserError, match="in the place of a lock file"):
        journal(str(tmp_path / "study.db"))
    sqlite(str(tmp_path / "poetry")).engine.dispose()
    assert {path.read_text() for path in tmp_path.glob("*lock")} == {"mine"}


@pytest.mark.parametrize("seconds", [0, -5, 10**9, True])
def test_a_heartbeat_out_of_range_leaves_no_file(seconds: int, tmp_path: Path) -> None:
    for build in (sqlite, journal):
        with pytest.raises(UserError, match=r"heartbeat_seconds=.* is out of range: use 1 to 86400"):
            build(str(tmp_path / "study"), heartbeat_seconds=seconds)
    assert list(tmp_path.iterdir()) == []


def test_a_callback_that_cannot_be_built_leaves_no_file(tmp_path: Path) -> None:
    done = call(tmp_path, "+hydra.callbacks.mine._target_=no.such.thing", small=QUICK)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert list(tmp_path.iterdir()) == []

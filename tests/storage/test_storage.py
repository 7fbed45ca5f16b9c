"""Storages are opened by many at once, lose nothing that was written, and tell in one line what hinders them."""

from __future__ import annotations

import errno
import multiprocessing
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import TrialState
from servers import STORAGES, Server

from ranksearch.errors import UserError
from ranksearch.results.attributes import CLOSED_FORM
from ranksearch.storage import journal, rdb, sqlite, storage_errors
from ranksearch.storage.journal_storage import Journal
from ranksearch.storage.rdb_storage import Database
from ranksearch.storage.stale_trials import RETRIES, HeartbeatMonitor, wait_for_running_trials
from ranksearch.study.create import open_study

DISTRIBUTIONS = {"layer": optuna.distributions.IntDistribution(1, 100)}
Opener = Callable[[], BaseStorage]


# Trials are asked for one by one here, which a search never does.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")


@pytest.fixture
def closing() -> Iterator[Callable[[BaseStorage], BaseStorage]]:
    """Closes the connections of storages after a test."""
    opened: list[BaseStorage] = []

    def keep(storage: BaseStorage) -> BaseStorage:
        opened.append(storage)
        return storage

    yield keep
    for storage in opened:
        if isinstance(storage, Database):
            storage.remove_session()
            storage.engine.dispose()


@pytest.fixture(params=STORAGES)
def opener(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    closing: Callable[[BaseStorage], BaseStorage],
    start_server: Callable[[str], Server],
) -> Opener:
    """Opens one storage again and again."""
    if request.param == "sqlite":
        return lambda: closing(sqlite(str(tmp_path / "a folder" / "db"), heartbeat_seconds=1))
    if request.param == "journal":
        return lambda: journal(str(tmp_path / "a folder" / "journal"), heartbeat_seconds=1)
    url = start_server(request.param).create()
    return lambda: closing(rdb(url, heartbeat_seconds=1))


def waiting(study: optuna.Study, value: int) -> None:
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params={"layer": value},
            distributions=DISTRIBUTIONS,
            user_attrs={CLOSED_FORM: True},
        )
    )


def test_what_one_process_writes_another_reads(opener: Opener) -> None:
    study = open_study("s", opener(), {"a": [1, {"b": None}]})
    waiting(study, 7)
    trial = study.ask()
    trial.set_user_attr("text", "ä" * 3000)
    study.tell(trial, [0.5, 3.0])
    [found] = open_study("s", opener(), {"a": [1, {"b": None}]}).trials
    assert (found.params, found.values, found.user_attrs["text"]) == ({"layer": 7}, [0.5, 3.0], "ä" * 3000)
    assert found.distributions == DISTRIBUTIONS


def test_trials_are_read_as_optuna_reads_them(tmp_path: Path, closing: Callable[[BaseStorage], BaseStorage]) -> None:
    ours = closing(sqlite(str(tmp_path / "db")))
    study = optuna.create_study(study_name="s", storage=ours)
    waiting(study, 5)
    for index in range(6):
        trial = study.ask()
        if index:  # the first is from the queue, and has all its parameters
            trial.suggest_float("other", 0.1, 10, log=True)
            trial.suggest_categorical("scheme", ["full", None, 3])
        trial.set_user_attr("text", {"a": [index, None]})
        trial.report(float("inf") if index == 2 else 0.1 * index, 1)
        study.get_trials()  # a running trial is read, and again once it has ended
        if index == 3:
            study.tell(trial, state=TrialState.PRUNED)
        elif index == 4:
            study.tell(trial, state=TrialState.FAIL)
        elif index < 5:
            study.tell(trial, float("inf") if index == 1 else 0.5)
    study.enqueue_trial({"layer": 3})
    plain = RDBStorage(f"sqlite:///{tmp_path / 'db'}")
    theirs = plain.get_all_trials(study._study_id)
    assert study.get_trials() == theirs
    assert [study._storage.get_trial(trial._trial_id) for trial in theirs] == theirs
    assert [trial.state for trial in study.get_trials(states=[TrialState.PRUNED, TrialState.FAIL])] == [
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    with pytest.raises(KeyError):
        ours.get_trial(10**6)
    plain.remove_session()
    plain.engine.dispose()


def start_together(opener: Opener, barrier: Any, numbers: Any) -> None:
    barrier.wait()
    study = open_study("s", opener(), {"a": 1})
    waiting(study, 1)
    trial = study.ask()
    numbers.put(trial.number)
    study.tell(trial, [0.5, 3.0])


@pytest.mark.parametrize("count", [6, *(pytest.param(8, marks=pytest.mark.slow, id=f"8-{n}") for n in range(20))])
def test_many_that_start_at_once_take_a_trial_each(opener: Opener, count: int) -> None:
    context = multiprocessing.get_context("fork")
    barrier, numbers = context.Barrier(count), context.Queue()
    processes = [context.Process(target=start_together, args=(opener, barrier, numbers)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count
    told = sorted(numbers.get() for _ in range(count))
    assert len(set(told)) == count
    trials = open_study("s", opener(), {"a": 1}).trials
    assert [trial.number for trial in trials] == list(range(len(trials)))
    # One that found the queue empty, for another took its plan, drew a plan of its own.
    assert sorted(trial.number for trial in trials if trial.state == TrialState.COMPLETE) == told


def test_a_silent_trial_is_requeued(opener: Opener) -> None:
    storage = opener()
    study = open_study("s", storage, {})
    waiting(study, 42)
    for attempt in range(RETRIES + 1):
        trial = study.ask()  # and the process is killed here
        assert trial.params == {"layer": 42}
        trial.set_user_attr("rungs", {"0": 0.5})
        wait_for_running_trials(study, storage)
        states = [found.state for found in study.get_trials()]
        assert states[: attempt + 1] == [TrialState.FAIL] * (attempt + 1)
        assert len(states) == attempt + 1 + (attempt < RETRIES)  # in the end the plan is given up
    with pytest.raises(ValueError, match="Cannot tell a FAIL trial"):
        study.tell(trial, [0.5, 3.0])


def test_half_a_plan_is_not_requeued(opener: Opener) -> None:
    storage = opener()
    study = open_study("s", storage, {})
    study.ask().suggest_int("layer", 1, 100)
    wait_for_running_trials(study, storage)
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL]


def test_a_trial_that_gives_signs_of_life_is_left_alone(opener: Opener) -> None:
    study, other = open_study("s", opener(), {}), opener()
    beating, silent = study.ask(), study.ask()
    assert isinstance(study._storage, BaseHeartbeat)
    assert isinstance(other, BaseHeartbeat)
    for trial in (beating, silent):
        study._storage.record_heartbeat(trial._trial_id)
    deadline = time.monotonic() + 60
    while not (stale := other._get_stale_trial_ids(study._study_id)) and time.monotonic() < deadline:
        study._storage.record_heartbeat(beating._trial_id)
        time.sleep(0.2)
    assert stale == [silent._trial_id]


def test_silence_is_measured_by_ones_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now, watch = 0.0, HeartbeatMonitor()
    monkeypatch.setattr("ranksearch.storage.stale_trials.time.monotonic", lambda: now)
    assert watch.silent({1: "a", 2: None}, seconds=2) == []
    now = 1.5
    assert watch.silent({1: "b", 2: None}, seconds=2) == []
    now = 3.0
    assert watch.silent({1: "b", 2: None, 3: None}, seconds=2) == [2]
    now = 4.0
    assert watch.silent({1: "b", 3: None}, seconds=2) == [1]


@pytest.mark.parametrize("torn", [b'{"op_code":', b"\x00" * 5000, b'{"op_code":4,"worker_id":"x","study_id":0}'])
def test_half_a_line_of_a_journal_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal"
    first = open_study("s", journal(str(path)), {})
    first.tell(first.ask(), [0.5, 3.0])
    with path.open("ab") as file:  # a process was killed while it wrote, or the disk was full
        file.write(torn)
    second = open_study("s", journal(str(path)), {})
    second.tell(second.ask(), [0.6, 2.0])
    for study in (first, open_study("s", Journal(path, 60), {})):
        assert [trial.values for trial in study.get_trials()] == [[0.5, 3.0], [0.6, 2.0]]


@pytest.mark.parametrize("build", [sqlite, journal])
def test_a_file_that_is_no_storage_is_named(tmp_path: Path, build: Callable[[str], BaseStorage]) -> None:
    path = tmp_path / "file"
    path.write_text("neither a database nor a journal, and long enough to be looked at as one\n" * 20)
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"{path} (cannot be opened \(.+\): move it away|is not an Optuna journal)"):
        build(str(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense secret", r"\(hidden, it may hold a password\) is not the address"),
        ("sqlite:///studies.db", "is a file, not a server: use storage=sqlite"),
        (
            "postgresql+psycopg://me:secret@127.0.0.1:1/mine",
            "postgresql at 127.0.0.1, database 'mine', cannot be opened",
        ),
        ("mysql+nosuchdriver://me:secret@127.0.0.1/mine", "is not the address of a database"),
    ],
)
def test_a_server_that_cannot_be_had_is_one_line_without_a_secret(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        rdb(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_goes_away_is_waited_for(
    server: Server, caplog: pytest.LogCaptureFixture, closing: Callable[[BaseStorage], BaseStorage]
) -> None:
    study = open_study("s", closing(rdb(server.create())), {})
    study.tell(study.ask(), [0.5, 3.0])
    server.stop()

    def resume() -> None:
        time.sleep(2)  # until the study has been asked
        server.resume()

    later = multiprocessing.get_context("fork").Process(target=resume)
    later.start()
    study.tell(study.ask(), [0.6, 2.0])
    later.join()
    assert [trial.values for trial in study.get_trials()] == [[0.5, 3.0], [0.6, 2.0]]
    assert re.search("database is unreachable: waiting", caplog.text)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"the driver of postgresql .* is missing \(.*psycopg.*\): pip install"):
        rdb("postgresql+psycopg://me:secret@127.0.0.1:1/mine")


def test_a_storage_that_fails_is_told_in_one_line_but_for_a_full_disk() -> None:
    with (
        pytest.raises(UserError, match=r"storage failed \(gone\), finished trials are kept: fix it"),
        storage_errors(),
    ):
        raise StorageInternalError("gone")
    with pytest.raises(StorageInternalError), storage_errors():
        raise StorageInternalError from OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("folder", ["what?1", "what?2", "a#b", "a%20b", "100%", "ü b", "a'b"])
@pytest.mark.parametrize("build", [sqlite, journal])
def test_a_path_is_the_file_that_it_names(build: Callable[[str], BaseStorage], folder: str, tmp_path: Path) -> None:
    path = tmp_path / folder / "studies"
    optuna.create_study(study_name="s", storage=build(str(path)))
    assert optuna.get_all_study_names(build(str(path))) == ["s"]
    assert [each.name for each in tmp_path.iterdir()] == [folder]
    assert path.is_file()


@pytest.mark.parametrize("how", ["deleted", "replaced"])
@pytest.mark.parametrize("build", [sqlite, journal])
def test_a_file_that_goes_under_a_running_study_is_told(
    build: Callable[[str], BaseStorage], how: str, tmp_path: Path
) -> None:
    path = tmp_path / "outputs" / "studies"
    study = optuna.create_study(study_name="s", storage=build(str(path)))
    study.tell(study.ask(), 0.5)
    shutil.rmtree(path.parent)
    if how == "replaced":
        path.parent.mkdir()
        path.touch()
    with pytest.raises(UserError, match=rf"studies was {how} during its study, and finished trials were lost"):
        study.ask()


def test_a_database_of_another_program_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (a)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"mine\.db is a database of another program: choose another storage.path"):
        sqlite(str(path))
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"mine.db"}


def test_an_at_sign_in_a_password_is_told_without_it() -> None:
    with pytest.raises(UserError) as caught:
        rdb("postgresql+psycopg://me:hunter2@not-real@127.0.0.1:1/db")
    assert "write that as %40" in str(caught.value)
    assert not {"hunter2", "not-real"} & set(re.split(r"[^\w-]", str(caught.value)))

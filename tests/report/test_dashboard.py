"""What a study holds for Optuna's dashboard."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.storages import InMemoryStorage, RDBStorage
from optuna_dashboard import get_note, save_note
from servers import Server
from studies import Searched, search_small

from ranksearch.errors import SettingError
from ranksearch.report import dashboard as page
from ranksearch.report.dashboard import FIGURES, DashboardPage, artifact_store
from ranksearch.report.dashboard_server import DashboardSettings, dashboard
from ranksearch.report.static_figures import PlanPictures
from ranksearch.results.pareto import pareto_front
from ranksearch.storage import journal, rdb
from ranksearch.study.context import SearchContext


def test_the_note_says_what_is_looked_for_and_what_was_found(searched: Searched) -> None:
    note, points = get_note(searched.study), pareto_front(searched.records)
    assert searched.metadata.command in note
    assert f"{searched.metadata.accuracy:.2%}" in note
    assert str(searched.folder / "report.html") in note
    for point in points:
        assert f"| {point.number} |" in note
        assert f"{point.result.accuracy:.2%}" in note


def test_what_a_person_writes_above_the_heading_stays(searched: Searched) -> None:
    study = searched.study
    save_note(study, "Mine.\n\n" + get_note(study).replace("**Goal:**", "changed below"))
    DashboardPage(study, searched.metadata, searched.folder, searched.outputs).refresh()
    note = get_note(study)
    assert note.startswith("Mine.\n\n## ranksearch")
    assert note.count("## ranksearch") == 1
    assert "**Goal:**" in note
    save_note(study, note.removeprefix("Mine.\n\n"))


def test_a_page_that_says_all_there_is_is_not_written_again(searched: Searched) -> None:
    study = searched.study
    before = study._storage.get_study_system_attrs(study._study_id)
    DashboardPage(study, searched.metadata, searched.folder, searched.outputs).refresh()
    assert study._storage.get_study_system_attrs(study._study_id) == before


def test_every_completed_trial_has_a_picture_and_figures_to_sort_by(searched: Searched) -> None:
    study, store = searched.study, artifact_store(searched.outputs)
    for trial, record in zip(study.trials, searched.records, strict=True):
        assert record.result is not None
        assert trial.user_attrs["speedup"] == pytest.approx(record.result.speedup, abs=1e-4)
        assert trial.user_attrs["params"] == record.result.params
        drop = searched.metadata.accuracy - record.result.accuracy
        assert trial.user_attrs["accuracy_drop"] == pytest.approx(drop, abs=1e-5)
        assert trial.user_attrs["seconds"] >= trial.user_attrs["seconds_factorize"] > 0
        [picture] = get_all_artifact_meta(trial, storage=study._storage)
        assert picture.mimetype == "image/png"
        with store.open_reader(picture.artifact_id) as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_a_picture_shows_nothing_of_the_ones_before_it(searched: Searched, tmp_path: Path) -> None:
    first, second = [record.result for record in searched.records if record.result is not None][:2]
    pictures = PlanPictures(searched.metadata, 90)
    for name, number, result in (("one", 1, first), ("other", 2, second), ("again", 1, first)):
        pictures.write(tmp_path / name, number, result)
    one, other, again = ((tmp_path / name).read_bytes() for name in ("one", "other", "again"))
    assert one == again != other


def test_figures_are_kept_under_the_same_ids_however_often_they_are_drawn(searched: Searched) -> None:
    study = searched.study
    for _ in range(2):
        save_note(study, "")  # so that there is something to say
        DashboardPage(study, searched.metadata, searched.folder, searched.outputs).refresh()
        attributes = study._storage.get_study_system_attrs(study._study_id)
        known = {key.split(":")[2] for key in attributes if key.startswith("dashboard:plot_data:")}
        assert known == set(FIGURES)


def test_pages_are_refreshed_at_a_bounded_cost(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a refresh costs and however fast trials come, refreshes take a hundredth of the time."""
    clock, spent = [0.0], [0.0]

    def draw(*_: object) -> str:
        clock[0] += 30.0
        spent[0] += 30.0
        return "note"

    monkeypatch.setattr(page, "write_note", draw)
    monkeypatch.setattr(page, "FIGURES", {})
    monkeypatch.setattr("ranksearch.report.dashboard.time.perf_counter", lambda: clock[0])
    many = [replace(searched.records[0], number=number) for number in range(400)]
    shown = DashboardPage(searched.study, searched.metadata, searched.folder, searched.outputs)
    for count in range(1, 401):
        clock[0] += 100.0
        shown.refresh_if_due(many[:count])
    assert 0 < spent[0] <= 0.012 * clock[0]


def test_it_is_served_to_this_machine_alone(searched: Searched) -> None:
    with dashboard(searched.storage, searched.outputs, DashboardSettings(0)) as (address, server):
        assert server.server_address[0] == "127.0.0.1"
        assert address == f"http://127.0.0.1:{server.server_port}/"


def test_a_port_that_is_taken_is_named(searched: Searched) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(SettingError, match=f"dashboard.port={port} is in use: choose another"),
            dashboard(searched.storage, searched.outputs, DashboardSettings(port)),
        ):
            pass


def served(searched: Searched) -> dict[str, Any]:
    """A study as the dashboard's server tells of it."""
    with dashboard(searched.storage, searched.outputs, DashboardSettings(0)) as (address, server):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with urllib.request.urlopen(f"{address}api/studies/{searched.study._study_id}?after=0") as answer:
                found: dict[str, Any] = json.load(answer)
        finally:
            server.shutdown()
            thread.join()
    return found


def test_only_feasible_trials_are_the_best(searched: Searched) -> None:
    detail = served(searched)
    assert detail["objective_names"] == ["accuracy", "MACs"]
    budget = searched.metadata.budget
    assert detail["best_trials"]
    assert all(trial["values"][1] <= budget for trial in detail["best_trials"])


@pytest.mark.parametrize("kind", ["journal", "postgresql", pytest.param("mysql", marks=pytest.mark.slow)])
def test_every_storage_serves(
    kind: str, base_context: SearchContext, start_server: Callable[[str], Server], tmp_path: Path
) -> None:
    path = str(tmp_path / "ranksearch.journal")
    storage = journal(path) if kind == "journal" else rdb(start_server(kind).create())
    searched = search_small(base_context, tmp_path, storage, trials=2)
    detail = served(searched)
    assert detail["note"]["body"] == get_note(searched.study)
    assert {graph["id"] for graph in detail["plotly_graph_objects"]} == set(FIGURES)
    assert all(len(get_all_artifact_meta(trial, storage=storage)) == 1 for trial in searched.study.trials)
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def test_a_study_has_a_page_before_its_first_trial(searched: Searched) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], study_name="new", storage=InMemoryStorage())
    DashboardPage(study, searched.metadata, searched.folder, searched.outputs).refresh()
    assert "No trial has completed yet" in get_note(study)
    assert searched.metadata.command in get_note(study)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "LOCALHOST:{port}"}, 200),
        ({"Host": "tunnel.example:9000"}, 200),  # which it was started for
        ({"Host": "tunnel.example:9000", "Origin": "https://tunnel.example:9000"}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1.evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": "localhost"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "evil.example", "Origin": "http://127.0.0.1:{port}"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_only_the_hosts_and_pages_that_it_was_started_for_are_answered(
    method: str, headers: dict[str, str], status: int, tmp_path: Path
) -> None:
    storage = InMemoryStorage()
    study = optuna.create_study(study_name="mine", storage=storage)
    settings = DashboardSettings(0, hosts=["tunnel.example:9000"])
    with dashboard(storage, tmp_path, settings) as (_, server), serving(server):
        sent = {name: value.format(port=server.server_port) for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        path = "/api/studies" if method == "GET" else f"/api/studies/{study._study_id}"
        connection.request(method, path, headers=sent)
        answer = connection.getresponse()
        answer.read()
        connection.close()
    assert answer.status == (204 if method == "DELETE" and status == 200 else status)
    assert optuna.get_all_study_names(storage) == ([] if method == "DELETE" and status == 200 else ["mine"])


@contextmanager
def serving(server: WSGIServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()

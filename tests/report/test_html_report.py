"""The report as a file: what it says, and that it stands alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from omegaconf import ListConfig
from studies import Searched

from ranksearch.plan import SCHEMES
from ranksearch.report.artifacts import front_content, write_artifacts
from ranksearch.report.comparison import comparison_rows, write_comparison
from ranksearch.report.figures import front_figure, heat_map
from ranksearch.report.html_report import write_report
from ranksearch.report.static_figures import draw_fronts, write_figure
from ranksearch.results.metadata import layer_macs
from ranksearch.results.pareto import pareto_front
from ranksearch.results.trials import TrialRecord
from ranksearch.study.settings import study_folder


class Parts(HTMLParser):
    """Every address that a page would ask for, and the text of its scripts by their ids."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = dict(attributes)
        self.outside += [known[key] or "" for key in ("src", "href") if key in known]
        self._script = (known.get("id") or "") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._script = None


def read(path: Path) -> tuple[Parts, dict[str, Any]]:
    parts = Parts()
    parts.feed(path.read_text())
    return parts, json.loads(parts.scripts["content"])


def test_it_stands_alone(searched: Searched) -> None:
    write_artifacts(searched.folder, searched.name, searched.metadata, searched.records)
    parts, _ = read(searched.folder / "report.html")
    assert [address for address in parts.outside if not address.startswith(("#", "data:"))] == []
    for name in ("front", "latent_sizes", "heat_map"):
        assert (searched.folder / "pictures" / f"{name}.svg").read_text().startswith("<svg")
        assert (searched.folder / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_it_holds_every_plan_as_it_was_built(searched: Searched) -> None:
    write_artifacts(searched.folder, searched.name, searched.metadata, searched.records)
    _, content = read(searched.folder / "report.html")
    layers = searched.metadata.layers
    assert [layer["name"] for layer in content["layers"]] == [layer.name for layer in layers]
    for record in searched.records:
        assert record.result is not None
        shown = content["trials"][str(record.number)]["plan"]
        saved = sum(layer.dense_macs for layer in layers)
        for layer, (scheme, size, macs, error) in zip(layers, shown, strict=True):
            choice = record.result.plan.layers.get(layer.name)
            assert (scheme, size) == ((-1, 0) if choice is None else (SCHEMES.index(choice.scheme), choice.latent_size))
            assert (error > 0) == (choice is not None)
            saved -= layer.dense_macs if choice is None else macs
        assert searched.metadata.macs - saved == record.result.macs


def test_a_study_without_a_trial_has_a_report_too(searched: Searched, tmp_path: Path) -> None:
    write_artifacts(tmp_path, searched.name, searched.metadata, [])
    parts, content = read(tmp_path / "report.html")
    assert content["figures"] == {}
    assert "library" not in parts.scripts
    assert "No trial has completed yet" in (tmp_path / "report.html").read_text()


def test_names_are_shown_as_they_are(searched: Searched, tmp_path: Path) -> None:
    metadata = replace(
        searched.metadata, model="<script>alert(1)</script>", command="python -m ranksearch 'a=</script>'"
    )
    write_report(tmp_path / "report.html", "<i>study</i>", metadata, searched.records, None, None, None)
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;i&gt;study" in page
    assert read(tmp_path / "report.html")[1]["trials"]


def test_the_headline_is_the_best_at_twice_the_speed(searched: Searched, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", "s", searched.metadata, searched.records, None, None, None)
    fast = [point for point in pareto_front(searched.records) if point.result.speedup >= 2]
    best = max(point.result.accuracy for point in fast)
    headline = re.search(r'class="headline">([^<]*)<', (tmp_path / "report.html").read_text())
    assert headline is not None
    assert f"{best:.2%}" in headline[1]


def test_a_large_study_makes_a_page_of_less_than_five_megabytes(searched: Searched, tmp_path: Path) -> None:
    """53 layers and 200 trials; what it costs in time is measured in benchmarks."""
    layer = searched.metadata.layers[0]
    layers = tuple(replace(layer, name=f"layer{index // 14}.{index % 14}.conv1") for index in range(53))
    known = searched.records[0].result
    assert known is not None
    choice = next(iter(known.plan.layers.values()))
    plan = replace(known.plan, layers={spec.name: choice for spec in layers})
    result = replace(known, plan=plan, errors={spec.name: 0.12345 for spec in layers})
    records = [replace(searched.records[0], number=number, result=result) for number in range(200)]
    write_report(tmp_path / "report.html", "s", replace(searched.metadata, layers=layers), records, None, None, None)
    assert (tmp_path / "report.html").stat().st_size < 5e6
    assert layer_macs(layers[0], choice) < layers[0].dense_macs


def test_artifacts_are_the_same_however_often_they_are_written(searched: Searched, tmp_path: Path) -> None:
    records: list[TrialRecord] = searched.records
    for folder in ("one", "two"):
        write_artifacts(tmp_path / folder, searched.name, searched.metadata, records)
    one, two = (
        {path.relative_to(tmp_path / folder): path.read_bytes() for path in (tmp_path / folder).rglob("*.*")}
        for folder in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert one == two


def test_the_picked_trial_is_marked_wherever_it_stands(searched: Searched) -> None:
    records = searched.records
    result = records[0].result
    assert result is not None
    worse = replace(records[0], number=99, result=replace(result, accuracy=result.accuracy - 0.1))
    assert 99 not in {point.number for point in pareto_front([*records, worse])}
    [star] = [trace for trace in front_figure(searched.metadata, [*records, worse], 99).data if trace.name == "picked"]
    assert star.y == (100 * worse.result.accuracy,) if worse.result else False


def test_figures_bring_no_colours_of_a_theme_along(searched: Searched) -> None:
    for figure in (front_figure(searched.metadata, searched.records), heat_map(searched.metadata, searched.records)):
        assert "color" not in json.dumps(figure.layout.template.to_plotly_json())


def test_a_comparison_of_studies_without_trials_is_a_comparison(searched: Searched, tmp_path: Path) -> None:
    empty = {"new": front_content("new", searched.metadata, [])}
    write_comparison(tmp_path / "comparison.html", "c", empty)
    write_figure(tmp_path, "fronts", draw_fronts(empty))
    assert comparison_rows(empty)[1][-1] == "0.0000"


def test_trials_that_did_not_complete_are_told_apart(searched: Searched, tmp_path: Path) -> None:
    reasons = {"interrupted": "interrupted", "diverged": "failed"}
    records = [TrialRecord(number, "FAIL", False, None, reason, 1.0) for number, reason in enumerate(reasons)] + [
        TrialRecord(2, "PRUNED", False, None, "well behind", 1.0)
    ]
    write_report(tmp_path / "report.html", "s", searched.metadata, records, None, None, None)
    page = (tmp_path / "report.html").read_text()
    assert "Trials: 1 interrupted, 1 failed, 1 pruned." in page
    assert "trial 2: well behind" in page


@pytest.mark.parametrize(
    ("name", "folder"),
    [("a", "a"), (2024, "2024"), (["a", "b"], "a+b"), (["a" * 200, "b"], None), (ListConfig(["a", "b"]), "a+b")],
)
def test_studies_have_a_folder_that_file_systems_take(name: object, folder: str | None) -> None:
    assert study_folder(name) == folder or (folder is None and len(study_folder(name)) < 255)

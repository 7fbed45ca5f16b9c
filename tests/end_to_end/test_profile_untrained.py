"""`mode=profile` of a network without trained weights: its layers, and nothing that would need them."""

from __future__ import annotations

import csv
from pathlib import Path

from runs import call

TINY = ("mode=profile", "model=resnet20", "profile.repeats=2", "study.name=shapes")


def test_it_shows_the_layers_first_and_trains_no_baseline(tmp_path: Path) -> None:
    done = call(tmp_path, *TINY)
    assert done.returncode == 0, done.stderr
    said, folder = done.stdout, tmp_path / "outputs" / "shapes"
    assert "baseline:" not in said
    assert not list((tmp_path / "outputs" / "cache").glob("baseline-*.safetensors"))
    assert "no errors and no predicted front: there are no trained weights yet" in said
    # The first table has neither times nor errors: nothing long comes before it.
    first, second = said.index("whole network"), said.rindex("whole network")
    assert " ms" not in said[:first]
    assert " ms" in said[first:second]
    assert not (folder / "predicted_front.csv").exists()
    with (folder / "profile.csv").open(newline="") as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    parts = sum(int(row["macs"]) for name, row in rows.items() if name != "whole network")
    assert parts == int(rows["whole network"]["macs"])
    assert all(row["nanoseconds"] and not row["scheme"] and not row["expected_error"] for row in rows.values())


def test_the_builder_s_own_weights_serve_where_they_are_asked_for(tmp_path: Path) -> None:
    done = call(tmp_path, *TINY, "baseline.train=never", "calibration.images=64", "calibration.comparison_images=32")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "shapes" / "predicted_front.csv").exists()
    assert "the front that the closed form predicts" in done.stdout

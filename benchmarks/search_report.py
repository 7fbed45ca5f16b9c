"""The figures of `search_quality.py` as a table, as CSV and as a picture.

A row has the contestant's ``name``, its ``kinds`` of schemes, ``seed``, ``trials`` and their ``trial_steps`` of
fine-tuning, and then either a ``hypervolume`` or, for a ``share`` of the MACs and ``steps`` of fine-tuning, the test
``accuracy`` and the validation ``loss`` of its plan, if it has one there, and the ``least_loss`` of any trial.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, pstdev, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = dict[str, Any]
COLUMNS = (
    "kinds",
    "name",
    "trials",
    "trial_steps",
    "seed",
    "share",
    "steps",
    "accuracy",
    "loss",
    "least_loss",
    "hypervolume",
)


def _where(rows: Sequence[Row], **facts: Any) -> list[Row]:
    return [row for row in rows if all(row.get(key) == value for key, value in facts.items())]


def _shares(rows: Sequence[Row]) -> list[float]:
    return sorted({row["share"] for row in rows if "share" in row}, reverse=True)


def _contestants(rows: Sequence[Row]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["name"], row["trials"]) for row in rows))


def table(rows: Sequence[Row]) -> dict[str, float]:
    """Print means and spreads over seeds; give the means."""
    means: dict[str, float] = {}
    shares = _shares(rows)
    for kinds in dict.fromkeys(row["kinds"] for row in rows):
        for steps in sorted({row["steps"] for row in rows if "steps" in row}):
            shown = _where(rows, kinds=kinds, steps=steps)
            for what, factor in (("accuracy", 100), ("loss", 1)):
                seeds = sorted({row["seed"] for row in shown})
                said = "test accuracy" if what == "accuracy" else "validation loss"
                print(f"\n{kinds}, {said} after {steps} steps, seeds {seeds}")
                print(f"{'':32}{'trials':>7}" + "".join(f"{share:>14.1%}" for share in shares))
                for name, trials in _contestants(shown):
                    cells = ""
                    for share in shares:
                        of = _where(shown, name=name, trials=trials, share=share)
                        values = [factor * row[what] for row in of if what in row]
                        digits = 1 if what == "accuracy" else 3
                        cells += (
                            f"{mean(values):>8.{digits}f} +-{pstdev(values):.{digits}f}" if values else f"{'-':>14}"
                        )
                        if values:
                            means[f"{kinds},{name},{trials},{share:g},{steps},{what}"] = round(mean(values), 4)
                    print(f"{name:32}{trials:>7}{cells}")
        hypervolume_history = [row for row in rows if row["kinds"] == kinds and "hypervolume" in row]
        if hypervolume_history:
            print(f"\n{kinds}, hypervolume of validation accuracy over log MACs (1 is perfect)")
        for name, trials in _contestants(hypervolume_history):
            values = [row["hypervolume"] for row in _where(hypervolume_history, name=name, trials=trials)]
            means[f"{kinds},{name},{trials},hypervolume"] = round(mean(values), 5)
            print(f"{name:32}{trials:>7}{mean(values):>9.4f} +-{pstdev(values):.4f}, {len(values)} seeds")
    return means


def compare(rows: Sequence[Row], first: tuple[str, int], second: tuple[str, int]) -> None:
    """Print by how much the least validation loss of the first contestant's trials is below the second's.

    The least of many losses flatters itself a little: the test accuracies in the table do not.

    Args:
        rows: with losses.
        first: name and trials.
        second: the same.
    """
    for kinds in dict.fromkeys(row["kinds"] for row in rows):
        for steps in sorted({row["steps"] for row in rows if "steps" in row}):
            for share in _shares(rows):
                losses = []
                for name, trials in (first, second):
                    of = _where(rows, kinds=kinds, steps=steps, share=share, name=name, trials=trials)
                    losses.append({row["seed"]: row.get("least_loss", row["loss"]) for row in of if "loss" in row})
                gains = [losses[1][seed] - loss for seed, loss in losses[0].items() if seed in losses[1]]
                if len(gains) > 1:
                    error = stdev(gains) / len(gains) ** 0.5
                    print(
                        f"{kinds}, {share:.1%}, {steps} steps: {first[0]} after {first[1]} trials loses "
                        f"{mean(gains):.4f} less than {second[0]}, {mean(gains) / max(error, 1e-9):.1f} standard errors"
                    )


def write_csv(rows: Sequence[Row], file: Path) -> None:
    """Every figure of every seed, one in a line."""
    with file.open("w", newline="") as text:
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()})


def _curve(panel: Axes, label: str, rows: Sequence[Row], x: str, y: str) -> None:
    places = sorted({row[x] for row in rows if y in row})
    values = [[row[y] for row in _where(rows, **{x: place}) if y in row] for place in places]
    if places:
        middles, spreads = [mean(value) for value in values], [pstdev(value) for value in values]
        panel.errorbar(places, middles, spreads, label=label, marker="o", markersize=3, capsize=2)


def picture(rows: Sequence[Row], file: Path) -> None:
    """Draw the fronts' areas over trials, and what every choice ends with at every budget."""
    shown = _where(rows, kinds="all four") or list(rows)
    lengths = sorted({row["steps"] for row in shown if "steps" in row})
    figure = Figure(figsize=(4.4 * (1 + len(lengths)), 4.6), layout="constrained")
    areas, *panels = figure.subplots(1, 1 + len(lengths), squeeze=False)[0]
    most = {name: max(row["trials"] for row in _where(shown, name=name)) for name, _ in _contestants(shown)}
    for name in most:
        _curve(areas, name, [row for row in _where(shown, name=name) if "hypervolume" in row], "trials", "hypervolume")
    areas.set_xscale("log")
    areas.set_title("area under the front, validation", fontsize=9)
    areas.set_xlabel("trials")
    for panel, steps in zip(panels, lengths, strict=True):
        of = _where(shown, steps=steps)
        for name, trials in _contestants(of):
            if trials == most[name]:
                label = f"{name}, {trials} trials" if trials else name
                _curve(panel, label, _where(of, name=name, trials=trials), "share", "accuracy")
        panel.set_xscale("log")
        panel.set_xticks(_shares(rows), [f"{share:.1%}" for share in _shares(rows)])
        panel.minorticks_off()
        panel.set_title(f"test accuracy after {steps} steps", fontsize=9)
        panel.set_xlabel("MACs kept")
    for panel in (areas, *panels):
        panel.grid(color="#EEEEEE")
        panel.legend(fontsize=6)
    figure.savefig(file)

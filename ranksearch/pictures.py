"""The study drawn: the front, and the schemes and latent sizes of its plans."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ranksearch.facts import StudyFacts, macs_under
from ranksearch.files import replacing, write_text
from ranksearch.finalized import Finalized
from ranksearch.front import FrontPoint, front
from ranksearch.palette import BLACK, BLUE, GREEN, GREY, ORANGE, SCHEME_COLORS, SEVERAL
from ranksearch.plan import DENSE
from ranksearch.records import TrialRecord

MARKERS = "os^D"
RESOLUTION = 150  # of PNG files, dots per inch


def to_svg(figure: Figure) -> str:
    """Render a figure as an SVG element; the same figure always gives the same text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ranksearch", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    content = text.getvalue()
    return content[content.index("<svg") :]


def write_picture(folder: Path, name: str, figure: Figure) -> None:
    """Write a figure as SVG and as PNG."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # which has done its part, and would do it anew for each file
    write_text(folder / f"{name}.svg", to_svg(figure))
    with replacing(folder / f"{name}.png") as path:
        figure.savefig(path, format="png", dpi=RESOLUTION)


def write_pictures(
    folder: Path, facts: StudyFacts, records: Sequence[TrialRecord], finalized: Finalized | None
) -> None:
    """Write the pictures of a study that has a front.

    Args:
        folder: to write to.
        facts: of the study.
        records: all its trials.
        finalized: the picked plan's end, if it came to that.
    """
    points = front(records)
    if not points:
        return
    picked = finalized.point if finalized else points[-1]
    write_picture(folder, "front", draw_front(facts, records, points, picked.number if finalized else None))
    write_picture(folder, "latent_sizes", draw_latent_sizes(facts, picked))
    write_picture(folder, "heat_map", draw_heat_map(facts, points))


def draw_front(
    facts: StudyFacts, records: Sequence[TrialRecord], points: Sequence[FrontPoint], picked: int | None
) -> Figure:
    """Draw accuracy on the validation split against cost, with the dense network, the budget and the picked trial."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    scale = facts.scale
    for closed_form, marker, label in ((True, "D", "closed form"), (False, "o", "sampler")):
        trials = [r.result for r in records if r.result is not None and r.closed_form == closed_form]
        axes.scatter(
            [t.cost / scale.divisor for t in trials],
            [100 * t.accuracy for t in trials],
            marker=marker,
            s=36,
            color=GREY,
            edgecolor=BLACK,
            linewidth=0.5,
            label=f"{label} ({len(trials)} trials)",
        )
    axes.plot(
        [p.result.cost / scale.divisor for p in points],
        [100 * p.result.accuracy for p in points],
        color=BLUE,
        marker="o",
        markersize=5,
        drawstyle="steps-post",
        label="front",
    )
    dense = facts.cost / scale.divisor
    axes.scatter([dense], [100 * facts.accuracy], marker="s", s=64, color=BLACK, label="dense", zorder=3)
    for record in records:
        if record.number == picked and record.result is not None:
            here = (record.result.cost / scale.divisor, 100 * record.result.accuracy)
            axes.scatter(
                *here, marker="*", s=220, color=ORANGE, edgecolor=BLACK, linewidth=0.5, zorder=4, label="picked"
            )
    axes.axvline(facts.budget / scale.divisor, color=GREEN, linestyle="--", linewidth=1.2, label="budget")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(
        "MACs of one image, millions" if facts.counts_macs else f"{scale.name}, {scale.suffix}".rstrip(", ")
    )
    axes.set_ylabel("validation accuracy, %")
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="lower right")
    _speedup_axis(axes, dense, scale.name)
    return figure


def draw_fronts(fronts: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the fronts of several studies over one another, with each one's dense network as a dotted line.

    Args:
        fronts: study -> what its `front.json` holds.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, (study, found) in enumerate(fronts.items()):
        color, marker = SEVERAL[index % len(SEVERAL)], MARKERS[index // len(SEVERAL) % len(MARKERS)]
        speedups = [point["speedup"] for point in found["points"][::-1]]
        accuracies = [100 * point["accuracy"] for point in found["points"][::-1]]
        axes.plot(speedups, accuracies, color=color, marker=marker, markersize=5, drawstyle="steps-pre", label=study)
        axes.axhline(100 * found["dense"]["accuracy"], color=color, linestyle=":", linewidth=1)
    if any(found["points"] for found in fronts.values()):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("speedup, in what each study counts")
    axes.set_ylabel("validation accuracy, %")
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8)
    return figure


def _speedup_axis(axes: Axes, dense: float, what: str) -> None:
    """Say the speedup above the costs."""
    left, right = axes.get_xlim()
    ticks = [tick for tick in (1, 1.2, 1.5, 2, 3, 4, 6, 8, 12, 16) if left <= dense / tick <= right]
    above = axes.secondary_xaxis("top")
    above.xaxis.set_minor_locator(NullLocator())
    above.set_xticks([dense / tick for tick in ticks], [f"{tick:g}x" for tick in ticks])
    above.set_xlabel(f"speedup in {what}", fontsize=9)


def draw_latent_sizes(facts: StudyFacts, point: FrontPoint) -> Figure:
    """Draw one plan: for every layer its scheme and its latent size beside its break-even rank and its dense width."""
    layers = facts.layers
    figure = Figure(figsize=(8, 1.4 + 0.2 * len(layers)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(layers))
    choices = [point.result.plan.layers.get(layer.name) for layer in layers]
    widths = [layer.out_size for layer in layers]
    sizes = [width if c is None else c.latent_size for c, width in zip(choices, widths, strict=True)]
    limits = [
        layer.break_even_rank("full" if c is None else c.scheme) for layer, c in zip(layers, choices, strict=True)
    ]
    axes.barh(rows, widths, color="#E8E8E8", label="output channels or features")
    for kind, color in SCHEME_COLORS.items():
        drawn = [row for row, c in enumerate(choices) if (DENSE if c is None else c.scheme) == kind]
        if drawn:
            label = f"latent size, {kind}" if kind != DENSE else kind
            axes.barh(drawn, [sizes[row] for row in drawn], color=color, height=0.55, label=label)
    axes.scatter(limits, rows, marker="|", s=90, color=ORANGE, label="break-even rank", zorder=3)
    for row, choice in enumerate(choices):
        said = DENSE if choice is None else f"{choice.latent_size} {choice.scheme}"
        axes.text(max(widths[row], sizes[row], limits[row]), row, f"  {said}", va="center", fontsize=7)
    axes.set_yticks(rows, [layer.name for layer in layers], fontsize=7)
    axes.set_xmargin(0.15)
    axes.invert_yaxis()
    axes.set_title(f"trial {point.number}: {point.result.speedup:.2f}x", fontsize=10)
    figure.legend(fontsize=7, loc="outside lower center", ncols=4)
    return figure


def draw_heat_map(facts: StudyFacts, points: Sequence[FrontPoint]) -> Figure:
    """Draw all plans of the front: layers down, plans across, the share of its MACs that each layer keeps."""
    layers = facts.layers
    kept = np.ones((len(layers), len(points)))
    figure = Figure(figsize=(min(8.0, 3.6 + 0.5 * len(points)), 1.4 + 0.2 * len(layers)), layout="constrained")
    axes = figure.subplots()
    for row, layer in enumerate(layers):
        for column, point in enumerate(points):
            choice = point.result.plan.layers.get(layer.name)
            if choice is not None:
                kept[row, column] = macs_under(layer, choice) / layer.dense_macs
                color = "white" if kept[row, column] < 0.5 else BLACK
                letter = choice.scheme[0].upper()
                axes.text(column, row, letter, color=color, ha="center", va="center", fontsize=6)
    image = axes.imshow(kept, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers], fontsize=7)
    axes.set_xticks(range(len(points)), [f"{point.result.speedup:.1f}x" for point in points], fontsize=7, rotation=90)
    axes.set_xlabel("plans of the front, by speedup; letters: Full, Vertical, Horizontal, Pointwise")
    figure.colorbar(image, label="share of the layer's MACs kept (1 = dense)")
    return figure

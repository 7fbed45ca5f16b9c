"""The study drawn: the front, and the schemes and latent sizes of its plans."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ranksearch.problem import Problem
from ranksearch.records import FrontPoint, TrialRecord

# Okabe and Ito's palette, which people with any colour vision can tell apart.
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#B8B8B8", "#222222"
DENSE = "dense"
SEVERAL = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", BLACK)
MARKERS = "os^D"
COLORS = {"full": BLUE, "vertical": GREEN, "horizontal": "#56B4E9", "pointwise": "#CC79A7", DENSE: BLACK}


def to_svg(figure: Figure) -> str:
    """Render a figure as an SVG element; the same figure always gives the same text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ranksearch", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    content = text.getvalue()
    return content[content.index("<svg") :]


def draw_front(problem: Problem, records: Sequence[TrialRecord], points: Sequence[FrontPoint], picked: int) -> Figure:
    """Draw accuracy on the validation split against cost, with the dense model, the budget and the picked trial."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    cost, scale = problem.space.cost, problem.space.cost.scale
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
    dense = cost.dense / scale.divisor
    axes.scatter([dense], [100 * problem.baseline.accuracy], marker="s", s=64, color=BLACK, label="dense", zorder=3)
    for point in points:
        if point.number == picked:
            here = (point.result.cost / scale.divisor, 100 * point.result.accuracy)
            axes.scatter(
                *here, marker="*", s=220, color=ORANGE, edgecolor=BLACK, linewidth=0.5, zorder=4, label="picked"
            )
    axes.axvline(problem.budget / scale.divisor, color=GREEN, linestyle="--", linewidth=1.2, label="budget")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("MACs of one image, millions" if problem.counts_macs else f"{scale.name}, {scale.suffix}")
    axes.set_ylabel("validation accuracy, %")
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="lower right")
    _speedup_axis(axes, dense, scale.name)
    return figure


def draw_fronts(fronts: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the fronts of several studies over one another, with each one's dense model as a dotted line.

    Args:
        fronts: study -> what its `front.json` holds.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, (study, front) in enumerate(fronts.items()):
        color, marker = SEVERAL[index % len(SEVERAL)], MARKERS[index // len(SEVERAL) % len(MARKERS)]
        speedups = [point["speedup"] for point in front["points"]]
        accuracies = [100 * point["accuracy"] for point in front["points"]]
        axes.plot(speedups, accuracies, color=color, marker=marker, markersize=5, drawstyle="steps-pre", label=study)
        axes.axhline(100 * front["dense"]["accuracy"], color=color, linestyle=":", linewidth=1)
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


def draw_latent_sizes(problem: Problem, point: FrontPoint) -> Figure:
    """Draw one plan: for every layer its scheme and its latent size beside its break-even rank and its dense width."""
    layers = problem.space.layers
    figure = Figure(figsize=(8, 1.4 + 0.2 * len(layers)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(layers))
    choices = [point.result.plan.layers.get(layer.spec.name) for layer in layers]
    widths = [layer.spec.out_size for layer in layers]
    sizes = [width if c is None else c.latent_size for c, width in zip(choices, widths, strict=True)]
    limits = [
        layer.spec.break_even_rank("full" if c is None else c.scheme) for layer, c in zip(layers, choices, strict=True)
    ]
    axes.barh(rows, widths, color="#E8E8E8", label="output channels or features")
    for kind, color in COLORS.items():
        drawn = [row for row, c in enumerate(choices) if (DENSE if c is None else c.scheme) == kind]
        if drawn:
            label = f"latent size, {kind}" if kind != DENSE else kind
            axes.barh(drawn, [sizes[row] for row in drawn], color=color, height=0.55, label=label)
    axes.scatter(limits, rows, marker="|", s=90, color=ORANGE, label="break-even rank", zorder=3)
    for row, choice in enumerate(choices):
        said = DENSE if choice is None else f"{choice.latent_size} {choice.scheme}"
        axes.text(max(widths[row], sizes[row], limits[row]), row, f"  {said}", va="center", fontsize=7)
    axes.set_yticks(rows, [layer.spec.name for layer in layers], fontsize=7)
    axes.set_xmargin(0.15)
    axes.invert_yaxis()
    axes.set_title(f"trial {point.number}: {point.result.speedup:.2f}x", fontsize=10)
    figure.legend(fontsize=7, loc="outside lower center", ncols=4)
    return figure


def draw_heat_map(problem: Problem, points: Sequence[FrontPoint]) -> Figure:
    """Draw all plans of the front: layers down, plans across, the share of its cost that each layer keeps."""
    layers, model = problem.space.layers, problem.space.cost.model
    kept = np.ones((len(layers), len(points)))
    figure = Figure(figsize=(min(8.0, 3.6 + 0.5 * len(points)), 1.4 + 0.2 * len(layers)), layout="constrained")
    axes = figure.subplots()
    for row, layer in enumerate(layers):
        for column, point in enumerate(points):
            choice = point.result.plan.layers.get(layer.spec.name)
            if choice is not None:
                price = model.at_rank(layer.spec, choice.latent_size, choice.scheme)
                kept[row, column] = price / model.dense(layer.spec)
                color = "white" if kept[row, column] < 0.5 else BLACK
                letter = choice.scheme[0].upper()
                axes.text(column, row, letter, color=color, ha="center", va="center", fontsize=6)
    image = axes.imshow(kept, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_yticks(range(len(layers)), [layer.spec.name for layer in layers], fontsize=7)
    axes.set_xticks(range(len(points)), [f"{point.result.speedup:.1f}x" for point in points], fontsize=7, rotation=90)
    axes.set_xlabel("plans of the front, by speedup; letters: Full, Vertical, Horizontal, Pointwise")
    figure.colorbar(image, label=f"share of the layer's {problem.space.cost.scale.name} kept (1 = dense)")
    return figure

"""Matplotlib figures of a study: the front, and the schemes and latent sizes of its plans."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator

from ranksearch.files import replacing, write_text
from ranksearch.plan import DENSE, LayerSpec
from ranksearch.report.colors import BLACK, BLUE, GREEN, GREY, ORANGE, SCHEME_COLORS, SEVERAL
from ranksearch.results.final import FinalResult
from ranksearch.results.metadata import StudyMetadata, layer_macs
from ranksearch.results.pareto import pareto_front
from ranksearch.results.trials import FeasibleTrial, TrialRecord, TrialResult
from ranksearch.results.units import Scale

MARKERS = "os^D"
RESOLUTION = 150  # dots per inch of PNG files


def to_svg(figure: Figure) -> str:
    """Render a figure as an SVG element; the same figure always gives the same text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ranksearch", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    content = text.getvalue()
    return content[content.index("<svg") :]


def write_figure(folder: Path, name: str, figure: Figure) -> None:
    """Write a figure as SVG and PNG."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is done; saving would repeat it for each file
    write_text(folder / f"{name}.svg", to_svg(figure))
    with replacing(folder / f"{name}.png") as path:
        figure.savefig(path, format="png", dpi=RESOLUTION)


def write_static_figures(
    folder: Path, metadata: StudyMetadata, records: Sequence[TrialRecord], final: FinalResult | None
) -> None:
    """Write the static figures of a study, if it has a front; ``final`` is None without a finished plan."""
    points = pareto_front(records)
    if not points:
        return
    picked = final.trial if final else points[-1]
    write_figure(folder, "front", draw_front(metadata, records, points, picked.number if final else None))
    write_figure(folder, "latent_sizes", draw_latent_sizes(metadata, picked.number, picked.result))
    write_figure(folder, "heat_map", draw_heat_map(metadata, points))


def draw_front(
    metadata: StudyMetadata, records: Sequence[TrialRecord], points: Sequence[FeasibleTrial], picked: int | None
) -> Figure:
    """Draw validation accuracy against cost, with the front, the dense network, the budget and the picked trial."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    scale, dense = metadata.scale, metadata.cost / metadata.scale.divisor
    outline: dict[str, Any] = {"edgecolor": BLACK, "linewidth": 0.5}
    for closed_form, marker, kind in ((True, "D", "closed form"), (False, "o", "sampler")):
        results = [r.result for r in records if r.result is not None and r.closed_form == closed_form]
        label = f"{kind} ({len(results)} trials)"
        axes.scatter(*_coordinates(results, scale), marker=marker, s=36, color=GREY, **outline, label=label)
    front = _coordinates([point.result for point in points], scale)
    axes.plot(*front, color=BLUE, marker="o", markersize=5, drawstyle="steps-post", label="front")
    axes.scatter([dense], [100 * metadata.accuracy], marker="s", s=64, color=BLACK, label="dense", zorder=3)
    for record in records:
        if record.number == picked and record.result is not None:
            here = _coordinates([record.result], scale)
            axes.scatter(*here, marker="*", s=220, color=ORANGE, **outline, zorder=4, label="picked")
    axes.axvline(metadata.budget / scale.divisor, color=GREEN, linestyle="--", linewidth=1.2, label="budget")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    cost = f"{scale.name}, {scale.suffix}".rstrip(", ")
    _finish(axes, "MACs of one image, millions" if metadata.counts_macs else cost)
    axes.legend(fontsize=8, loc="lower right")
    _speedup_axis(axes, dense, scale.name)
    return figure


def _coordinates(results: Sequence[TrialResult], scale: Scale) -> tuple[list[float], list[float]]:
    return [result.cost / scale.divisor for result in results], [100 * result.accuracy for result in results]


def _finish(axes: Axes, x_label: str) -> None:
    """Label the axes of accuracy against cost or speedup, and draw a grid behind the points."""
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(x_label)
    axes.set_ylabel("validation accuracy, %")
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)


def draw_fronts(fronts: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the fronts of several studies, by name, from their `front.json`, each with its dense accuracy."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, (study, front) in enumerate(fronts.items()):
        color, marker = SEVERAL[index % len(SEVERAL)], MARKERS[index // len(SEVERAL) % len(MARKERS)]
        speedups = [point["speedup"] for point in front["points"][::-1]]
        accuracies = [100 * point["accuracy"] for point in front["points"][::-1]]
        axes.plot(speedups, accuracies, color=color, marker=marker, markersize=5, drawstyle="steps-pre", label=study)
        axes.axhline(100 * front["dense"]["accuracy"], color=color, linestyle=":", linewidth=1)
    if any(front["points"] for front in fronts.values()):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
    axes.xaxis.set_major_formatter("{x:g}x")
    _finish(axes, "speedup, in the cost that each study counts")
    axes.legend(fontsize=8)
    return figure


def _speedup_axis(axes: Axes, dense: float, unit: str) -> None:
    """Add an axis of speedups above the costs."""
    left, right = axes.get_xlim()
    ticks = [tick for tick in (1, 1.2, 1.5, 2, 3, 4, 6, 8, 12, 16) if left <= dense / tick <= right]
    above = axes.secondary_xaxis("top")
    above.xaxis.set_minor_locator(NullLocator())
    above.set_xticks([dense / tick for tick in ticks], [f"{tick:g}x" for tick in ticks])
    above.set_xlabel(f"speedup in {unit}", fontsize=9)


def draw_latent_sizes(metadata: StudyMetadata, number: int, result: TrialResult) -> Figure:
    """Draw one plan: each layer's scheme and latent size, with its break-even rank and dense width."""
    figure = _draw_widths(metadata)
    _draw_plan(figure, metadata, number, result)
    return figure


class PlanPictures:
    """Pictures of many plans as PNG: what all plans share is drawn once.

    Args:
        metadata: the plans' study.
        dpi: dots per inch.
    """

    def __init__(self, metadata: StudyMetadata, dpi: int) -> None:
        self._metadata, self._figure = metadata, _draw_widths(metadata)
        self._figure.set_dpi(dpi)
        self._canvas = cast("Any", FigureCanvasAgg(self._figure))  # matplotlib declares its methods without types
        self._canvas.draw()
        self._figure.set_layout_engine("none")
        self._shared = self._canvas.copy_from_bbox(self._figure.bbox)

    def write(self, path: Path, number: int, result: TrialResult) -> None:
        """Write the picture of a trial's plan; see `draw_latent_sizes`."""
        self._canvas.restore_region(self._shared)
        for artist in _draw_plan(self._figure, self._metadata, number, result):
            self._figure.draw_artist(artist)
            artist.remove()
        imsave(path, np.asarray(self._canvas.buffer_rgba()), format="png", pil_kwargs={"compress_level": 1})


def _draw_widths(metadata: StudyMetadata) -> Figure:
    """Draw what the pictures of all plans of a study have in common: the layers and their dense widths."""
    layers = metadata.layers
    figure = Figure(figsize=(8, 1.4 + 0.2 * len(layers)), layout="constrained")
    axes = figure.subplots()
    widths = axes.barh(range(len(layers)), [layer.out_size for layer in layers], color="#E8E8E8")
    names: dict[str, Artist] = {
        "output channels or features": widths.patches[0],
        **{
            f"latent size, {kind}" if kind != DENSE else kind: Rectangle((0, 0), 1, 1, color=color)
            for kind, color in SCHEME_COLORS.items()
        },
        "break-even rank": Line2D([], [], marker="|", markersize=9, color=ORANGE, linestyle="none"),
    }
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers], fontsize=7)
    axes.set_xlim(0, 1.15 * max(max(layer.out_size, _largest_rank(layer)) for layer in layers))
    axes.invert_yaxis()
    axes.set_title("trial", fontsize=10, alpha=0)  # keeps the place of the plan's own
    figure.legend(handles=list(names.values()), labels=list(names), fontsize=7, loc="outside lower center", ncols=4)
    return figure


def _largest_rank(layer: LayerSpec) -> int:
    return max(layer.break_even_rank(scheme) for scheme in layer.schemes)


def _draw_plan(figure: Figure, metadata: StudyMetadata, number: int, result: TrialResult) -> list[Artist]:
    """Add one plan to what `_draw_widths` has drawn, and return what was added."""
    [axes], layers = figure.axes, metadata.layers
    choices = [result.plan.layers.get(layer.name) for layer in layers]
    widths = [layer.out_size for layer in layers]
    sizes = [width if c is None else c.latent_size for c, width in zip(choices, widths, strict=True)]
    schemes = ["full" if c is None else c.scheme for c in choices]
    limits = [layer.break_even_rank(scheme) for layer, scheme in zip(layers, schemes, strict=True)]
    colors = [SCHEME_COLORS[DENSE if c is None else c.scheme] for c in choices]
    rows = range(len(layers))
    texts = [
        axes.text(
            max(widths[row], sizes[row], limits[row]),
            row,
            f"  {DENSE if choice is None else f'{choice.latent_size} {choice.scheme}'}",
            va="center",
            fontsize=7,
        )
        for row, choice in enumerate(choices)
    ]
    title = f"trial {number}: {result.speedup:.2f}x, {result.accuracy:.2%} validation accuracy"
    return [
        *axes.barh(rows, sizes, color=colors, height=0.55),
        axes.scatter(limits, rows, marker="|", s=90, color=ORANGE, zorder=3),
        *texts,
        axes.text(0.5, 1.01, title, fontsize=10, ha="center", va="bottom", transform=axes.transAxes),
    ]


def draw_heat_map(metadata: StudyMetadata, points: Sequence[FeasibleTrial]) -> Figure:
    """Draw the share of MACs that each layer keeps in each plan of the front; layers are rows, plans columns."""
    layers = metadata.layers
    kept = np.ones((len(layers), len(points)))
    figure = Figure(figsize=(min(8.0, 3.6 + 0.5 * len(points)), 1.4 + 0.2 * len(layers)), layout="constrained")
    axes = figure.subplots()
    for row, layer in enumerate(layers):
        for column, point in enumerate(points):
            choice = point.result.plan.layers.get(layer.name)
            if choice is not None:
                kept[row, column] = layer_macs(layer, choice) / layer.dense_macs
                letter, color = choice.scheme[0].upper(), "white" if kept[row, column] < 0.5 else BLACK
                axes.text(column, row, letter, color=color, ha="center", va="center", fontsize=6)
    image = axes.imshow(kept, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers], fontsize=7)
    axes.set_xticks(range(len(points)), [f"{point.result.speedup:.1f}x" for point in points], fontsize=7, rotation=90)
    axes.set_xlabel("plans of the front, by speedup; letters: Full, Vertical, Horizontal, Pointwise")
    figure.colorbar(image, label="share of the layer's MACs kept (1 = dense)")
    return figure

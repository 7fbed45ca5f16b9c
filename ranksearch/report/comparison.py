"""Comparison of several studies: their Pareto fronts in one figure, and their accuracies at fixed speedups."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from ranksearch.report.figures import fronts_figure
from ranksearch.report.html_page import write_page
from ranksearch.report.plan_text import SPEEDUPS
from ranksearch.report.static_figures import draw_fronts, write_figure
from ranksearch.results.pareto import hypervolume
from ranksearch.results.study_files import Front
from ranksearch.results.units import scale_of

Rows: TypeAlias = Sequence[tuple[str, ...]]


def format_best(front: Front, speedup: float) -> str:
    """Format the best accuracy among a front's points with at least the given speedup, or a dash without any."""
    fast = [point["accuracy"] for point in front["points"] if point["speedup"] >= speedup]
    return f"{max(fast):.2%}" if fast else "-"


def comparison_rows(fronts: Mapping[str, Front]) -> list[tuple[str, ...]]:
    """Return a header and a row per study: dense accuracy, best accuracy at fixed speedups, hypervolume."""
    rows = [("study", "counts", "dense", *(f"at {speedup:g}x" for speedup in SPEEDUPS), "hypervolume")]
    for study, front in fronts.items():
        best = [format_best(front, speedup) for speedup in SPEEDUPS]
        counted, dense = scale_of(front["measured"]["cost_unit"]).name, front["dense"]
        volume = hypervolume((point["cost"] / dense["cost"], point["accuracy"]) for point in front["points"])
        rows.append((study, counted, f"{dense['accuracy']:.2%}", *best, f"{volume:.4f}"))
    return rows


def write_comparison(
    path: Path, title: str, fronts: Mapping[str, Front], summary: str = "", jobs: Rows = (), failed: Rows = ()
) -> None:
    """Write the comparison page and, if there are any fronts, their figure as static images beside it.

    Args:
        path: path of the page.
        title: title of the page.
        fronts: study -> content of its `front.json`.
        summary: text above the figure and tables.
        jobs: a header and a row per job of a sweep.
        failed: a header and a row per job that failed.
    """
    units = {scale_of(front["measured"]["cost_unit"]).name for front in fronts.values()}
    figures = {"fronts": fronts_figure(fronts, " or ".join(sorted(units)))} if fronts else {}
    shown = {"fronts": bool(fronts), "summary": summary, "jobs": list(jobs), "failed": list(failed)}
    write_page(path, "comparison.html.j2", title, figures, {}, rows=comparison_rows(fronts), **shown)
    if fronts:
        write_figure(path.parent, "fronts", draw_fronts(fronts))

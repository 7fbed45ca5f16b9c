"""Several studies side by side: their fronts over one another, and what each gives at fixed speedups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ranksearch.cost import scale_of
from ranksearch.front import hypervolume
from ranksearch.pictures import draw_fronts, write_picture
from ranksearch.review.figures import fronts_figure
from ranksearch.review.page import write_page
from ranksearch.review.plans import SPEEDUPS

Front = Mapping[str, Any]  # what a study's `front.json` holds


def best_said(front: Front, speedup: float) -> str:
    """The accuracy of a front's best point that is at least so fast, as text."""
    fast = [point["accuracy"] for point in front["points"] if point["speedup"] >= speedup]
    return f"{max(fast):.2%}" if fast else "-"


def front_volume(front: Front) -> float:
    """The front's hypervolume, cost as a share of the dense network's."""
    dense = front["dense"]["cost"]
    return hypervolume((point["cost"] / dense, point["accuracy"]) for point in front["points"])


def comparison_rows(fronts: Mapping[str, Front]) -> list[tuple[str, ...]]:
    """A header and a row per study: the dense network, the best at fixed speedups, the hypervolume."""
    rows = [("study", "counts", "dense", *(f"at {speedup:g}x" for speedup in SPEEDUPS), "hypervolume")]
    for study, front in fronts.items():
        best = [best_said(front, speedup) for speedup in SPEEDUPS]
        counted = scale_of(front["measured"]["cost_unit"]).name
        rows.append((study, counted, f"{front['dense']['accuracy']:.2%}", *best, f"{front_volume(front):.4f}"))
    return rows


def write_comparison(
    path: Path,
    title: str,
    fronts: Mapping[str, Front],
    said: str = "",
    jobs: Sequence[tuple[str, ...]] = (),
    failed: Sequence[tuple[str, ...]] = (),
) -> None:
    """Write the page and, beside it, its figure as a still picture, where there is one.

    Args:
        path: of the page.
        title: of the page.
        fronts: study -> what its `front.json` holds.
        said: above all else.
        jobs: a header and a row per job of a sweep.
        failed: a header and a row per job that failed.
    """
    units = {scale_of(front["measured"]["cost_unit"]).name for front in fronts.values()}
    figures = {"fronts": fronts_figure(fronts, " or ".join(sorted(units)))} if fronts else {}
    rows = comparison_rows(fronts)
    shown = {"fronts": bool(fronts), "rows": rows, "said": said, "jobs": list(jobs), "failed": list(failed)}
    write_page(path, "comparison.html.j2", title, figures, {}, **shown)
    if fronts:
        write_picture(path.parent, "fronts", draw_fronts(fronts))

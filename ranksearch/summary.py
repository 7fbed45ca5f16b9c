"""The short table that a search ends with, and tables for terminals."""

from __future__ import annotations

from collections.abc import Sequence

from ranksearch.cost import scale_of
from ranksearch.facts import StudyFacts
from ranksearch.finalized import Finalized
from ranksearch.front import FrontPoint, spread_over
from ranksearch.trial import TrialResult


def summary_rows(
    facts: StudyFacts, points: Sequence[FrontPoint], finalized: Finalized | None, others: int = 3
) -> list[tuple[str, ...]]:
    """The short table: the baseline, the picked plan, and a few more points of the front.

    Args:
        facts: of the study.
        points: the front, by rising cost.
        finalized: the picked plan's end, if it came to that.
        others: how many more points, spread over the front.

    Returns:
        A header and rows of as many cells.
    """

    def row(label: str, costs: tuple[str, ...], params: int, validation: float, test: str = "") -> tuple[str, ...]:
        return (label, *costs, f"{params / 1e6:.3f} M", f"{validation:.2%}", test)

    rows: list[tuple[str, ...]] = [("", *cost_names(facts), "params", "validation", "test")]
    on_test = f"{finalized.dense.accuracy:.2%}" if finalized else ""
    rows.append(row("dense", _said(facts, facts.cost, facts.macs), facts.params, facts.accuracy, on_test))
    if finalized:
        picked = finalized.point.result
        label = f"picked: trial {finalized.point.number}"
        rows.append(row(label, costs_said(facts, picked), picked.params, picked.accuracy, finalized.said()))
    rest = [point for point in points if finalized is None or point.number != finalized.point.number]
    for point in reversed(spread_over(rest, others)):
        result = point.result
        rows.append(row(f"trial {point.number}", costs_said(facts, result), result.params, result.accuracy))
    return rows


def cost_names(facts: StudyFacts) -> tuple[str, ...]:
    """What `costs_said` gives."""
    searched = (facts.scale.name, "speedup")
    return searched if facts.counts_macs else (*searched, "MACs", "in MACs")


def costs_said(facts: StudyFacts, result: TrialResult) -> tuple[str, ...]:
    """A cost and its speedup as text; the same of the MACs, where it counts something else."""
    return _said(facts, result.cost, result.macs)


def _said(facts: StudyFacts, cost: int, macs: int) -> tuple[str, ...]:
    searched = (facts.scale.said(cost), f"{facts.cost / cost:.2f}x")
    return searched if facts.counts_macs else (*searched, scale_of("MACs").said(macs), f"{facts.macs / macs:.2f}x")


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in columns for a terminal, the first aligned left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )

"""Summary table of a search, and tables for terminals."""

from collections.abc import Sequence

from ranksearch.results.final import FinalResult
from ranksearch.results.metadata import StudyMetadata
from ranksearch.results.pareto import evenly_spaced
from ranksearch.results.trials import FeasibleTrial, TrialResult
from ranksearch.results.units import scale_of


def summary_rows(
    metadata: StudyMetadata, points: Sequence[FeasibleTrial], final: FinalResult | None
) -> list[tuple[str, ...]]:
    """Return the summary table: the baseline, the picked plan, and three more points, evenly spaced over the front.

    Args:
        metadata: metadata of the study.
        points: the Pareto front, by rising cost.
        final: results of the picked plan; None if it was not finished.

    Returns:
        A header and rows with the same number of cells.
    """

    def row(label: str, costs: tuple[str, ...], params: int, validation: float, test: str = "") -> tuple[str, ...]:
        return (label, *costs, f"{params / 1e6:.3f} M", f"{validation:.2%}", test)

    dense, on_test = _format(metadata, metadata.cost, metadata.macs), f"{final.dense.accuracy:.2%}" if final else ""
    rows: list[tuple[str, ...]] = [("", *cost_names(metadata), "params", "validation", "test")]
    rows.append(row("dense", dense, metadata.params, metadata.accuracy, on_test))
    if final:
        picked = final.trial.result
        label = f"picked: trial {final.trial.number}"
        rows.append(row(label, format_costs(metadata, picked), picked.params, picked.accuracy, final.format_accuracy()))
    rest = [point for point in points if final is None or point.number != final.trial.number]
    for point in reversed(evenly_spaced(rest, 3)):
        result = point.result
        rows.append(row(f"trial {point.number}", format_costs(metadata, result), result.params, result.accuracy))
    return rows


def cost_names(metadata: StudyMetadata) -> tuple[str, ...]:
    """Return the column names of `format_costs`."""
    searched = (metadata.scale.name, "speedup")
    return searched if metadata.counts_macs else (*searched, "MACs", "in MACs")


def format_costs(metadata: StudyMetadata, result: TrialResult) -> tuple[str, ...]:
    """Format a trial's cost and speedup, followed by those in MACs if the search counts another cost."""
    return _format(metadata, result.cost, result.macs)


def _format(metadata: StudyMetadata, cost: int, macs: int) -> tuple[str, ...]:
    searched = (metadata.scale.format(cost), f"{metadata.cost / cost:.2f}x")
    if metadata.counts_macs:
        return searched
    return (*searched, scale_of("MACs").format(macs), f"{metadata.macs / macs:.2f}x")


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as aligned columns for a terminal, the first column aligned left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )

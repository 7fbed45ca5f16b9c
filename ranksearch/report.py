"""`report.html`: what the search found, on one page that needs nothing else; and the table for the terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ranksearch.device import device_in_words
from ranksearch.files import write_text
from ranksearch.finalize import Finalized
from ranksearch.pictures import draw_front, draw_heat_map, draw_latent_sizes, to_svg
from ranksearch.plan import SCHEMES, RankPlan
from ranksearch.problem import Problem
from ranksearch.records import FrontPoint, TrialRecord

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #222;
       background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.headline { font-size: 1.2rem; border-left: 4px solid #D55E00; padding-left: .8rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #222; } tr.picked { font-weight: bold; }
td:first-child, th:first-child { text-align: left; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; } svg { max-width: 100%; height: auto; }
figure { margin: 1rem 0; overflow-x: auto; } figcaption { color: #555; font-size: .9rem; }
"""


def summary_rows(
    problem: Problem, points: Sequence[FrontPoint], finalized: Finalized | None, others: int = 3
) -> list[tuple[str, ...]]:
    """The short table: the baseline, the picked plan, and a few more points of the front.

    Args:
        problem: that was searched.
        points: the front, by rising cost.
        finalized: the picked plan's end, if it came to that.
        others: how many more points, spread over the front.

    Returns:
        A header and rows of as many cells.
    """
    dense = problem.space.cost.dense

    def row(label: str, cost: int, macs: int, params: int, validation: float, test: str = "") -> tuple[str, ...]:
        costs = _costs(problem, cost, macs)
        return (label, *costs, f"{params / 1e6:.3f} M", f"{validation:.2%}", test)

    rows: list[tuple[str, ...]] = [("", *_cost_names(problem), "params", "validation", "test")]
    on_test = f"{finalized.dense.accuracy:.2%}" if finalized else ""
    rows.append(row("dense", dense, problem.macs.dense, problem.params, problem.baseline.accuracy, on_test))
    if finalized:
        picked = finalized.point.result
        label = f"picked: trial {finalized.point.number}"
        rows.append(row(label, picked.cost, picked.macs, picked.params, picked.accuracy, finalized.said()))
    rest = [point for point in points if finalized is None or point.number != finalized.point.number]
    count = min(others, len(rest))
    chosen = [rest[round(index * (len(rest) - 1) / max(count - 1, 1))] for index in range(count)]
    for point in reversed(chosen):
        result = point.result
        rows.append(row(f"trial {point.number}", result.cost, result.macs, result.params, result.accuracy))
    return rows


def _cost_names(problem: Problem) -> tuple[str, ...]:
    """What `_costs` gives."""
    searched = (problem.space.cost.scale.name, "speedup")
    return searched if problem.counts_macs else (*searched, "MACs", "in MACs")


def _costs(problem: Problem, cost: int, macs: int) -> tuple[str, ...]:
    """A cost and its speedup as text; the same of the MACs, where it counts something else."""
    searched = (problem.space.cost.said(cost), f"{problem.speedup(cost):.2f}x")
    return (
        searched if problem.counts_macs else (*searched, problem.macs.said(macs), f"{problem.macs.dense / macs:.2f}x")
    )


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


def write_report(
    path: Path,
    study: str,
    problem: Problem,
    records: Sequence[TrialRecord],
    points: Sequence[FrontPoint],
    finalized: Finalized | None,
    load_call: str,
    settings: Mapping[str, Any],
    notes: Mapping[str, str],
) -> None:
    """Write the report.

    Args:
        path: of the file.
        study: its name.
        problem: that was searched.
        records: all trials.
        points: the front, by rising cost.
        finalized: the picked plan's end, if it came to that.
        load_call: what loads the picked network.
        settings: of the run, plain JSON values.
        notes: label -> text, said beside the figures: splits, fine-tuning steps, seeds.
    """
    counts = {state: sum(record.state == state for record in records) for state in ("COMPLETE", "PRUNED", "FAIL")}
    picked = finalized.point.number if finalized else -1
    parts = [
        f"<h1>ranksearch: {escape(study)}</h1>",
        f'<p class="headline">{_headline(problem, finalized)}</p>',
    ]
    trials = ", ".join(f"{count} {state.lower()}" for state, count in counts.items())
    parts.append(f"<p>Trials: {trials}.</p><ul>")
    parts += [f"<li>{escape(label)}: {escape(text)}</li>" for label, text in notes.items()]
    parts.append("</ul>")
    parts.append(
        "<h2>The front</h2>"
        + figure(
            to_svg(draw_front(problem, records, points, picked)),
            "Each mark is a trial, scored on the validation split after its brief fine-tuning.",
        )
    )
    if points:
        parts.append(_front_table(problem, points, picked))
        shown = finalized.point if finalized else points[-1]
        parts.append("<h2>Scheme and latent size of every layer</h2>")
        parts.append(
            figure(
                to_svg(draw_latent_sizes(problem, shown)),
                "The picked plan. A latent size above the "
                "break-even rank would cost more than the dense layer, so it is never chosen.",
            )
        )
        parts.append(figure(to_svg(draw_heat_map(problem, points)), "All plans of the front."))
    if finalized:
        code = f"import ranksearch\nnetwork = {load_call}"
        if finalized.timed:
            parts.append("<h2>By the clock</h2>" + _clock_table(problem, finalized))
        parts.append(f"<h2>Load the picked network</h2><pre>{escape(code)}</pre>")
    parts.append(f"<h2>Settings</h2><pre>{escape(json.dumps(settings, indent=2))}</pre>")
    write_text(path, page(study, parts))


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of HTML, which needs no other file."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "".join(parts)
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n'


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of plain text as HTML, the first of them the header."""
    lines = [_html_row([escape(cell) for cell in row], "td" if index else "th") for index, row in enumerate(rows)]
    return f"<table>{''.join(lines)}</table>"


def _headline(problem: Problem, finalized: Finalized | None) -> str:
    if finalized is None:
        return "No plan has been finalized yet."
    counted, steps = problem.space.cost.scale.name, finalized.steps
    return (
        f"{finalized.point.result.speedup:.2f}x in {counted} at {finalized.said()} test accuracy after {steps} "
        f"fine-tuning steps ({finalized.before.accuracy:.2%} before them; dense: {finalized.dense.accuracy:.2%}), "
        f"trial {finalized.point.number}."
    )


def _by_scheme(plan: RankPlan) -> str:
    counts = Counter(choice.scheme for _, choice in plan)
    return ", ".join(f"{counts[scheme]} {scheme}" for scheme in SCHEMES if counts[scheme]) or "all dense"


def figure(svg: str, caption: str) -> str:
    """A picture with a line below it, as HTML."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _html_row(cells: Sequence[object], tag: str = "td", mark: str = "") -> str:
    return f"<tr{mark}>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _clock_table(problem: Problem, finalized: Finalized) -> str:
    rows = [_html_row(("batch", "dense", "factorized", "speedup", "spread"), "th")]
    for timed in finalized.timed:
        times = (f"{1e3 * timed.dense_seconds:.2f} ms", f"{1e3 * timed.factorized_seconds:.2f} ms")
        rows.append(_html_row((timed.batch_size, *times, f"{timed.speedup:.2f}x", f"{timed.spread:.0%}")))
    macs = problem.macs.dense / finalized.point.result.macs
    where = escape(
        f"Both networks by turns in one run, on {device_in_words(problem.device)}; in MACs it is {macs:.2f}x."
    )
    return f"<table>{''.join(rows)}</table><p>{where}</p>"


def _front_table(problem: Problem, points: Sequence[FrontPoint], picked: int) -> str:
    costs = _cost_names(problem)
    head = ("trial", "from", *costs, "params", "validation before", "after fine-tuning", "layers by scheme")
    rows = [_html_row(head, "th")]
    for point in points:
        r = point.result
        cells = (
            point.number,
            "closed form" if point.closed_form else "sampler",
            *_costs(problem, r.cost, r.macs),
            f"{r.params:,}",
            f"{r.accuracy_before:.2%}",
            f"{r.accuracy:.2%}",
            _by_scheme(r.plan),
        )
        rows.append(_html_row(cells, mark=' class="picked"' if point.number == picked else ""))
    return f"<table>{''.join(rows)}</table>"

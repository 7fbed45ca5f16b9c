"""The note on a study's page in Optuna's dashboard, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ranksearch.facts import StudyFacts
from ranksearch.front import front, spread_over
from ranksearch.records import TrialRecord
from ranksearch.review.plans import after, by_scheme
from ranksearch.summary import cost_names, costs_said

# Rows of the front, spread over it: a note is read, not searched.
ROWS = 12


def write_note(facts: StudyFacts, records: Sequence[TrialRecord], report: Path) -> str:
    """The study in Markdown: its goal, its command, the baseline, what the closed form gives, the front, the report.

    Args:
        facts: of the study.
        records: all its trials.
        report: where the report is written.
    """
    points, scale = front(records), facts.scale
    done = sum(record.finished for record in records)
    lines = [
        f"**Goal:** {facts.model} on {facts.dataset}, at least {facts.speedup:g}x faster in {scale.name}, as "
        f"accurate as can be. {done} of {facts.trials} trials are finished.",
        "",
        "```bash",
        facts.command,
        "```",
        "",
        f"**Dense:** {facts.accuracy:.2%} on the validation split, {facts.cost_said(facts.cost)}, "
        f"{facts.params / 1e6:.3f} M params.",
        "",
        f"**The closed form** gives, before any search: {_closed_form(facts, records)} "
        f"({after(facts.fine_tune_steps)}).",
        "",
        f"**The front**, validation accuracy {after(facts.fine_tune_steps)}:",
        "",
    ]
    if not points:
        lines.append("No trial has completed yet.")
    else:
        head = ("trial", *cost_names(facts), "before", "after", "layers by scheme")
        lines += [_row(head), _row(["---"] * len(head))]
        for point in spread_over(points, ROWS):
            result = point.result
            accuracies = (f"{result.accuracy_before:.2%}", f"{result.accuracy:.2%}")
            lines.append(_row((str(point.number), *costs_said(facts, result), *accuracies, by_scheme(result.plan))))
    lines += ["", f"**Report:** `{report}`, and beside it `trials.csv`, `front.json` and `best/`.", ""]
    lines.append("A layer's parameters are its latent size and its scheme; the largest value stands for dense.")
    return "\n".join(lines)


def _closed_form(facts: StudyFacts, records: Sequence[TrialRecord]) -> str:
    known = [record.result for record in records if record.closed_form and record.result is not None]
    said = [f"{result.accuracy:.2%} at {result.speedup:.2f}x" for result in known]
    return ", ".join(said) or "nothing yet"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

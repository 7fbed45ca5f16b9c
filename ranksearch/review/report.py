"""`report.html`: what a study found, on one page to look at, to choose from, and to show to others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ranksearch.device import in_words
from ranksearch.facts import StudyFacts, macs_under
from ranksearch.finalized import Finalized
from ranksearch.front import FrontPoint, best_at, front, volumes
from ranksearch.palette import SCHEME_COLORS
from ranksearch.plan import SCHEMES
from ranksearch.records import TrialRecord
from ranksearch.review.figures import (
    fine_tuning_figure,
    front_figure,
    heat_map,
    history_figure,
    importance_figure,
    layers_figure,
)
from ranksearch.review.page import write_page
from ranksearch.review.plans import SPEEDUPS, after, by_scheme, by_speedup, completed
from ranksearch.summary import cost_names, costs_said
from ranksearch.trial import TrialResult

REASONS = 5  # how many are told of the trials that did not complete


def write_report(
    path: Path,
    study: str,
    facts: StudyFacts,
    records: Sequence[TrialRecord],
    finalized: Finalized | None,
    load_call: str | None,
    run: Mapping[str, Any] | None,
) -> None:
    """Write the report.

    Args:
        path: of the file.
        study: its name.
        facts: of the study.
        records: all its trials.
        finalized: the picked plan's end, if it came to that.
        load_call: what loads the picked network, where there is one.
        run: what `run.json` holds, if it is there.
    """
    points, done = front(records), completed(records)
    numbers = {record.number for record, _ in done}
    picked = finalized.point.number if finalized and finalized.point.number in numbers else None
    chosen = picked if picked is not None else (points[-1].number if points else None)
    widths, macs = [layer.out_size for layer in facts.layers], [layer.dense_macs / 1e6 for layer in facts.layers]
    figures = {}
    if done:
        figures = {
            "front": front_figure(facts, records, picked),
            "sizes": layers_figure(facts.layers, "latent size", widths),
            "macs": layers_figure(facts.layers, "MACs, millions", macs),
            "heat": heat_map(facts, records),
            "importance": importance_figure(facts, records),
            "fine_tuning": fine_tuning_figure(facts, records),
            "history": history_figure(facts, volumes(records, facts.cost)),
        }
    content = {
        "layers": [{"name": spec.name, "width": spec.out_size, "macs": spec.dense_macs} for spec in facts.layers],
        "schemes": list(SCHEMES),
        "colors": SCHEME_COLORS,
        "trials": {record.number: _trial(facts, record, result) for record, result in done},
        "selected": chosen,
    }
    write_page(
        path,
        "report.html.j2",
        f"ranksearch: {study}",
        figures,
        content,
        headline=_headline(facts, points),
        finalized=None if finalized is None else _finalized(facts, finalized),
        cards=_cards(facts, points),
        trials=[(record.number, _label(record, result, picked)) for record, result in by_speedup(records)],
        selected=chosen,
        schemes=list(SCHEME_COLORS.items()),
        counts=_counts(records),
        reasons=_reasons(records),
        front_rows=_front_rows(facts, points),
        clock_rows=_clock_rows(finalized),
        clock_said=_clock_said(facts, finalized),
        load_call=load_call,
        command=facts.command,
        notes=_notes(facts, finalized),
        recipe=None if run is None else json.dumps(run, indent=2),
    )


def _headline(facts: StudyFacts, points: Sequence[FrontPoint]) -> str:
    """What you get at twice the speed, or at the speed nearest to that."""
    dense = f"the dense network has {facts.accuracy:.2%}"
    if not points:
        return f"No trial has completed yet; {dense}."
    wanted = max(2.0, facts.speedup)
    best = best_at(points, wanted) or points[0]
    result = best.result
    reached = f"{wanted:g}x or more" if result.speedup >= wanted else f"{result.speedup:.2f}x"
    return (
        f"At {reached} in {facts.scale.name}: {result.accuracy:.2%} validation accuracy (trial {best.number}, "
        f"{result.speedup:.2f}x, {after(facts.fine_tune_steps)}); {dense}."
    )


def _finalized(facts: StudyFacts, finalized: Finalized) -> str:
    result = finalized.point.result
    return (
        f"Picked and finished: trial {finalized.point.number}, {result.speedup:.2f}x in {facts.scale.name}, "
        f"{finalized.said()} test accuracy {after(finalized.steps)}, "
        f"{finalized.before.accuracy:.2%} before any; the dense network has {finalized.dense.accuracy:.2%}."
    )


def _cards(facts: StudyFacts, points: Sequence[FrontPoint]) -> list[tuple[str, str]]:
    found = []
    for speedup in SPEEDUPS:
        best = best_at(points, speedup)
        found.append((f"at {speedup:g}x or more", "-" if best is None else f"{best.result.accuracy:.2%}"))
    return [("dense", f"{facts.accuracy:.2%}"), *found]


def _label(record: TrialRecord, result: TrialResult, picked: int | None) -> str:
    mark = ", picked" if record.number == picked else ""
    return f"{record.number}: {result.speedup:.2f}x, {result.accuracy:.2%}{mark}"


def _trial(facts: StudyFacts, record: TrialRecord, result: TrialResult) -> dict[str, Any]:
    """What the page's script shows of a trial; a layer's scheme is -1 where it is dense."""
    plan: list[list[float]] = []
    for layer in facts.layers:
        choice = result.plan.layers.get(layer.name)
        if choice is None:
            plan.append([-1, 0, 0, 0])
            continue
        error = result.errors.get(layer.name, 0.0)
        plan.append([SCHEMES.index(choice.scheme), choice.latent_size, macs_under(layer, choice), error])
    costs = ", ".join(f"{name} {cost}" for name, cost in zip(cost_names(facts), costs_said(facts, result), strict=True))
    return {
        "speedup": round(result.speedup, 4),
        "accuracy": result.accuracy,
        "plan": plan,
        "said": (
            f"Trial {record.number} ({'closed form' if record.closed_form else 'sampler'}): {costs}, "
            f"{result.params / 1e6:.3f} M params; validation accuracy {result.accuracy_before:.2%} before and "
            f"{result.accuracy:.2%} after fine-tuning; {by_scheme(result.plan)}; {record.seconds:.1f} s."
        ),
    }


def _counts(records: Sequence[TrialRecord]) -> str:
    known = {"RUNNING": "under way", "WAITING": "waiting"}
    counts = Counter(record.outcome or known[record.state] for record in records)
    return "Trials: " + (", ".join(f"{count} {said}" for said, count in counts.items()) or "none yet") + "."


def _reasons(records: Sequence[TrialRecord]) -> list[str]:
    """Why the last trials that did not complete did not."""
    return [f"trial {record.number}: {record.reason}" for record in records if record.reason][-REASONS:]


def _front_rows(facts: StudyFacts, points: Sequence[FrontPoint]) -> list[tuple[str, ...]]:
    head = ("trial", "from", *cost_names(facts), "params", "before", "after fine-tuning", "layers by scheme")
    rows = [head]
    for point in points:
        result = point.result
        rows.append(
            (
                str(point.number),
                "closed form" if point.closed_form else "sampler",
                *costs_said(facts, result),
                f"{result.params:,}",
                f"{result.accuracy_before:.2%}",
                f"{result.accuracy:.2%}",
                by_scheme(result.plan),
            )
        )
    return rows


def _clock_rows(finalized: Finalized | None) -> list[tuple[str, ...]]:
    if finalized is None or not finalized.timed:
        return []
    rows: list[tuple[str, ...]] = [("batch", "dense", "factorized", "speedup", "spread")]
    for timed in finalized.timed:
        times = (f"{1e3 * timed.dense_seconds:.2f} ms", f"{1e3 * timed.factorized_seconds:.2f} ms")
        rows.append((str(timed.batch_size), *times, f"{timed.speedup:.2f}x", f"{timed.spread:.0%}"))
    return rows


def _clock_said(facts: StudyFacts, finalized: Finalized | None) -> str:
    if finalized is None:
        return ""
    where, macs = finalized.timed_on, facts.macs / finalized.point.result.macs
    return (
        f"Both networks by turns in one run, in {where['dtype']}, on {in_words(where['device'])}; in MACs it is "
        f"{macs:.2f}x."
    )


def _notes(facts: StudyFacts, finalized: Finalized | None) -> list[tuple[str, str]]:
    seeds = ", ".join(str(fine_tuned.seed) for fine_tuned in finalized.fine_tuned) if finalized else ""
    notes = [
        ("network and data", f"{facts.model} on {facts.dataset}"),
        ("trials", f"validation accuracy {after(facts.fine_tune_steps)}, seed {facts.seed}"),
        ("MACs", f"of one image of shape {list(facts.input_shape)}"),
        ("constraint", f"a speedup of at least {facts.speedup:g} in {facts.scale.name}"),
    ]
    if finalized:
        notes.append(("picked plan", f"test accuracy {after(finalized.steps)}, seed {seeds}"))
    return notes

"""`report.html`: the results of a study on one interactive page."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ranksearch.plan import SCHEMES
from ranksearch.report import figures
from ranksearch.report.colors import SCHEME_COLORS
from ranksearch.report.html_page import write_page
from ranksearch.report.plan_text import SPEEDUPS, after, by_scheme
from ranksearch.report.tables import cost_names, format_costs
from ranksearch.results.final import FinalResult
from ranksearch.results.metadata import StudyMetadata, layer_macs
from ranksearch.results.pareto import best_at, hypervolume_history, pareto_front
from ranksearch.results.trials import FeasibleTrial, TrialRecord, by_speedup, feasible_trials
from ranksearch.results.units import format_device

REASONS = 5  # number of incomplete trials whose reasons are listed


def write_report(
    path: Path,
    study: str,
    metadata: StudyMetadata,
    records: Sequence[TrialRecord],
    final: FinalResult | None,
    load_call: str | None,
    run: Mapping[str, Any] | None,
) -> None:
    """Write the report of a study.

    Args:
        path: path of the file.
        study: name of the study.
        metadata: metadata of the study.
        records: all its trials.
        final: results of the picked plan; None if it was not finished.
        load_call: expression that loads the picked network; None without one.
        run: content of `run.json`; None if it is missing.
    """
    points, done = pareto_front(records), feasible_trials(records)
    picked = final.trial.number if final and final.trial.number in {trial.number for trial in done} else None
    chosen = picked if picked is not None else (points[-1].number if points else None)
    widths, macs = [layer.out_size for layer in metadata.layers], [layer.dense_macs / 1e6 for layer in metadata.layers]
    drawn = {}
    if done:
        drawn = {
            "front": figures.front_figure(metadata, records, picked),
            "sizes": figures.layers_figure(metadata.layers, "latent size", widths),
            "macs": figures.layers_figure(metadata.layers, "MACs, millions", macs),
            "heat": figures.heat_map(metadata, records),
            "importance": figures.importance_figure(metadata, records),
            "fine_tuning": figures.fine_tuning_figure(metadata, records),
            "history": figures.history_figure(metadata, hypervolume_history(records, metadata.cost)),
        }
    content = {
        "layers": [{"name": spec.name, "width": spec.out_size, "macs": spec.dense_macs} for spec in metadata.layers],
        "schemes": list(SCHEMES),
        "colors": SCHEME_COLORS,
        "trials": {trial.number: _trial(metadata, trial) for trial in done},
        "selected": chosen,
    }
    write_page(
        path,
        "report.html.j2",
        f"ranksearch: {study}",
        drawn,
        content,
        headline=_headline(metadata, points),
        final=None if final is None else _finalized(metadata, final),
        cards=_cards(metadata, points),
        trials=[(trial.number, _label(trial, picked)) for trial in by_speedup(records)],
        selected=chosen,
        schemes=list(SCHEME_COLORS.items()),
        counts=_counts(records),
        reasons=[f"trial {record.number}: {record.reason}" for record in records if record.reason][-REASONS:],
        front_rows=_front_rows(metadata, points),
        clock_rows=_clock_rows(final),
        clock_note=_clock_note(metadata, final),
        load_call=load_call,
        command=metadata.command,
        notes=_notes(metadata, final),
        recipe=None if run is None else json.dumps(run, indent=2),
    )


def _headline(metadata: StudyMetadata, points: Sequence[FeasibleTrial]) -> str:
    """Return a sentence with the accuracy at 2x, or at the speedup asked for if higher, or at the fastest point."""
    dense = f"the dense network has {metadata.accuracy:.2%}"
    if not points:
        return f"No trial has completed yet; {dense}."
    wanted = max(2.0, metadata.speedup)
    best = best_at(points, wanted) or points[0]
    result = best.result
    reached = f"{wanted:g}x or more" if result.speedup >= wanted else f"{result.speedup:.2f}x"
    return (
        f"At {reached} in {metadata.scale.name}: {result.accuracy:.2%} validation accuracy (trial {best.number}, "
        f"{result.speedup:.2f}x, {after(metadata.fine_tune_steps)}); {dense}."
    )


def _finalized(metadata: StudyMetadata, final: FinalResult) -> str:
    result = final.trial.result
    return (
        f"Picked and fine-tuned: trial {final.trial.number}, {result.speedup:.2f}x in {metadata.scale.name}, "
        f"{final.format_accuracy()} test accuracy {after(final.steps)}, {final.before.accuracy:.2%} before; "
        f"the dense network has {final.dense.accuracy:.2%}."
    )


def _cards(metadata: StudyMetadata, points: Sequence[FeasibleTrial]) -> list[tuple[str, str]]:
    cards = [("dense", f"{metadata.accuracy:.2%}")]
    for speedup in SPEEDUPS:
        best = best_at(points, speedup)
        cards.append((f"at {speedup:g}x or more", "-" if best is None else f"{best.result.accuracy:.2%}"))
    return cards


def _label(trial: FeasibleTrial, picked: int | None) -> str:
    mark = ", picked" if trial.number == picked else ""
    return f"{trial.number}: {trial.result.speedup:.2f}x, {trial.result.accuracy:.2%}{mark}"


def _trial(metadata: StudyMetadata, record: FeasibleTrial) -> dict[str, Any]:
    """Return the data of a trial for the page's script; the scheme of a dense layer is -1."""
    result, plan = record.result, list[list[float]]()
    for layer in metadata.layers:
        choice = result.plan.layers.get(layer.name)
        if choice is None:
            plan.append([-1, 0, 0, 0])
            continue
        error = result.errors.get(layer.name, 0.0)
        plan.append([SCHEMES.index(choice.scheme), choice.latent_size, layer_macs(layer, choice), error])
    named = zip(cost_names(metadata), format_costs(metadata, result), strict=True)
    costs = ", ".join(f"{name} {cost}" for name, cost in named)
    return {
        "speedup": round(result.speedup, 4),
        "accuracy": result.accuracy,
        "plan": plan,
        "summary": (
            f"Trial {record.number} ({_source(record)}): {costs}, "
            f"{result.params / 1e6:.3f} M params; validation accuracy {result.accuracy_before:.2%} before and "
            f"{result.accuracy:.2%} after fine-tuning; {by_scheme(result.plan)}; {record.seconds:.1f} s."
        ),
    }


def _source(trial: TrialRecord) -> str:
    return "closed form" if trial.closed_form else "sampler"


def _counts(records: Sequence[TrialRecord]) -> str:
    unfinished = {"RUNNING": "running", "WAITING": "waiting"}
    counts = Counter(record.outcome or unfinished[record.state] for record in records)
    return "Trials: " + (", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "none yet") + "."


def _front_rows(metadata: StudyMetadata, points: Sequence[FeasibleTrial]) -> list[tuple[str, ...]]:
    head = ("trial", "from", *cost_names(metadata), "params", "before", "after fine-tuning", "layers by scheme")
    rows = [head]
    for point in points:
        result, trial = point.result, (str(point.number), _source(point))
        scores = (f"{result.params:,}", f"{result.accuracy_before:.2%}", f"{result.accuracy:.2%}")
        rows.append((*trial, *format_costs(metadata, result), *scores, by_scheme(result.plan)))
    return rows


def _clock_rows(final: FinalResult | None) -> list[tuple[str, ...]]:
    if final is None or not final.timed:
        return []
    rows: list[tuple[str, ...]] = [("batch", "dense", "factorized", "speedup", "spread")]
    for timed in final.timed:
        times = (f"{1e3 * timed.dense_seconds:.2f} ms", f"{1e3 * timed.factorized_seconds:.2f} ms")
        rows.append((str(timed.batch_size), *times, f"{timed.speedup:.2f}x", f"{timed.spread:.0%}"))
    return rows


def _clock_note(metadata: StudyMetadata, final: FinalResult | None) -> str:
    if final is None:
        return ""
    dtype, device = final.timed_on["dtype"], format_device(final.timed_on["device"])
    in_macs = f"{metadata.macs / final.trial.result.macs:.2f}x"
    return f"Both networks timed alternately in one run, in {dtype}, on {device}; speedup in MACs: {in_macs}."


def _notes(metadata: StudyMetadata, final: FinalResult | None) -> list[tuple[str, str]]:
    seeds = ", ".join(str(fine_tuned.seed) for fine_tuned in final.fine_tuned) if final else ""
    notes = [
        ("network and data", f"{metadata.model} on {metadata.dataset}"),
        ("trials", f"validation accuracy {after(metadata.fine_tune_steps)}, seed {metadata.seed}"),
        ("MACs", f"of one image of shape {list(metadata.input_shape)}"),
        ("constraint", f"a speedup of at least {metadata.speedup:g} in {metadata.scale.name}"),
    ]
    if final:
        notes.append(("picked plan", f"test accuracy {after(final.steps)}, seed {seeds}"))
    return notes

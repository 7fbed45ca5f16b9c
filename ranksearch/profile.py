"""The profile: what every layer costs, how far each scheme may go, and what the closed form makes of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranksearch.closed_form import closed_form
from ranksearch.files import write_text
from ranksearch.plan import SCHEMES
from ranksearch.problem import Problem

DENSE = "dense"
NETWORK = "whole network"


@dataclass(frozen=True)
class ProfileRow:
    """One layer, or the whole network.

    Attributes:
        layer: dotted name.
        cost: of the dense layer, in the cost model's unit.
        share: of the dense network's cost.
        break_even: scheme -> the largest rank that saves multiply-adds, of the schemes that the layer can have.
        scheme: what the closed form chooses at the constraint's budget, or ``"dense"``.
        latent_size: the same, None where the layer stays dense.
        cost_of_plan: of the layer as chosen.
        error: share of the output's variance that the choice is expected to lose.
    """

    layer: str
    cost: int
    share: float
    break_even: Mapping[str, int]
    scheme: str
    latent_size: int | None
    cost_of_plan: int
    error: float | None


def profile_rows(problem: Problem) -> list[ProfileRow]:
    """Every layer that can be factorized, in the order of their first calls, then the whole network.

    Layers that the space's rules keep dense are among them.
    """
    network = problem.space.cost
    [plan] = closed_form(problem, [problem.budget])
    rows = []
    for name, spec in network.layers.items():
        cost, choice = network.model.dense(spec), plan.layers.get(name)
        limits = {scheme: spec.break_even_rank(scheme) for scheme in spec.schemes}
        said: tuple[str, int | None, int, float] = (DENSE, None, cost, 0.0)
        if choice is not None:
            size, scheme = choice.latent_size, choice.scheme
            said = scheme, size, network.model.at_rank(spec, size, scheme), problem.errors[name][scheme][size]
        rows.append(ProfileRow(name, cost, cost / network.dense, limits, *said))
    return [*rows, ProfileRow(NETWORK, network.dense, 1.0, {}, "", None, network.of(plan), None)]


def display(rows: Sequence[ProfileRow]) -> list[tuple[str, ...]]:
    """A header and the rows as cells for a terminal; the columns with schemes' names hold break-even ranks."""
    header = ("layer", "MACs", "share", *SCHEMES, "closed form", "MACs kept", "error")
    cells = []
    for row in rows:
        choice = row.scheme if row.latent_size is None else f"{row.scheme} {row.latent_size}"
        limits = [str(row.break_even.get(scheme, "" if row.layer == NETWORK else "-")) for scheme in SCHEMES]
        error = "" if row.error is None else f"{row.error:.2%}"
        kept = f"{row.cost_of_plan / row.cost:.0%}"
        cells.append((row.layer, f"{row.cost / 1e6:.2f} M", f"{row.share:.1%}", *limits, choice, kept, error))
    return [header, *cells]


def write_profile(path: Path, rows: Sequence[ProfileRow]) -> None:
    """Write the rows as a table of commas, empty where there is nothing to say."""
    text = io.StringIO(newline="")
    limits = {scheme: f"break_even_{scheme}" for scheme in SCHEMES}
    names = ("layer", "macs", "share", *limits.values(), "scheme", "latent_size", "macs_of_plan", "expected_error")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells: dict[str, Any] = {
            "layer": row.layer,
            "macs": row.cost,
            "share": row.share,
            "scheme": row.scheme,
            "latent_size": row.latent_size,
            "macs_of_plan": row.cost_of_plan,
            "expected_error": row.error,
        }
        writer.writerow(cells | {limits[scheme]: rank for scheme, rank in row.break_even.items()})
    write_text(path, text.getvalue())

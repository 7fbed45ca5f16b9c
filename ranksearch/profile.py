"""The profile: what every layer costs, how far each scheme may go, and the front that the closed form predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ranksearch.batches import predict
from ranksearch.closed_form import COMPARED_ON, closed_form_budgets, total_error
from ranksearch.cost import NetworkCost
from ranksearch.files import write_csv
from ranksearch.latency import LatencyCost, MeasuredLatency
from ranksearch.plan import DENSE, SCHEMES, RankPlan
from ranksearch.problem import Problem
from ranksearch.space import SearchSpace

NETWORK = "whole network"
READING = "columns named after schemes: the break-even rank in MACs, and in time"
# Budgets of the predicted front, from the constraint's downwards.
FRONT_POINTS = 6


@dataclass(frozen=True)
class ProfileRow:
    """One layer, or the whole network.

    Attributes:
        layer: dotted name.
        macs: multiply-accumulates of the dense layer.
        share: of the dense network's.
        nanoseconds: of the dense layer, for one batch on this device.
        break_even: scheme -> the largest rank that saves MACs, of the schemes that the layer can have.
        break_even_in_time: the same for the measured time.
        scheme: what the closed form chooses at the constraint's budget, or ``"dense"``.
        latent_size: the same, None where the layer stays dense.
        macs_of_plan: of the layer as chosen.
        nanoseconds_of_plan: the same in time.
        error: share of the output's variance that the choice is expected to lose.
    """

    layer: str
    macs: int
    share: float
    nanoseconds: int
    break_even: Mapping[str, int]
    break_even_in_time: Mapping[str, int]
    scheme: str
    latent_size: int | None
    macs_of_plan: int
    nanoseconds_of_plan: int
    error: float | None


@dataclass(frozen=True)
class PredictedPoint:
    """What the closed form makes of one budget, before any trial.

    Attributes:
        speedup: in what the search counts.
        macs: multiply-accumulates of the network.
        speedup_in_macs: the dense network's over that.
        speedup_in_time: expected from the times of the layers.
        expected_error: share of a layer's output variance, the mean over the layers of the space.
        agreement: share of unseen training images that the network, not fine-tuned, gives the dense one's class.
    """

    speedup: float
    macs: int
    speedup_in_macs: float
    speedup_in_time: float
    expected_error: float
    agreement: float


@dataclass(frozen=True)
class Profile:
    """A network's layers, in the order of their first calls, then the whole; and its predicted front."""

    rows: Sequence[ProfileRow]
    front: Sequence[PredictedPoint]


def profile_problem(problem: Problem, latency: MeasuredLatency) -> Profile:
    """Time every layer and predict the front; nothing is trained.

    Args:
        problem: that could be searched.
        latency: how to time layers, where the search itself does not count time.
    """
    times, macs = _in_time(problem, latency), problem.macs
    budgets = closed_form_budgets(problem.space, problem.budget, FRONT_POINTS)
    # A search compares a few networks for each budget; this shows what the errors alone say.
    plans = list(dict.fromkeys(problem.space.allocate(problem.harms, budget) for budget in budgets))
    rows = [_row(name, problem, times, plans[0]) for name in macs.layers]
    total = (macs.of(plans[0]), times.of(plans[0]))
    rows.append(ProfileRow(NETWORK, macs.dense, 1.0, times.dense, {}, {}, "", None, *total, None))
    dense = problem.reference.predictions.argmax(1)
    front = []
    for plan in plans:
        same = predict(problem.build(plan, COMPARED_ON), problem.comparison).argmax(1) == dense
        front.append(
            PredictedPoint(
                speedup=problem.speedup(problem.space.cost.of(plan)),
                macs=macs.of(plan),
                speedup_in_macs=macs.dense / macs.of(plan),
                speedup_in_time=times.dense / times.of(plan),
                expected_error=total_error(plan, problem.errors) / len(problem.space.layers),
                agreement=mean(same.double().tolist()),
            )
        )
    return Profile(rows, front)


def _in_time(problem: Problem, latency: MeasuredLatency) -> NetworkCost:
    if isinstance(problem.space.cost.model, LatencyCost):
        return problem.space.cost
    shape, layers = problem.splits.input_shape, problem.macs.layers
    table = latency.measure(problem.model, list(layers.values()), shape, problem.device)
    return NetworkCost(table, table.network(problem.model, shape), layers)


def _row(name: str, problem: Problem, times: NetworkCost, plan: RankPlan) -> ProfileRow:
    macs, spec, choice = problem.macs, problem.macs.layers[name], plan.layers.get(name)
    said: tuple[str, int | None, int, int, float] = (DENSE, None, spec.dense_macs, times.model.dense(spec), 0.0)
    if choice is not None:
        size, scheme = choice.latent_size, choice.scheme
        kept = (spec.macs_at(size, scheme), times.model.at_rank(spec, size, scheme))
        said = (scheme, size, *kept, problem.errors[name][scheme][size])
    return ProfileRow(
        name,
        spec.dense_macs,
        spec.dense_macs / macs.dense,
        times.model.dense(spec),
        {scheme: spec.break_even_rank(scheme) for scheme in spec.schemes},
        {scheme: times.break_even_rank(spec, scheme) for scheme in spec.schemes},
        *said,
    )


def display_layers(profile: Profile) -> list[tuple[str, ...]]:
    """A header and a row per layer as cells for a terminal; see `READING`."""
    header = ("layer", "MACs", "share", "time", *SCHEMES, "closed form", "MACs kept", "time kept", "error")
    cells = []
    for row in profile.rows:
        choice = row.scheme if row.latent_size is None else f"{row.scheme} {row.latent_size}"
        blank = "" if row.layer == NETWORK else "-"
        limits = [
            f"{row.break_even[scheme]}, {row.break_even_in_time[scheme]}" if scheme in row.break_even else blank
            for scheme in SCHEMES
        ]
        error = "" if row.error is None else f"{row.error:.2%}"
        kept = (f"{row.macs_of_plan / row.macs:.0%}", f"{row.nanoseconds_of_plan / row.nanoseconds:.0%}")
        dense = (f"{row.macs / 1e6:.2f} M", f"{row.share:.1%}", f"{row.nanoseconds / 1e6:.3f} ms")
        cells.append((row.layer, *dense, *limits, choice, *kept, error))
    return [header, *cells]


def display_front(profile: Profile) -> list[tuple[str, ...]]:
    """A header and a row per plan as cells for a terminal."""
    header = ("speedup", "MACs", "in MACs", "in time", "mean error", "same class as dense")
    return [
        header,
        *(
            (
                f"{point.speedup:.2f}x",
                f"{point.macs / 1e6:.2f} M",
                f"{point.speedup_in_macs:.2f}x",
                f"{point.speedup_in_time:.2f}x",
                f"{point.expected_error:.2%}",
                f"{point.agreement:.1%}",
            )
            for point in profile.front
        ),
    ]


def describe_choices(space: SearchSpace) -> list[str]:
    """What a trial may choose for each layer, and why other layers stay dense, a line each."""
    searched = []
    for layer in space.layers:
        highs = ", ".join(f"{scheme} up to {high}" for scheme, high in layer.highs.items())
        dense = ", or dense" if layer.dense else ""
        searched.append(f"{layer.spec.name}: {highs}; from {layer.low} in steps of {layer.step}{dense}")
    return searched + [f"{name}: dense ({reason})" for name, reason in space.left.items()]


def write_profile(folder: Path, profile: Profile) -> None:
    """Write `profile.csv` and `predicted_front.csv`, empty where there is nothing to say."""
    limits = {scheme: f"break_even_{scheme}" for scheme in SCHEMES}
    in_time = {scheme: f"break_even_in_time_{scheme}" for scheme in SCHEMES}
    rows = []
    for row in profile.rows:
        cells: dict[str, Any] = {
            "layer": row.layer,
            "macs": row.macs,
            "share": row.share,
            "nanoseconds": row.nanoseconds,
            **{column: row.break_even.get(scheme) for scheme, column in limits.items()},
            **{column: row.break_even_in_time.get(scheme) for scheme, column in in_time.items()},
            "scheme": row.scheme,
            "latent_size": row.latent_size,
            "macs_of_plan": row.macs_of_plan,
            "nanoseconds_of_plan": row.nanoseconds_of_plan,
            "expected_error": row.error,
        }
        rows.append(cells)
    write_csv(folder / "profile.csv", list(rows[0]), rows)
    front = [vars(point) for point in profile.front]
    write_csv(folder / "predicted_front.csv", list(front[0]), front)

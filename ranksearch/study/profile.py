"""Profile of a network: costs of its layers, break-even ranks of the schemes, and the closed form's predicted front."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ranksearch.allocation.closed_form import closed_form_budgets, total_error
from ranksearch.allocation.decomposed_model import COMPARED_ON
from ranksearch.allocation.lagrangian import allocate
from ranksearch.batches import predict
from ranksearch.cost.base import NetworkCost
from ranksearch.cost.latency import Latency, LatencyTable
from ranksearch.files import write_csv
from ranksearch.plan import DENSE, SCHEMES, RankPlan
from ranksearch.search_space.space import SearchSpace
from ranksearch.study.context import SearchContext

NETWORK = "whole network"
READING = "columns named after schemes: the break-even rank in MACs, and in time"
# Budgets of the predicted front, from the constraint's downwards.
FRONT_POINTS = 6


@dataclass(frozen=True)
class ProfileRow:
    """Profile of one layer, or of the whole network.

    Attributes:
        layer: dotted name.
        macs: multiply-accumulates of the dense layer.
        share: share of the dense network's multiply-accumulates.
        nanoseconds: latency of the dense layer, for one batch on this device.
        break_even: scheme -> the largest rank that saves MACs, for the layer's possible schemes.
        break_even_in_time: scheme -> the largest rank that saves measured time.
        scheme: scheme that the closed form chooses at the constraint's budget, or ``"dense"``.
        latent_size: latent size that the closed form chooses; None if the layer stays dense.
        macs_of_plan: multiply-accumulates of the layer as chosen.
        nanoseconds_of_plan: latency of the layer as chosen.
        error: expected truncation error of the choice, as a share of the output's variance.
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
    """Prediction of the closed form for one budget, before any trial.

    Attributes:
        speedup: speedup in the cost that the search counts.
        macs: multiply-accumulates of the network.
        speedup_in_macs: speedup in multiply-accumulates.
        speedup_in_time: speedup expected from the latencies of the layers.
        expected_error: expected share of a layer's output variance that is lost, mean over the layers of the space.
        agreement: share of held-out training images that get the dense network's class, without fine-tuning.
    """

    speedup: float
    macs: int
    speedup_in_macs: float
    speedup_in_time: float
    expected_error: float
    agreement: float


@dataclass(frozen=True)
class Profile:
    """A network's layers, in the order of their first calls, then the whole network; and its predicted front."""

    rows: Sequence[ProfileRow]
    front: Sequence[PredictedPoint]


def profile_network(context: SearchContext, latency: Latency) -> Profile:
    """Time every layer, unless the search counts time itself, and predict the front, without any training."""
    times, macs = _in_time(context, latency), context.macs
    budgets = closed_form_budgets(context.space, context.budget, FRONT_POINTS)
    # A search compares a few networks for each budget; the profile relies on the errors alone.
    plans = list(dict.fromkeys(allocate(context.space, context.weighted_errors, budget) for budget in budgets))
    rows = [_row(name, context, times, plans[0]) for name in macs.layers]
    total = (macs.total(plans[0]), times.total(plans[0]))
    rows.append(ProfileRow(NETWORK, macs.dense, 1.0, times.dense, {}, {}, "", None, *total, None))
    dense = context.reference.predictions.argmax(1)
    front = []
    for plan in plans:
        same = predict(context.build(plan, COMPARED_ON), context.comparison).argmax(1) == dense
        speedup, kept = context.speedup(context.space.cost.total(plan)), macs.total(plan)
        speedups = (macs.dense / kept, times.dense / times.total(plan))
        error = total_error(plan, context.errors) / len(context.space.layers)
        front.append(PredictedPoint(speedup, kept, *speedups, error, mean(same.double().tolist())))
    return Profile(rows, front)


def _in_time(context: SearchContext, latency: Latency) -> NetworkCost:
    if isinstance(context.space.cost.model, LatencyTable):
        return context.space.cost
    shape, layers = context.splits.input_shape, context.macs.layers
    table = latency.measure(context.model, list(layers.values()), shape, context.device)
    return NetworkCost(table, table.network(context.model, shape), layers)


def _row(name: str, context: SearchContext, times: NetworkCost, plan: RankPlan) -> ProfileRow:
    macs, spec, choice = context.macs, context.macs.layers[name], plan.layers.get(name)
    values: tuple[str, int | None, int, int, float] = (DENSE, None, spec.dense_macs, times.model.dense(spec), 0.0)
    if choice is not None:
        size, scheme = choice.latent_size, choice.scheme
        kept = (spec.macs_at(size, scheme), times.model.at_rank(spec, size, scheme))
        values = (scheme, size, *kept, context.errors[name][scheme][size])
    share, nanoseconds = spec.dense_macs / macs.dense, times.model.dense(spec)
    limits = {scheme: spec.break_even_rank(scheme) for scheme in spec.schemes}
    in_time = {scheme: times.break_even_rank(spec, scheme) for scheme in spec.schemes}
    return ProfileRow(name, spec.dense_macs, share, nanoseconds, limits, in_time, *values)


def display_layers(profile: Profile) -> list[tuple[str, ...]]:
    """Return a header and a row per layer as cells for a terminal; see `READING`."""
    header = ("layer", "MACs", "share", "time", *SCHEMES, "closed form", "MACs kept", "time kept", "error")
    cells = [header]
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
    return cells


def display_front(profile: Profile) -> list[tuple[str, ...]]:
    """Return a header and a row per plan as cells for a terminal."""
    cells: list[tuple[str, ...]] = [("speedup", "MACs", "in MACs", "in time", "mean error", "same class as dense")]
    for point in profile.front:
        speedups = (f"{point.speedup_in_macs:.2f}x", f"{point.speedup_in_time:.2f}x")
        shares = (f"{point.expected_error:.2%}", f"{point.agreement:.1%}")
        cells.append((f"{point.speedup:.2f}x", f"{point.macs / 1e6:.2f} M", *speedups, *shares))
    return cells


def describe_choices(space: SearchSpace) -> list[str]:
    """Return a line per layer: its choices in a trial, or the reason why it stays dense."""
    searched = []
    for layer in space.layers:
        highs = ", ".join(f"{scheme} up to {high}" for scheme, high in layer.highs.items())
        dense = ", or dense" if layer.dense else ""
        searched.append(f"{layer.spec.name}: {highs}; from {layer.low} in steps of {layer.step}{dense}")
    return searched + [f"{name}: dense ({reason})" for name, reason in space.left.items()]


def write_profile(folder: Path, profile: Profile) -> None:
    """Write `profile.csv` and `predicted_front.csv`; cells without a value stay empty."""
    rows = []
    for row in profile.rows:
        cells: dict[str, Any] = {}
        for name, value in vars(row).items():
            if isinstance(value, Mapping):
                cells |= {f"{name}_{scheme}": value.get(scheme) for scheme in SCHEMES}
            else:
                cells["expected_error" if name == "error" else name] = value
        rows.append(cells)
    write_csv(folder / "profile.csv", list(rows[0]), rows)
    front = [vars(point) for point in profile.front]
    write_csv(folder / "predicted_front.csv", list(front[0]), front)

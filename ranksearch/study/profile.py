"""Profile of a network: costs of its layers, break-even ranks of the schemes, and the closed form's predicted front."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from ranksearch.allocation.closed_form import closed_form_budgets, total_error
from ranksearch.allocation.lagrangian import allocate
from ranksearch.cost.base import NetworkCost
from ranksearch.cost.latency import Latency, LatencyTable
from ranksearch.files import write_csv
from ranksearch.plan import DENSE, SCHEMES, LayerSpec, RankPlan
from ranksearch.predictions import predict
from ranksearch.search_space.space import Errors, SearchSpace
from ranksearch.study.context import SearchContext, SearchInputs

NETWORK = "whole network"
READING = "columns named after schemes: the break-even rank in MACs, and in time"
# Budgets of the predicted front, from the constraint's downwards.
FRONT_POINTS = 6
# Images that its networks are solved on.
BUILT_ON = 64


@dataclass(frozen=True)
class ProfileRow:
    """Profile of one layer, or of the whole network.

    Attributes:
        layer: dotted name.
        macs: multiply-accumulates of the dense layer.
        share: share of the dense network's multiply-accumulates.
        nanoseconds: latency of the dense layer, for one batch on this device; None if it was not measured.
        break_even: scheme -> the largest rank that saves MACs, for the layer's possible schemes.
        break_even_in_time: scheme -> the largest rank that saves measured time.
        scheme: scheme that the closed form chooses at the constraint's budget, or ``"dense"``; empty without a plan.
        latent_size: latent size that the closed form chooses; None if the layer stays dense.
        macs_of_plan: multiply-accumulates of the layer as chosen; None without a plan.
        nanoseconds_of_plan: latency of the layer as chosen; None without a plan.
        error: expected truncation error of the choice, as a share of the output's variance.
    """

    layer: str
    macs: int
    share: float
    nanoseconds: int | None = None
    break_even: Mapping[str, int] = field(default_factory=dict)
    break_even_in_time: Mapping[str, int] = field(default_factory=dict)
    scheme: str = ""
    latent_size: int | None = None
    macs_of_plan: int | None = None
    nanoseconds_of_plan: int | None = None
    error: float | None = None


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
    """A network's layers, in the order of their first calls, then the whole network; and its predicted front.

    Attributes:
        rows: the layers, and the whole network.
        front: the predicted front; empty where nothing is known of errors.
    """

    rows: Sequence[ProfileRow]
    front: Sequence[PredictedPoint] = ()


def profile_shapes(inputs: SearchInputs) -> Profile:
    """Count the MACs of every layer and its break-even ranks, which takes neither time nor weights."""
    macs = inputs.macs
    rows = [
        ProfileRow(name, spec.dense_macs, spec.dense_macs / macs.dense, break_even=_limits(spec))
        for name, spec in macs.layers.items()
    ]
    return Profile([*rows, ProfileRow(NETWORK, macs.dense, 1.0)])


def profile_network(inputs: SearchInputs, latency: Latency, context: SearchContext | None) -> Profile:
    """Time every layer, unless the search counts time itself, and predict the front, without any training.

    Args:
        inputs: what a search starts from.
        latency: times layers.
        context: of the trained network; None leaves plan, errors and front out.
    """
    times, macs = _in_time(inputs, latency), inputs.macs
    if context is None:
        rows = [_row(name, macs, times, None) for name in macs.layers]
        return Profile([*rows, ProfileRow(NETWORK, macs.dense, 1.0, times.dense)])
    budgets = closed_form_budgets(context.space, context.budget, FRONT_POINTS)
    # A search compares a few networks for each budget; the profile relies on the errors alone.
    plans = list(dict.fromkeys(allocate(context.space, context.weighted_errors, budget) for budget in budgets))
    rows = [_row(name, macs, times, plans[0], context.errors) for name in macs.layers]
    total = (macs.total(plans[0]), times.total(plans[0]))
    rows.append(ProfileRow(NETWORK, macs.dense, 1.0, times.dense, {}, {}, "", None, *total, None))
    dense = context.reference.predictions.argmax(1)
    front = []
    for plan in plans:
        same = predict(context.build(plan, BUILT_ON), context.comparison).argmax(1) == dense
        speedup, kept = context.speedup(context.space.cost.total(plan)), macs.total(plan)
        speedups = (macs.dense / kept, times.dense / times.total(plan))
        error = total_error(plan, context.errors) / len(context.space.layers)
        front.append(PredictedPoint(speedup, kept, *speedups, error, mean(same.double().tolist())))
    return Profile(rows, front)


def _in_time(inputs: SearchInputs, latency: Latency) -> NetworkCost:
    if isinstance(inputs.space.cost.model, LatencyTable):
        return inputs.space.cost
    shape, layers = inputs.splits.input_shape, inputs.macs.layers
    table = latency.measure(inputs.model, list(layers.values()), shape, inputs.device)
    return NetworkCost(table, table.network(inputs.model, shape), layers)


def _limits(spec: LayerSpec) -> dict[str, int]:
    return {scheme: spec.break_even_rank(scheme) for scheme in spec.schemes}


def _row(
    name: str, macs: NetworkCost, times: NetworkCost, plan: RankPlan | None, errors: Errors | None = None
) -> ProfileRow:
    spec, nanoseconds = macs.layers[name], times.model.dense(macs.layers[name])
    in_time = {scheme: times.break_even_rank(spec, scheme) for scheme in spec.schemes}
    row = ProfileRow(name, spec.dense_macs, spec.dense_macs / macs.dense, nanoseconds, _limits(spec), in_time)
    if plan is None or errors is None:
        return row
    if name not in plan.layers:
        return replace(row, scheme=DENSE, macs_of_plan=row.macs, nanoseconds_of_plan=nanoseconds, error=0.0)
    choice = plan.layers[name]
    size, scheme = choice.latent_size, choice.scheme
    return replace(
        row,
        scheme=scheme,
        latent_size=size,
        macs_of_plan=spec.macs_at(size, scheme),
        nanoseconds_of_plan=times.model.at_rank(spec, size, scheme),
        error=errors[name][scheme][size],
    )


def display_layers(profile: Profile) -> list[tuple[str, ...]]:
    """Return a header and a row per layer as cells for a terminal, without columns that are empty; see `READING`."""
    header = ("layer", "MACs", "share", "time", *SCHEMES, "closed form", "MACs kept", "time kept", "error")
    cells = [header]
    for row in profile.rows:
        choice = row.scheme if row.latent_size is None else f"{row.scheme} {row.latent_size}"
        blank = "" if row.layer == NETWORK else "-"
        limits = [
            ", ".join(str(ranks[scheme]) for ranks in (row.break_even, row.break_even_in_time) if scheme in ranks)
            or blank
            for scheme in SCHEMES
        ]
        error = "" if row.error is None else f"{row.error:.2%}"
        time = "" if row.nanoseconds is None else f"{row.nanoseconds / 1e6:.3f} ms"
        kept = (_kept(row.macs_of_plan, row.macs), _kept(row.nanoseconds_of_plan, row.nanoseconds))
        cells.append((row.layer, f"{row.macs / 1e6:.2f} M", f"{row.share:.1%}", time, *limits, choice, *kept, error))
    used = [index for index in range(len(header)) if any(row[index] for row in cells[1:])]
    return [tuple(row[index] for index in used) for row in cells]


def _kept(part: int | None, whole: int | None) -> str:
    return "" if part is None or whole is None else f"{part / whole:.0%}"


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
    return searched + [f"{name}: dense, {layer}" for name, layer in space.left.items()]


def write_profile(folder: Path, profile: Profile) -> None:
    """Write `profile.csv`, and `predicted_front.csv` if there is a front; cells without a value stay empty."""
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
    if front := [vars(point) for point in profile.front]:
        write_csv(folder / "predicted_front.csv", list(front[0]), front)

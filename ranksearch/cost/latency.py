"""Latency cost: every layer timed on the target device, dense and at several latent sizes.

Multiply-accumulates do not predict the speedup of a factorized layer: two small kernels may run slower than the one
that they replace. Layers of each distinct shape are therefore timed in isolation, on inputs of the shapes that occur in
the network, interleaved with the network itself to cancel drift of the machine's speed. The latency of a plan is the
dense network's minus the savings of its layers, corrected by the gains that are measured on a few whole plans.
"""

import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import lcm
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.errors import DamagedError, SettingError
from ranksearch.factorize.exposure import exposed
from ranksearch.factorize.surgery import factorized_like
from ranksearch.factorize.trace import layer_inputs
from ranksearch.locks import exclusive
from ranksearch.plan import LayerChoice, LayerSpec, RankPlan
from ranksearch.results.final import WallClock
from ranksearch.runtimes.base import Runtime
from ranksearch.runtimes.benchmark import Timing, time_calls
from ranksearch.runtimes.eager import Eager
from ranksearch.tensor_files import read_state, write_state
from ranksearch.validation import from_record

log = logging.getLogger(__name__)
Call = Callable[[], None]
FORMAT = "ranksearch.latency/1"
# Ranks that a layer is timed at, as shares of the break-even rank.
SHARES = (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)
# Ranks from twice this on are timed at multiples of it, like the searched ones: hardware is slower in between.
BLOCK = 8
# Spread of the timings above which a warning is logged.
NOISY = 0.1
# Bounds of the gained share; values beyond them are measurement artifacts.
LEAST_GAINED, MOST_GAINED = 0.5, 1.5
# Probability that a layer is factorized in the plans that the gained share is estimated from.
FACTORIZED = 0.6


@dataclass(frozen=True)
class LatencyTable:
    """The latencies of one batch on one device, in nanoseconds; see `Latency`.

    Attributes:
        dense_network: latency of the dense network.
        layers: layer name -> latency of the dense layer.
        factorized: layer name -> scheme -> ranks, rising, and the latencies at these ranks.
        spread: median relative spread of the timings.
        gained: share of the layers' isolated savings that whole networks gain.
        overhead: additional latency of every factorized layer in a network.
        unit: unit of the costs.
    """

    dense_network: float
    layers: Mapping[str, float]
    factorized: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]]
    spread: float
    gained: float = 1.0
    overhead: float = 0.0
    unit: str = "ns"

    def network(self, model: nn.Module, input_shape: Sequence[int]) -> int:
        """Return the latency of the dense network that the table was measured on; the arguments are ignored."""
        return round(self.dense_network)

    def dense(self, spec: LayerSpec) -> int:
        """Return the latency of the dense layer."""
        return round(self.layers[spec.name])

    def at_rank(self, spec: LayerSpec, rank: int, scheme: str) -> int:
        """Return the latency of the factorized layer within a network, interpolated between measured ranks."""
        ranks, times = self.factorized[spec.name][scheme]
        dense = self.layers[spec.name]
        return round(dense - self.gained * (dense - float(np.interp(rank, ranks, times))) + self.overhead)


@dataclass(frozen=True)
class Latency:
    """Measurement of a network's latencies, with a cache of the tables.

    Attributes:
        runtime: runtime that executes the network.
        batch_size: number of examples in the timed batch.
        repeats: number of timings of each layer at each latent size; the median is used.
        cache: folder of cached tables; None disables the cache.
    """

    runtime: Runtime = field(default_factory=Eager)
    batch_size: int = 1
    repeats: int = 9
    cache: str | None = None

    def __post_init__(self) -> None:
        for name, lowest in (("batch_size", 1), ("repeats", 2)):
            if getattr(self, name) < lowest:
                raise SettingError(name, getattr(self, name), f"is out of range: use {lowest} or more")

    def measure(
        self, model: nn.Module, layers: Sequence[LayerSpec], input_shape: Sequence[int], device: torch.device
    ) -> LatencyTable:
        """Time the network and its layers, dense and at several ranks, or read a cached table; see `MeasuredCost`."""
        if self.cache is None:
            return self._measure(model, layers, input_shape, device)
        # Latencies depend on shapes, not on weights, and the model's repr contains the shapes of its layers.
        keys = {"batch_size": self.batch_size, "repeats": self.repeats, **self.runtime.describe(device)}
        keys |= {"torch": torch.__version__, "model": repr(model), "input": list(input_shape), "format": FORMAT}
        key = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:16]
        path = Path(self.cache) / f"latency-{key}.table"
        with exclusive(path.with_suffix(".lock"), "times the layers"):
            if path.exists():
                try:
                    cached = _table(read_state(path), layers)
                except DamagedError as error:
                    log.warning("latency: %s; measuring again", error)
                else:
                    log.info("latency: read from %s", path)
                    return cached
            table = self._measure(model, layers, input_shape, device)
            write_state(path, vars(table))
            return table

    def _measure(
        self, model: nn.Module, layers: Sequence[LayerSpec], input_shape: Sequence[int], device: torch.device
    ) -> LatencyTable:
        start, spreads = time.perf_counter(), []
        opened = exposed(model, [spec.name for spec in layers])
        shapes = layer_inputs(opened, [spec.name for spec in layers], self.batch_size, input_shape)
        network = self.runtime.prepare(model, device)
        images = self.runtime.example((self.batch_size, *input_shape), device)
        reference = _caller(network, [images])
        whole = Timing.from_samples(time_calls([reference], device, self.repeats)[0]).median * 1e9
        alike: dict[str, dict[tuple[str, int], float]] = {}
        dense, factorized = {}, {}
        for spec in layers:
            layer = opened.get_submodule(spec.name)
            key = f"{layer!r} {shapes[spec.name]}"
            if key not in alike:
                timed = self._time_layer(layer, spec, shapes[spec.name], device, reference)
                alike[key] = {option: share.median * whole for option, share in timed.items()}
                spreads += [timing.spread for timing in timed.values()]
            times = alike[key]
            dense[spec.name] = times["dense", 0]
            factorized[spec.name] = {
                scheme: (ranks, [times[scheme, rank] for rank in ranks])
                for scheme in spec.schemes
                if (ranks := ranks_to_time(spec, scheme))
            }
        table = LatencyTable(whole, dense, factorized, spread=median(spreads or [0.0]))
        if layers:
            gained, overhead = self._in_the_network(model, layers, table, images, reference)
            table = replace(table, gained=gained, overhead=overhead)
        log.info(
            "latency: %d layers of %d shapes at %d latent sizes in %.1f s, spread %.1f %%; dense network %.2f ms",
            *(len(dense), len(alike), sum(map(len, alike.values())), time.perf_counter() - start, 100 * table.spread),
            whole / 1e6,
        )
        log.info(
            "latency: networks gain %.0f %% of the savings of their layers, less %.3f ms per layer",
            *(100 * table.gained, table.overhead / 1e6),
        )
        if table.spread > NOISY:
            log.warning("latency: times vary by %.0f %%: measure again while the machine is idle", 100 * table.spread)
        return table

    def _in_the_network(
        self, model: nn.Module, layers: Sequence[LayerSpec], table: LatencyTable, images: Tensor, reference: Call
    ) -> tuple[float, float]:
        """Estimate `LatencyTable.gained` and `LatencyTable.overhead` from the latencies of a few random plans."""
        draw, savings, gains = random.Random(0), [], []
        for place in (*range(len(SHARES)), *range(len(SHARES))):
            plan, saved = {}, 0.0
            for spec in layers:
                scheme = draw.choice(spec.schemes)
                ranks, times = table.factorized[spec.name][scheme]
                if draw.random() < FACTORIZED:
                    at = min(place, len(ranks) - 1)
                    plan[spec.name] = LayerChoice(ranks[at], scheme)
                    saved += table.layers[spec.name] - times[at]
            network = self.runtime.prepare(with_any_weights(factorized_like(model, RankPlan(plan))), images.device)
            before, after = time_calls([reference, _caller(network, [images])], images.device, self.repeats)
            savings.append((saved / table.dense_network, len(plan) / len(layers)))
            gains.append(1 - Timing.ratio(after, before).median)
        gained, overhead = fit_gains(savings, gains)
        return gained, overhead * table.dense_network / len(layers)

    def _time_layer(
        self, layer: nn.Module, spec: LayerSpec, shapes: Sequence[torch.Size], device: torch.device, reference: Call
    ) -> dict[tuple[str, int], Timing]:
        """Time a layer, dense and at every rank to time, relative to the network's interleaved timing."""
        inputs = [self.runtime.example(shape, device) for shape in shapes]
        single = nn.Sequential(layer)
        modules = {("dense", 0): self.runtime.prepare(single, device)}
        for scheme in spec.schemes:
            for rank in ranks_to_time(spec, scheme):
                twin = factorized_like(single, RankPlan({"0": LayerChoice(rank, scheme)}))
                modules[scheme, rank] = self.runtime.prepare(with_any_weights(twin), device)
        calls = [_caller(module, inputs) for module in modules.values()]
        whole, *timed = time_calls([reference, *calls], device, self.repeats)
        return {option: Timing.ratio(samples, whole) for option, samples in zip(modules, timed, strict=True)}


def _table(state: Mapping[str, Any], layers: Sequence[LayerSpec]) -> LatencyTable:
    """Return the cached table, or raise `DamagedError` if it lacks times of a layer or scheme."""
    table = from_record(LatencyTable, state)
    for spec in layers:
        times = table.factorized.get(spec.name)
        if not isinstance(table.layers.get(spec.name), int | float) or not isinstance(times, Mapping):
            raise DamagedError(f"the latency table lacks '{spec.name}'")
        for scheme in spec.schemes:
            ranks, measured = times.get(scheme, ((), ()))
            if not ranks or len(ranks) != len(measured) or not all(isinstance(x, int | float) for x in measured):
                raise DamagedError(f"the latency table lacks the times of scheme {scheme} for '{spec.name}'")
    return table


def fit_gains(savings: Sequence[tuple[float, float]], gains: Sequence[float]) -> tuple[float, float]:
    """Fit gains of whole networks by least squares, as a share of isolated savings minus a non-negative overhead.

    Args:
        savings: per plan, the summed isolated savings over the dense latency, and the share of factorized layers.
        gains: per plan, the measured gain of the network relative to the dense latency.

    Returns:
        The gained share, clipped to `LEAST_GAINED` and `MOST_GAINED`, and the overhead if all layers are factorized.
    """
    columns, target = np.array(savings) * [1.0, -1.0], np.array(gains)
    gained, overhead = np.linalg.lstsq(columns, target, rcond=None)[0].tolist()
    if overhead < 0:
        [gained], overhead = np.linalg.lstsq(columns[:, :1], target, rcond=None)[0].tolist(), 0.0
    return min(max(gained, LEAST_GAINED), MOST_GAINED), overhead


def with_any_weights(model: nn.Module) -> nn.Module:
    """Set all parameters to a constant in place and return the model: uninitialized values may compute slowly."""
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    return model


def _caller(module: Callable[..., object], inputs: Sequence[Tensor]) -> Call:
    def call() -> None:
        for tensor in inputs:
            module(tensor)

    return call


def ranks_to_time(spec: LayerSpec, scheme: str) -> list[int]:
    """Return the ranks to time, rising; latencies are interpolated between them."""
    limit, block = spec.break_even_rank(scheme), lcm(BLOCK, spec.groups)
    ranks = {spec.whole_groups(max(1, round(share * limit))) for share in SHARES}
    return sorted({rank // block * block if rank >= 2 * block else rank for rank in ranks})


def time_side_by_side(
    dense: nn.Module, factorized: nn.Module, input_shape: Sequence[int], device: torch.device, latency: Latency
) -> WallClock:
    """Time two networks alternately, in one run.

    Args:
        dense: left unchanged.
        factorized: left unchanged.
        input_shape: shape of one example, `[C, H, W]`.
        device: to run on.
        latency: runtime, batch size and repeats.
    """
    images = latency.runtime.example((latency.batch_size, *input_shape), device)
    networks = [latency.runtime.prepare(model, device) for model in (dense, factorized)]
    samples = time_calls([lambda: networks[0](images), lambda: networks[1](images)], device, latency.repeats)
    first, second = (Timing.from_samples(times) for times in samples)
    speedup = Timing.ratio(*samples)
    return WallClock(latency.batch_size, first.median, second.median, speedup.median, speedup.spread)

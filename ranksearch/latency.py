"""What a network costs in time: every layer measured on this very device, dense and at some latent sizes.

Multiply-accumulates do not tell what a factorized layer gains in time: two small kernels may run slower than the one
that they replace. So layers of each shape are timed by themselves, with the inputs that they have in the network, by
turns with the network itself, for machines have slow and fast minutes. A plan's time is the dense network's, less what
its layers save; how much of that a network really gains is seen on a few plans.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.device import describe_device
from ranksearch.errors import DamagedError, SettingError
from ranksearch.factorize import factorized_like
from ranksearch.factorize.dry_run import layer_inputs
from ranksearch.files import read_state, write_state
from ranksearch.locks import alone
from ranksearch.plan import LayerChoice, LayerSpec, RankPlan
from ranksearch.timing import Timing, time_calls
from ranksearch.values import from_record

log = logging.getLogger(__name__)
FORMAT = "ranksearch.latency/1"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Shares of the break-even rank that a layer is timed at.
SHARES = (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)
# Ranks above this are timed at whole blocks, as they are searched: hardware is slower in between.
BLOCK = 8
# Spread of the timings beyond which the log warns.
NOISY = 0.1
# What lies beyond these says more of the machine than of the network.
LEAST_GAINED, MOST_GAINED = 0.5, 1.5
# Share of the layers that are factorized in the plans that show it.
FACTORIZED = 0.6


@dataclass(frozen=True)
class LatencyCost:
    """Nanoseconds of one batch on one device, from a table; see `MeasuredLatency`.

    Attributes:
        dense_network: of the dense network.
        layers: layer name -> of the dense layer.
        factorized: layer name -> scheme -> ranks and the times at them, both rising with the rank's place.
        spread: of the timings, relative; the median over all.
        gained: share of what layers save by themselves that whole networks were seen to gain.
        overhead: nanoseconds that every factorized layer was seen to cost besides.
        unit: what the numbers count.
    """

    dense_network: float
    layers: Mapping[str, float]
    factorized: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]]
    spread: float
    gained: float = 1.0
    overhead: float = 0.0
    unit: str = "ns"

    def network(self, model: nn.Module, input_shape: Sequence[int]) -> int:
        """The dense network's time; of the model that the table was made for."""
        return round(self.dense_network)

    def dense(self, spec: LayerSpec) -> int:
        """The dense layer's time."""
        return round(self.layers[spec.name])

    def at_rank(self, spec: LayerSpec, rank: int, scheme: str) -> int:
        """The factorized layer's time within a network, interpolated between the ranks that were measured."""
        ranks, times = self.factorized[spec.name][scheme]
        dense = self.layers[spec.name]
        return round(dense - self.gained * (dense - float(np.interp(rank, ranks, times))) + self.overhead)


@dataclass(frozen=True)
class MeasuredLatency:
    """Measures the table of a network, or reads it where this device has made it before.

    Attributes:
        batch_size: examples of the batch that is timed.
        dtype: of weights and inputs: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        channels_last: the memory format of both.
        repeats: timings of each layer at each latent size, of which the median counts.
        cache: folder of tables; None keeps none.
    """

    batch_size: int = 1
    dtype: str = "float32"
    channels_last: bool = True
    repeats: int = 9
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise SettingError("dtype", self.dtype, f"is unknown: use {', '.join(DTYPES)}")
        for what, least in (("batch_size", 1), ("repeats", 2)):
            if getattr(self, what) < least:
                raise SettingError(what, getattr(self, what), f"is out of range: use {least} or more")

    def measure(
        self, model: nn.Module, layers: Sequence[LayerSpec], input_shape: Sequence[int], device: torch.device
    ) -> LatencyCost:
        """Time the dense network, and each of the layers dense and by every scheme at some ranks.

        Args:
            model: in eval mode; is not touched.
            layers: those that can be factorized.
            input_shape: of one example, `[C, H, W]`.
            device: to measure on.
        """
        key = hashlib.sha256(self._made_from(model, input_shape, device).encode()).hexdigest()[:16]
        if self.cache is None:
            return self._measure(model, layers, input_shape, device)
        path = Path(self.cache) / f"latency-{key}.table"
        with alone(path.with_suffix(".lock"), "times the layers"):
            if path.exists():
                try:
                    known = _table(read_state(path), layers)
                except DamagedError as error:
                    log.warning("latency: %s; it is measured anew", error)
                else:
                    log.info("latency: read from %s", path)
                    return known
            table = self._measure(model, layers, input_shape, device)
            write_state(path, vars(table))
            return table

    def _made_from(self, model: nn.Module, input_shape: Sequence[int], device: torch.device) -> str:
        settings = {name: value for name, value in vars(self).items() if name != "cache"}
        # Times depend on shapes alone, which a model's text tells of all its layers.
        described = {"device": describe_device(device), "torch": torch.__version__, "model": repr(model)}
        return json.dumps({**settings, **described, "input": list(input_shape), "format": FORMAT}, sort_keys=True)

    def _measure(
        self, model: nn.Module, layers: Sequence[LayerSpec], input_shape: Sequence[int], device: torch.device
    ) -> LatencyCost:
        start, spreads = time.perf_counter(), []
        shapes = layer_inputs(model, [spec.name for spec in layers], self.batch_size, input_shape)
        network = self.prepared(model, device)
        images = self.example((self.batch_size, *input_shape), device)

        def reference() -> None:
            network(images)

        whole = Timing.of(time_calls([reference], device, self.repeats)[0]).median * 1e9
        alike: dict[str, dict[tuple[str, int], float]] = {}
        dense, factorized = {}, {}
        for spec in layers:
            layer = model.get_submodule(spec.name)
            key = f"{layer!r} {shapes[spec.name]}"
            if key not in alike:
                timed = self._time_layer(layer, spec, shapes[spec.name], device, reference)
                alike[key] = {option: share.median * whole for option, share in timed.items()}
                spreads += [timing.spread for timing in timed.values()]
            found = alike[key]
            dense[spec.name] = found["dense", 0]
            factorized[spec.name] = {
                scheme: (ranks, [found[scheme, rank] for rank in ranks])
                for scheme in spec.schemes
                if (ranks := ranks_to_time(spec, scheme))
            }
        spread = median(spreads or [0.0])
        table = LatencyCost(whole, dense, factorized, spread)
        if layers:
            gained, overhead = self._in_the_network(model, layers, table, images, reference)
            table = replace(table, gained=gained, overhead=overhead)
        log.info(
            "latency: %d layers of %d shapes at %d latent sizes in %.1f s, spread %.1f %%; dense network %.2f ms",
            *(len(dense), len(alike), sum(map(len, alike.values())), time.perf_counter() - start, 100 * spread),
            whole / 1e6,
        )
        log.info(
            "latency: networks gain %.0f %% of what their layers save, less %.3f ms for each of them",
            *(100 * table.gained, table.overhead / 1e6),
        )
        if spread > NOISY:
            log.warning("latency: times vary by %.0f %%: measure again while the machine is idle", 100 * spread)
        return table

    def _in_the_network(
        self,
        model: nn.Module,
        layers: Sequence[LayerSpec],
        table: LatencyCost,
        images: Tensor,
        reference: Callable[[], None],
    ) -> tuple[float, float]:
        """What a few plans gain in the network: a share of what the table says, less so much a layer.

        Returns:
            The share, and the nanoseconds that every factorized layer costs besides.
        """
        draw, known, seen = random.Random(0), [], []
        for place in (*range(len(SHARES)), *range(len(SHARES))):
            plan, saved = {}, 0.0
            for spec in layers:
                scheme = draw.choice(spec.schemes)
                ranks, times = table.factorized[spec.name][scheme]
                if draw.random() < FACTORIZED:
                    at = min(place, len(ranks) - 1)
                    plan[spec.name] = LayerChoice(ranks[at], scheme)
                    saved += table.layers[spec.name] - times[at]
            network = self.prepared(with_any_weights(factorized_like(model, RankPlan(plan))), images.device)
            before, after = time_calls([reference, _caller(network, [images])], images.device, self.repeats)
            known.append((saved / table.dense_network, len(plan) / len(layers)))
            seen.append(1 - Timing.beside(after, before).median)
        gained, overhead = fit_gains(known, seen)
        return gained, overhead * table.dense_network / len(layers)

    def _time_layer(
        self,
        layer: nn.Module,
        spec: LayerSpec,
        shapes: Sequence[torch.Size],
        device: torch.device,
        reference: Callable[[], None],
    ) -> dict[tuple[str, int], Timing]:
        """One layer dense, and by every scheme at every rank to time, as shares of the network's time beside it."""
        inputs = [self.example(shape, device) for shape in shapes]
        single = nn.Sequential(layer)
        modules = {("dense", 0): self.prepared(single, device)}
        for scheme in spec.schemes:
            for rank in ranks_to_time(spec, scheme):
                twin = factorized_like(single, RankPlan({"0": LayerChoice(rank, scheme)}))
                modules[scheme, rank] = self.prepared(with_any_weights(twin), device)
        calls = [_caller(module, inputs) for module in modules.values()]
        whole, *timed = time_calls([reference, *calls], device, self.repeats)
        return {option: Timing.beside(samples, whole) for option, samples in zip(modules, timed, strict=True)}

    def prepared(self, model: nn.Module, device: torch.device) -> nn.Module:
        """A copy of a model as it is timed: in eval mode, on a device, in the dtype and the memory format."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return copy.deepcopy(model).eval().to(device, DTYPES[self.dtype]).to(memory_format=layout)

    def example(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """An input to time with."""
        values = torch.ones(tuple(shape), device=device, dtype=DTYPES[self.dtype])
        as_images = self.channels_last and values.ndim == 4
        return values.contiguous(memory_format=torch.channels_last) if as_images else values


def _table(state: Mapping[str, Any], layers: Sequence[LayerSpec]) -> LatencyCost:
    """A table that was kept, for some layers.

    Raises:
        DamagedError: it is of something else.
    """
    table = from_record(LatencyCost, state)
    for spec in layers:
        times = table.factorized.get(spec.name)
        if not isinstance(table.layers.get(spec.name), int | float) or not isinstance(times, Mapping):
            raise DamagedError(f"the table of times has no '{spec.name}'")
        for scheme in spec.schemes:
            ranks, measured = times.get(scheme, ((), ()))
            if not ranks or len(ranks) != len(measured) or not all(isinstance(x, int | float) for x in measured):
                raise DamagedError(f"the table of times has no {scheme} times of '{spec.name}'")
    return table


def fit_gains(known: Sequence[tuple[float, float]], seen: Sequence[float]) -> tuple[float, float]:
    """Least squares of gains seen, as a share of what layers save by themselves, less an overhead that is not negative.

    Args:
        known: what layers save together, as a share of the network's time, and the share of the layers.
        seen: what the network gains, as a share of its time.

    Returns:
        The share, within `LEAST_GAINED` and `MOST_GAINED`, and the overhead of all layers together.
    """
    columns, target = np.array(known) * [1.0, -1.0], np.array(seen)
    gained, overhead = np.linalg.lstsq(columns, target, rcond=None)[0].tolist()
    if overhead < 0:
        [gained], overhead = np.linalg.lstsq(columns[:, :1], target, rcond=None)[0].tolist(), 0.0
    return min(max(gained, LEAST_GAINED), MOST_GAINED), overhead


def with_any_weights(model: nn.Module) -> nn.Module:
    """Overwrite all parameters of a model, in place, and give it back: what stands in new memory may compute slowly."""
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    return model


def _caller(module: nn.Module, inputs: Sequence[Tensor]) -> Callable[[], None]:
    def call() -> None:
        for some in inputs:
            module(some)

    return call


def ranks_to_time(spec: LayerSpec, scheme: str) -> list[int]:
    """Ranks between which a layer's time is interpolated, rising."""
    limit, block = spec.break_even_rank(scheme), lcm(BLOCK, spec.groups)
    found = {spec.whole_groups(max(1, round(share * limit))) for share in SHARES}
    return sorted({rank // block * block if rank >= 2 * block else rank for rank in found})

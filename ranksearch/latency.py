"""What a network costs in time: every layer measured on this very device, dense and at some latent sizes.

Multiply-accumulates do not tell what a factorized layer gains in time: two small kernels may run slower than the one
that they replace. So layers of each shape are timed by themselves, with the inputs that they have in the network, and
a plan's time is the dense network's, less what its layers save.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.device import describe_device
from ranksearch.errors import SettingError
from ranksearch.factorize import factorized_like
from ranksearch.factorize.dry_run import dry_run, watch_layer
from ranksearch.files import DamagedError, read_state, write_state
from ranksearch.plan import LayerChoice, LayerSpec, RankPlan
from ranksearch.timing import Timing, time_calls

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Shares of the break-even rank that a layer is timed at.
SHARES = (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)
# Ranks above this are timed at whole blocks, as they are searched: hardware is slower in between.
BLOCK = 8
NOISY = 0.1


@dataclass(frozen=True)
class LatencyCost:
    """Nanoseconds of one batch on one device, from a table; see `MeasuredLatency`.

    Attributes:
        dense_network: of the dense network.
        layers: layer name -> of the dense layer.
        factorized: layer name -> scheme -> ranks and the times at them, both rising with the rank's place.
        spread: of the timings, relative; the median over all.
        unit: what the numbers count.
    """

    dense_network: float
    layers: Mapping[str, float]
    factorized: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]]
    spread: float
    unit: str = "ns"

    def network(self, model: nn.Module, input_shape: Sequence[int]) -> int:
        """The dense network's time; of the model that the table was made for."""
        return round(self.dense_network)

    def dense(self, spec: LayerSpec) -> int:
        """The dense layer's time."""
        return round(self.layers[spec.name])

    def at_rank(self, spec: LayerSpec, rank: int, scheme: str) -> int:
        """The factorized layer's time, interpolated between the ranks that were measured."""
        ranks, times = self.factorized[spec.name][scheme]
        return round(float(np.interp(rank, ranks, times)))


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
        path = None if self.cache is None else Path(self.cache) / f"latency-{key}.table"
        if path is not None and path.exists():
            try:
                known = LatencyCost(**read_state(path))
            except DamagedError as error:
                log.warning("latency: %s; it is measured anew", error)
            else:
                log.info("latency: read from %s", path)
                return known
        table = self._measure(model, layers, input_shape, device)
        if path is not None:
            write_state(path, vars(table))
        return table

    def _made_from(self, model: nn.Module, input_shape: Sequence[int], device: torch.device) -> str:
        settings = {name: value for name, value in vars(self).items() if name != "cache"}
        # Times depend on shapes alone, which a model's text tells of all its layers.
        described = {"device": describe_device(device), "torch": torch.__version__, "model": repr(model)}
        return json.dumps({**settings, **described, "input": list(input_shape)}, sort_keys=True)

    def _measure(
        self, model: nn.Module, layers: Sequence[LayerSpec], input_shape: Sequence[int], device: torch.device
    ) -> LatencyCost:
        start, spreads = time.perf_counter(), []
        shapes = layer_inputs(model, [spec.name for spec in layers], self.batch_size, input_shape)
        alike: dict[str, dict[tuple[str, int], float]] = {}
        dense, factorized = {}, {}
        for spec in layers:
            layer = model.get_submodule(spec.name)
            key = f"{layer!r} {shapes[spec.name]}"
            if key not in alike:
                timed = self._time_layer(layer, spec, shapes[spec.name], device)
                alike[key] = {option: timing.seconds * 1e9 for option, timing in timed.items()}
                spreads += [timing.spread for timing in timed.values()]
            found = alike[key]
            dense[spec.name] = found["dense", 0]
            factorized[spec.name] = {
                scheme: (ranks, [found[scheme, rank] for rank in ranks])
                for scheme in spec.schemes
                if (ranks := ranks_to_time(spec, scheme))
            }
        network, images = self._prepare(model, device), self._images(input_shape, device)
        [samples] = time_calls([lambda: network(images)], device, self.repeats)
        whole, spread = Timing.of(samples), median(spreads or [0.0])
        log.info(
            "latency: %d layers of %d shapes at %d latent sizes in %.1f s, spread %.1f %%; dense network %.2f ms",
            *(len(dense), len(alike), sum(map(len, alike.values())), time.perf_counter() - start, 100 * spread),
            1e3 * whole.seconds,
        )
        if spread > NOISY:
            log.warning("latency: times vary by %.0f %%: measure again while the machine is idle", 100 * spread)
        return LatencyCost(whole.seconds * 1e9, dense, factorized, spread)

    def _time_layer(
        self, layer: nn.Module, spec: LayerSpec, shapes: Sequence[torch.Size], device: torch.device
    ) -> dict[tuple[str, int], Timing]:
        """One layer dense, and by every scheme at every rank to time."""
        inputs = [self._tensor(shape, device) for shape in shapes]
        alone = nn.Sequential(layer)
        modules = {("dense", 0): self._prepare(alone, device)}
        for scheme in spec.schemes:
            for rank in ranks_to_time(spec, scheme):
                twin = factorized_like(alone, RankPlan({"0": LayerChoice(rank, scheme)}))
                for parameter in twin.parameters():
                    nn.init.constant_(parameter, 0.01)  # what stands in new memory may compute slowly
                modules[scheme, rank] = self._prepare(twin, device)
        timed = time_calls([_caller(module, inputs) for module in modules.values()], device, self.repeats)
        return {option: Timing.of(samples) for option, samples in zip(modules, timed, strict=True)}

    def _prepare(self, model: nn.Module, device: torch.device) -> nn.Module:
        return prepared(model, device, self.dtype, self.channels_last)

    def _images(self, input_shape: Sequence[int], device: torch.device) -> Tensor:
        return self._tensor(torch.Size((self.batch_size, *input_shape)), device)

    def _tensor(self, shape: torch.Size, device: torch.device) -> Tensor:
        return example(shape, device, self.dtype, self.channels_last)


def _caller(module: nn.Module, inputs: Sequence[Tensor]) -> Callable[[], None]:
    def call() -> None:
        for some in inputs:
            module(some)

    return call


def prepared(model: nn.Module, device: torch.device, dtype: str, channels_last: bool) -> nn.Module:
    """A copy of a model as it is timed: in eval mode, on a device, in a dtype and a memory format."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return copy.deepcopy(model).eval().to(device, DTYPES[dtype]).to(memory_format=layout)


def example(shape: torch.Size, device: torch.device, dtype: str, channels_last: bool) -> Tensor:
    """An input to time with."""
    values = torch.ones(shape, device=device, dtype=DTYPES[dtype])
    return values.contiguous(memory_format=torch.channels_last) if channels_last and values.ndim == 4 else values


def ranks_to_time(spec: LayerSpec, scheme: str) -> list[int]:
    """Ranks between which a layer's time is interpolated, rising."""
    limit, block = spec.break_even_rank(scheme), lcm(BLOCK, spec.groups)
    found = {spec.whole_groups(max(1, round(share * limit))) for share in SHARES}
    return sorted({rank // block * block if rank >= 2 * block else rank for rank in found})


def layer_inputs(
    model: nn.Module, names: Sequence[str], batch_size: int, input_shape: Sequence[int]
) -> dict[str, list[torch.Size]]:
    """The shapes that layers are called on, call by call, for a batch of examples; see `dry_run`."""

    def watch(ghost: nn.Module, run: Callable[[], None]) -> dict[str, list[torch.Size]]:
        shapes: dict[str, list[torch.Size]] = {name: [] for name in names}
        for name in names:
            watch_layer(ghost.get_submodule(name), _noting(shapes[name]), lambda: None)
        run()
        return shapes

    return dry_run(model, torch.empty(batch_size, *input_shape, device="meta"), watch)


def _noting(shapes: list[torch.Size]) -> Callable[[Tensor, Tensor], None]:
    return lambda input, output: shapes.append(input.shape)

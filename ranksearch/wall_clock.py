"""How much faster a factorized network is by the clock, beside what its costs say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ranksearch.device import describe_device
from ranksearch.latency import MeasuredLatency
from ranksearch.timing import Timing, time_calls


@dataclass(frozen=True)
class WallClock:
    """Two networks timed side by side.

    Attributes:
        batch_size: examples of a batch.
        dense_seconds: of one batch.
        factorized_seconds: of the same.
        speedup: the median over bursts of calls that follow each other.
        spread: half the distance between the quartiles of the speedups over their median.
    """

    batch_size: int
    dense_seconds: float
    factorized_seconds: float
    speedup: float
    spread: float

    def said(self) -> str:
        """The times and the speedup as text."""
        dense, factorized = 1e3 * self.dense_seconds, 1e3 * self.factorized_seconds
        return (
            f"batch {self.batch_size}: {dense:.2f} ms dense, {factorized:.2f} ms factorized, {self.speedup:.2f}x "
            f"+- {100 * self.spread:.0f} %"
        )


def time_side_by_side(
    dense: nn.Module,
    factorized: nn.Module,
    input_shape: tuple[int, ...],
    device: torch.device,
    settings: MeasuredLatency,
) -> WallClock:
    """Time two networks by turns, in one run.

    Args:
        dense: is not touched.
        factorized: neither.
        input_shape: of one example, `[C, H, W]`.
        device: to run on.
        settings: batch size, dtype, memory format and repeats.
    """
    images = settings.example((settings.batch_size, *input_shape), device)
    networks = [settings.prepared(model, device) for model in (dense, factorized)]
    samples = time_calls([lambda: networks[0](images), lambda: networks[1](images)], device, settings.repeats)
    first, second = (Timing.of(found) for found in samples)
    speedup = Timing.beside(*samples)
    return WallClock(settings.batch_size, first.median, second.median, speedup.median, speedup.spread)


def measured_on(device: torch.device, settings: MeasuredLatency) -> Mapping[str, Any]:
    """What else the times depend on, as plain JSON values."""
    return {"device": describe_device(device), "dtype": settings.dtype, "channels_last": settings.channels_last}

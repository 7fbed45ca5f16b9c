"""Interleaved timing of several calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ranksearch.device import synchronize
from ranksearch.errors import SettingError

WARM_UPS = 3
# Target duration of a burst of calls, so that clock resolution and start-up overhead are negligible.
BURST_SECONDS = 2e-3


@dataclass(frozen=True)
class Timing:
    """The time of one call, in seconds or as a multiple of another call's time.

    Attributes:
        median: median over bursts of calls.
        spread: half the interquartile range, divided by the median.
    """

    median: float
    spread: float

    @staticmethod
    def from_samples(samples: Sequence[float]) -> Timing:
        """Compute median and spread of samples: times of one call, at least two."""
        low, _, high = statistics.quantiles(samples, n=4)
        middle = statistics.median(samples)
        return Timing(middle, (high - low) / 2 / middle)

    @staticmethod
    def ratio(samples: Sequence[float], others: Sequence[float]) -> Timing:
        """Compute the timing of samples as multiples of other samples, paired by burst."""
        return Timing.from_samples([sample / other for sample, other in zip(samples, others, strict=True)])


def time_calls(
    calls: Sequence[Callable[[], object]], device: torch.device, repeats: int, grad: bool = False
) -> list[list[float]]:
    """Time calls in interleaved bursts, so that other load on the machine affects all of them equally.

    Args:
        calls: functions to time.
        device: device that they compute on.
        repeats: number of bursts of each call, at least 2.
        grad: whether the calls compute gradients.

    Returns:
        Seconds per call in every burst, for each of the calls. Samples of one index are from the same round of bursts.

    Raises:
        SettingError: there are fewer than 2 repeats, too few for a spread.
    """
    if repeats < 2:
        raise SettingError("repeats", repeats, "is too few for a spread: use 2 or more")

    def burst(call: Callable[[], object], count: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(count):
            call()
        synchronize(device)
        return (time.perf_counter() - start) / count

    samples: list[list[float]] = [[] for _ in calls]
    with torch.inference_mode(not grad):
        counts = []
        for call in calls:
            for _ in range(WARM_UPS):
                alone = burst(call, 1)
            counts.append(max(1, round(BURST_SECONDS / max(alone, 1e-9))))
        for _ in range(repeats):
            for timings, call, count in zip(samples, calls, counts, strict=True):
                call()  # warm the caches, which hold the data of the previous call
                timings.append(burst(call, count))
    return samples

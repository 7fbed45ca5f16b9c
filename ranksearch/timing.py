"""How long calls take, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ranksearch.device import synchronize
from ranksearch.errors import SettingError

WARM_UPS = 3
# A burst of calls lasts so long at the least, that the clock and the start of a burst do not count.
BURST_SECONDS = 2e-3


@dataclass(frozen=True)
class Timing:
    """How long one call takes, in seconds or as a multiple of another's time.

    Attributes:
        median: over bursts of calls.
        spread: half the distance between the quartiles over the median.
    """

    median: float
    spread: float

    @staticmethod
    def of(samples: Sequence[float]) -> Timing:
        """Sum samples up.

        Args:
            samples: seconds of one call, two or more.
        """
        low, _, high = statistics.quantiles(samples, n=4)
        middle = statistics.median(samples)
        return Timing(middle, (high - low) / 2 / middle)

    @staticmethod
    def beside(samples: Sequence[float], others: Sequence[float]) -> Timing:
        """Sum up samples as multiples of others that were taken beside them."""
        return Timing.of([sample / other for sample, other in zip(samples, others, strict=True)])


def time_calls(
    calls: Sequence[Callable[[], object]], device: torch.device, repeats: int, grad: bool = False
) -> list[list[float]]:
    """Time calls by turns, so that whatever else the machine does falls on all of them alike.

    Args:
        calls: what to time.
        device: that they compute on.
        repeats: bursts of each call, 2 or more.
        grad: whether calls compute gradients.

    Returns:
        Seconds of one call, in every burst, for each of the calls. Samples of one place were taken one after another.

    Raises:
        SettingError: there are too few repeats to tell a spread.
    """
    if repeats < 2:
        raise SettingError("repeats", repeats, "tells no spread: use 2 or more")

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
            for found, call, count in zip(samples, calls, counts, strict=True):
                call()  # the one before has left its own data in the caches
                found.append(burst(call, count))
    return samples

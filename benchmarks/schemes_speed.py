"""What all schemes cost to calibrate, and what each is worth in wall-clock time."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torchvision
from torch import nn

from ranksearch.factorize import FactorizedConv2d, collect_statistics, decompose_schemes, profile_layers
from ranksearch.plan import SCHEMES

IMAGES, BATCH = 128, 32


def calibration(name: str) -> dict[str, float]:
    """Statistics, decompositions and expected errors of all schemes of one network at 224, random weights."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)().eval()
    # Smooth images: noise has patches of white pixels, which no network ever meets.
    coarse = torch.randn(IMAGES, 3, 56, 56)
    batches = list(nn.functional.interpolate(coarse, size=224, mode="bicubic").split(BATCH))
    convolutions = [spec.name for spec in profile_layers(model, batches[0][:1]).layers if spec.kind == "conv2d"]

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    with torch.no_grad():
        model(batches[0])
    forward_s = timed(forward)
    start = time.perf_counter()
    statistics = collect_statistics(model, batches, convolutions)
    collected = time.perf_counter()
    peak_of_collecting = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    ways = 0
    for layer in convolutions:
        module = model.get_submodule(layer)
        assert isinstance(module, nn.Conv2d)
        for decomposition in decompose_schemes(module, statistics.pop(layer)).values():
            decomposition.expected_errors()
            ways += 1
    return {
        "images": IMAGES,
        "convolutions": len(convolutions),
        "ways": ways,
        "forward_s": forward_s,
        "collect_s": collected - start,
        "collect_over_forward": (collected - start) / forward_s,
        "decompose_s": time.perf_counter() - collected,
        "collect_peak_gib": peak_of_collecting,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def wall_clock() -> list[dict[str, Any]]:
    """Dense time over factorized time of 3x3 layers at half of their MACs, batch 16; medians of alternating runs."""
    found = []
    for channels, size in ((64, 56), (128, 28), (256, 14)):
        for last in (False, True):
            form = torch.channels_last if last else torch.contiguous_format
            x = torch.randn(16, channels, size, size).to(memory_format=form)
            dense = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=form).eval()
            layers: dict[str, nn.Module] = {"dense": dense}
            for scheme in SCHEMES:
                limit = FactorizedConv2d.max_allowed_latent_channels(channels, channels, 3, scheme)
                twin = FactorizedConv2d(channels, channels, 3, (limit + 1) // 2, scheme, padding=1)
                layers[scheme] = twin.to(memory_format=form).eval()
            seconds: dict[str, list[float]] = {name: [] for name in layers}
            with torch.no_grad():
                for _ in range(25):
                    for name, layer in layers.items():
                        seconds[name].append(timed(lambda layer=layer, x=x: layer(x)))
            row = {"channels": channels, "size": size, "channels_last": last}
            found.append(row | {s: round(median(seconds["dense"]) / median(seconds[s]), 2) for s in SCHEMES})
    return found


def measure(quick: bool) -> dict[str, Any]:
    """Both tables; the quick form leaves out the decompositions of the large networks."""
    walls = wall_clock()
    print("\ndense time over factorized time, 3x3 at 50 % of the MACs, batch 16, this machine's CPU")
    print(f"{'channels':>8} {'size':>5} {'channels_last':>14}" + "".join(f"{scheme:>12}" for scheme in SCHEMES))
    for row in walls:
        print(
            f"{row['channels']:>8} {row['size']:>5} {row['channels_last']!s:>14}"
            + "".join(f"{row[scheme]:>12}" for scheme in SCHEMES)
        )
    result: dict[str, Any] = {"wall_clock": walls}
    if not quick:
        for name in ("resnet18", "vgg16_bn"):
            # A process of its own, for peak memory is a process's.
            result[name] = json.loads(subprocess.check_output([sys.executable, __file__, name]))
            print(f"\n{name} at 224, all schemes of all convolutions")
            for what, value in result[name].items():
                print(f"  {what:22} {value:.4g}")
    return result


if __name__ == "__main__":
    print(json.dumps(calibration(sys.argv[1])))

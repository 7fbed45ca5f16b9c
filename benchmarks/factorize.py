"""What the full scheme's closed form costs, beside alternating least squares. Run: python benchmarks/factorize.py.

Prints two tables and a last line of JSON. All times are taken in one run, one after the other.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.factorize import collect_statistics, factorize_model, profile_layers
from ranksearch.factorize.functional import truncation_error
from ranksearch.factorize.pca import TIE_BREAK, decompose_pca
from ranksearch.plan import LayerChoice, RankPlan

IMAGES, BATCH = 64, 16
RANKS = 10


def timed(work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """The shortest of some runs in seconds, and what the last one gave."""
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return best, result


def network() -> tuple[nn.Module, list[Tensor]]:
    """ResNet-50 and images at 224."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval()
    return model, [torch.randn(BATCH, 3, 224, 224) for _ in range(IMAGES // BATCH)]


@torch.no_grad()
def plain_forward(model: nn.Module, batches: list[Tensor]) -> None:
    """The pass that statistics are compared with."""
    for batch in batches:
        model(batch)


def whole_network() -> dict[str, float]:
    """All ranks of all layers of ResNet-50."""
    model, batches = network()
    profile = profile_layers(model, batches[0][:1])
    names = [spec.name for spec in profile.layers]
    plain_forward(model, batches[:1])
    forward, _ = timed(lambda: plain_forward(model, batches), 3)
    collecting, statistics = timed(lambda: collect_statistics(model, batches, names, ["full"]), 3)
    layers = {name: model.get_submodule(name) for name in names}
    decomposing, decompositions = timed(
        lambda: {name: {"full": decompose_pca(layers[name], statistics[name])} for name in names}
    )
    plan = RankPlan({spec.name: LayerChoice(spec.whole_groups(spec.break_even_rank() // 2)) for spec in profile.layers})
    building, _ = timed(lambda: factorize_model(model, plan, decompositions), 3)
    kept = sum(half.scatter.numel() * 8 for entry in statistics.values() for half in entry.halves)
    batch = batches[0].numel() * 4
    bound = 2 * sum(spec.out_size**2 * 8 for spec in profile.layers) + batch
    peaks = [float(subprocess.check_output([sys.executable, __file__, how])) for how in ("--forward", "--statistics")]
    return {
        "layers": len(names),
        "forward_s": forward,
        "statistics_s": collecting,
        "statistics_over_forward": collecting / forward,
        "decompose_s": decomposing,
        "build_s": building,
        "kept_mib": kept / 2**20,
        "extra_peak_mib": (peaks[1] - peaks[0]) / 2**20,
        "bound_mib": bound / 2**20,
    }


def peak(how: str) -> None:
    """Print the peak memory of one pass of one batch, with or without statistics, in bytes."""
    model, batches = network()
    if how == "--forward":
        plain_forward(model, batches)
    else:
        names = [spec.name for spec in profile_layers(model, batches[0][:1]).layers]
        collect_statistics(model, batches, names, ["full"])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def alternating(x: Tensor, y: Tensor, rank: int, sweeps: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Alternating least squares for ``y = x a b + c``: fit b for a, then a for b, sweep by sweep."""
    centre, mean = x.mean(0), y.mean(0)
    x, y = x - centre, y - mean
    a = torch.linalg.lstsq(x, y).solution[:, :rank]
    b = torch.zeros(rank, y.shape[1])
    for _ in range(sweeps):
        b = torch.linalg.lstsq(x @ a, y).solution
        a = torch.linalg.lstsq(x, y @ torch.linalg.pinv(b)).solution
    return a, b, mean - centre @ a @ b


def rows_of(layer: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Every output with the inputs it is computed from, unfolded, `[N, fan_in]` and `[N, out]`."""
    with torch.no_grad():
        out = layer(inputs)
    if isinstance(layer, nn.Linear):
        return inputs, out
    patches = F.unfold(inputs, 3, padding=1).transpose(1, 2)
    return patches.reshape(-1, patches.shape[2]), out.movedim(1, -1).reshape(-1, out.shape[1])


def correlated(*shape: int) -> Tensor:
    """Inputs as layers see them: channels that depend on each other, positions that resemble their neighbours."""
    channels = shape[1]
    mix = torch.randn(channels, channels) * torch.logspace(0, -1, channels)
    noise = torch.randn(*shape)
    if len(shape) == 4:
        noise = F.avg_pool2d(noise, 3, 1, 1) * 3
    return F.relu(torch.einsum("bc...,cd->bd...", noise, mix.T) + 0.5)


def one_layer(name: str, layer: nn.Module, *shape: int) -> dict[str, Any]:
    """Ten ranks of one layer, the closed form beside alternating least squares."""
    seen, held_out = correlated(*shape), correlated(*shape)
    root = nn.Sequential(layer)
    width = shape[1]
    ranks = [width * step // (RANKS + 2) for step in range(1, RANKS + 1)]

    def closed_form() -> list[Any]:
        statistics = collect_statistics(root, [seen], ["0"], ["full"])["0"]
        decomposition = decompose_pca(layer, statistics, shrinkage=TIE_BREAK)
        return [decomposition.factors(layer, rank) for rank in ranks]

    def alternated() -> list[Any]:
        x, y = rows_of(layer, seen)
        return [alternating(x, y, rank) for rank in ranks]

    ours, factors = timed(closed_form, 3)
    theirs, solutions = timed(alternated)
    ratios: dict[str, list[float]] = {"train": [], "held_out": []}
    for split, inputs in (("train", seen), ("held_out", held_out)):
        x, y = rows_of(layer, inputs)
        for found, (a, b, c) in zip(factors, solutions, strict=True):
            mine = x @ found.down.flatten(1).T @ found.up.T + found.bias
            ratios[split].append(truncation_error(y, x @ a @ b + c) / truncation_error(y, mine))
    row = {"layer": name, "closed_form_s": ours, "alternating_s": theirs, "times_faster": theirs / ours}
    for split, values in ratios.items():
        row[f"{split}_error_ratio_median"] = sorted(values)[len(values) // 2]
        row[f"{split}_error_ratio_max"] = max(values)
    return row


def main() -> None:
    """Measure and print."""
    if len(sys.argv) > 1:
        peak(sys.argv[1])
        return
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    whole = whole_network()
    print(f"ResNet-50, {IMAGES} images at 224 in batches of {BATCH}")
    for key, value in whole.items():
        print(f"  {key:26} {value:10.2f}")
    layers = [
        one_layer("64-channel 3x3", nn.Conv2d(64, 64, 3, padding=1), 8, 64, 28, 28),
        one_layer("256-channel 3x3", nn.Conv2d(256, 256, 3, padding=1), 16, 256, 14, 14),
        one_layer("512-wide linear", nn.Linear(512, 512), 4096, 512),
    ]
    print(f"\n{RANKS} ranks of one layer; errors of alternating least squares (3 sweeps) over the closed form's")
    for row in layers:
        print("  " + "  ".join(f"{key} {value:.4g}" if key != "layer" else f"{value:16}" for key, value in row.items()))
    print(json.dumps({"resnet50": whole, "layers": layers}))


if __name__ == "__main__":
    with torch.no_grad():
        main()

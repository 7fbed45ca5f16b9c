"""What a plan costs before any training, in forward passes. Run: python benchmarks/calibration.py [network ...].

For each torchvision network at 224 pixels: seconds of a plain forward pass over the images, of `find_plan`, of
`apply_plan` alone and of `compress`, side by side in one process, as multiples of the forward pass; and the peak memory
of the process beyond the model and the images. Weights are random with planted spectra (no file is read), images are
smooth noise; neither changes what is computed. Each network runs in a process of its own. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision import models

import ranksearch
from ranksearch.factorize import recalibrate_batchnorm

SIZE, BATCH = 224, 32
# Images of each network, as few as people try first.
NETWORKS = {"resnet18": 128, "resnet50": 128, "vit_b_16": 64, "vgg16_bn": 64}


def planted(name: str) -> nn.Module:
    """Return a network whose layers have decaying singular values, as trained ones do, with BatchNorm fitted."""
    torch.manual_seed(0)
    network = getattr(models, name)(weights=None)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                matrix = module.weight.flatten(1)
                left, values, right = torch.linalg.svd(matrix, full_matrices=False)
                decay = torch.arange(1, len(values) + 1, dtype=matrix.dtype) ** -0.7
                planted = (left * (decay * values.norm() / decay.norm())) @ right
                module.weight.copy_(planted.view_as(module.weight))
    recalibrate_batchnorm(network, smooth(32).split(16))
    return network.eval()


def smooth(count: int) -> Tensor:
    """Return images whose neighbouring pixels resemble each other, `[count, 3, 224, 224]`."""
    torch.manual_seed(1)
    coarse = torch.randn(count, 3, SIZE // 8, SIZE // 8)
    return nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear") + 0.2 * torch.randn(count, 3, SIZE, SIZE)


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak() -> float:
    """Return the peak resident memory of this process, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(name: str, images: int, speedup: float, thorough: bool) -> dict[str, float | str]:
    """Measure one network; see the module."""
    network, batches = planted(name), smooth(images).split(BATCH)

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            network(batch)

    forward()
    plain, before = min(seconds(forward) for _ in range(3)), peak()
    row: dict[str, float | str] = {"network": name, "images": images, "forward (s)": plain}
    plans = []
    fast = seconds(lambda: ranksearch.find_plan(network, batches, speedup, effort="fast"))
    default = seconds(lambda: plans.append(ranksearch.find_plan(network, batches, speedup)))
    longest = 0.0
    if thorough:
        longest = seconds(lambda: ranksearch.find_plan(network, batches, speedup, effort="thorough"))
    applied = seconds(lambda: ranksearch.apply_plan(plans[0], network, batches))
    both = seconds(lambda: ranksearch.compress(network, batches, speedup))
    # Beside it, the machine's own speed before and after: the mean of both is what the calls are compared with.
    plain = (plain + min(seconds(forward) for _ in range(3))) / 2
    row |= {
        "forward (s)": plain,
        "find_plan, fast": fast / plain,
        "find_plan": default / plain,
        "apply_plan": applied / plain,
        "compress": both / plain,
    }
    if thorough:
        row["find_plan, thorough"] = longest / plain
    row["peak beyond the forward pass (GiB)"] = peak() - before
    return row


def main() -> None:
    """Measure the networks that are asked for, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[], help=f"of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--images", type=int, help="number of images; a network's own by default")
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument(
        "--thorough", action="store_true", help="measure the effort 'thorough' too, which takes minutes"
    )
    given = parser.parse_args()
    if len(given.networks) == 1:
        name = given.networks[0]
        row = measure(name, given.images or NETWORKS.get(name, 64), given.speedup, given.thorough)
        print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}))
        return
    for name in given.networks or NETWORKS:
        more = [] if given.images is None else ["--images", str(given.images)]
        more += ["--thorough"] if given.thorough else []
        subprocess.run([sys.executable, __file__, name, "--speedup", str(given.speedup), *more], check=True)


if __name__ == "__main__":
    main()

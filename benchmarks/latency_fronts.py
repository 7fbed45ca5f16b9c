"""Plans found by time beside plans found by MACs that are at least as accurate, timed by turns with the dense network.

After two searches of one network, one of them with `cost=latency`:

    python benchmarks/latency_fronts.py outputs/by_macs outputs/by_time --batch-size 64

For every point of the second front it prints the predicted speedup and the measured one, and the measured one of the
point of the first front that has the fewest MACs among those that are at least as accurate.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from pydoc import locate
from typing import Any, cast

import torch
from torch import nn

from ranksearch.cost.latency import Latency, with_any_weights
from ranksearch.factorize import factorized_like
from ranksearch.formats.serialization import load
from ranksearch.plan import RankPlan
from ranksearch.runtimes.benchmark import Timing, time_calls


def main() -> None:
    """Time all pairs, the dense network beside each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("by_macs", type=Path)
    parser.add_argument("by_time", type=Path)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args()
    device, latency = torch.device("cpu"), Latency(batch_size=options.batch_size, repeats=options.repeats)
    slow, fast = (json.loads((folder / "front.json").read_text()) for folder in (options.by_macs, options.by_time))
    load(options.by_time / "best")  # which refuses a builder that is not ours
    settings = dict(json.loads((options.by_time / "best" / "plan.json").read_text())["model"])
    builder = cast(Callable[..., nn.Module], locate(settings.pop("_target_")))
    dense = builder(**settings).eval()
    images = latency.runtime.example((options.batch_size, *fast["measured"]["input_shape"]), device)

    def network(point: dict[str, Any] | None) -> nn.Module:
        plan = RankPlan() if point is None else RankPlan.from_json(point["plan"])
        return latency.runtime.prepare(with_any_weights(factorized_like(dense, plan)), device)

    for point in sorted(fast["points"], key=lambda point: -point["accuracy"]):
        rivals = [rival for rival in slow["points"] if rival["accuracy"] >= point["accuracy"]]
        rival = min(rivals, key=lambda rival: rival["macs"], default=None)
        networks = [network(None), network(point), *([network(rival)] if rival else [])]
        first, *others = time_calls([lambda n=n: n(images) for n in networks], device, options.repeats)
        speedups = [Timing.ratio(first, samples) for samples in others]
        print(
            f"by time: {point['accuracy']:.2%}, predicted {point['speedup']:.2f}x, measured "
            f"{speedups[0].median:.2f}x +- {speedups[0].spread:.0%}",
            end="; " if rival else "\n",
        )
        if rival:
            fewer = slow["dense"]["macs"] / rival["macs"]
            print(
                f"by MACs: {rival['accuracy']:.2%}, {fewer:.2f}x fewer, measured "
                f"{speedups[1].median:.2f}x +- {speedups[1].spread:.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()

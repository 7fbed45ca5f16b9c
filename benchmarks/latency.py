"""How far times from the table are off. Run: python benchmarks/latency.py, on a machine that does nothing else.

Layers are timed one by one as `cost=latency` does it. Then plans are drawn, a scheme and a latent size for every layer
that the space holds, built with arbitrary weights, and timed side by side with the dense network: by how much is the
speedup that the table predicts off? Beside it stands the speedup in MACs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
from statistics import median
from typing import Any

import torch
import torchvision
from torch import nn

from ranksearch.cost.base import NetworkCost
from ranksearch.cost.latency import Latency, time_side_by_side, with_any_weights
from ranksearch.cost.macs import MacsCost
from ranksearch.errors import UserError
from ranksearch.factorize import factorized_like, profile_layers
from ranksearch.models.cifar import cifar_resnet
from ranksearch.plan import RankPlan
from ranksearch.search_space.rules import SpaceSettings, build_space
from ranksearch.search_space.space import SearchSpace

CPU = torch.device("cpu")
# Network, height and width of its images, batch sizes.
CASES = {"resnet20": (28, (1, 64)), "resnet18": (224, (1, 8)), "resnet50": (224, (1, 8)), "vgg11_bn": (224, (1,))}


def network(name: str) -> nn.Module:
    """A network with arbitrary weights."""
    model = cifar_resnet(20, 10) if name == "resnet20" else getattr(torchvision.models, name)()
    return model.eval()


def drawn(space: SearchSpace, draw: random.Random, share: float) -> RankPlan:
    """A plan with a scheme drawn for every layer, and a latent size around a share of the scheme's largest."""
    values: dict[str, int | str] = {}
    for layer in space.layers:
        scheme = draw.choice(layer.schemes)
        sizes = range(layer.low, layer.highs[scheme] + 1, layer.step)
        place = min(len(sizes) - 1, int(len(sizes) * share * draw.uniform(0.5, 1.5)))
        values |= {layer.spec.name: sizes[place], layer.scheme_parameter: scheme}
    return space.plan(values)


def measured(name: str, batch_size: int, plans: int) -> list[dict[str, Any]]:
    """Predicted and measured speedups of a few plans, of layers that can gain time by the table."""
    model, size = network(name), CASES[name][0]
    shape, settings = (3, size, size), Latency(batch_size=batch_size)
    profile = profile_layers(model, torch.empty(1, *shape))
    layers = {spec.name: spec for spec in profile.layers}
    table = settings.measure(model, list(layers.values()), shape, CPU)
    times = NetworkCost(table, table.network(model, shape), layers)
    macs = NetworkCost(MacsCost(), MacsCost().network(model, shape), layers)
    rows = []
    for what, cost in (("gaining time", times), ("gaining MACs", macs)):
        try:
            space = build_space(SpaceSettings(), profile, cost)
        except UserError:  # no layer gains
            continue
        draw = random.Random(name)
        for index in range(plans):
            plan = drawn(space, draw, (index + 1) / (plans + 1))
            built = with_any_weights(factorized_like(model, plan))
            clock = time_side_by_side(model, built, shape, CPU, settings)
            row = {
                "network": name,
                "batch": batch_size,
                "layers": what,
                "factorized": len(plan),
                "in_macs": macs.dense / macs.total(plan),
                "predicted": times.dense / times.total(plan),
                "measured": clock.speedup,
                "spread": clock.spread,
            }
            rows.append({**row, "off": row["predicted"] / row["measured"] - 1})
            said = {key: f"{value:.3f}" if isinstance(value, float) else value for key, value in rows[-1].items()}
            print(*said.values(), sep="\t", flush=True)
    return rows


def main() -> None:
    """Measure every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--plans", type=int, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = [row for name in options.networks for size in CASES[name][1] for row in measured(name, size, options.plans)]
    off = [abs(row["off"]) for row in rows]
    facts = {"plans": len(rows), "median_off": median(off), "worst_off": max(off), "threads": torch.get_num_threads()}
    print(json.dumps({**facts, "torch": torch.__version__}))


if __name__ == "__main__":
    main()

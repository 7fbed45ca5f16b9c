"""What ranksearch makes of torchvision's networks. Run: python benchmarks/models.py [model ...].

For every ready model of `conf/model`, as the command line composes it: how many layers can be factorized, its MACs
beside those that torchvision publishes, how long calibration takes, and the closed form's plan of twice the speed:
whether the MACs that it predicts are those of the network that is built, and whether that runs. Weights and images are
random, which no figure here depends on but the plan. A row is added to models.csv as it is known, and models that have
one are left out, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch.utils.data import TensorDataset
from torchvision.models import get_model_weights

from ranksearch.allocation.decomposed_model import decompose_model
from ranksearch.allocation.lagrangian import allocate
from ranksearch.cli.compose import CONF, register_schemas
from ranksearch.cli.config import make_config
from ranksearch.cli.setup import build_dense_model, space_settings
from ranksearch.cost.macs import MacsCost, count_macs
from ranksearch.data.splits import Splits
from ranksearch.study.context import build_search_space

CPU = torch.device("cpu")
SIZE, CLASSES, BATCH = 224, 1000, 16
# From those that are calibrated soon to those that take long.
MODELS = (
    "mobilenet_v3_large",
    "regnet_y_400mf",
    "swin_t",
    "vit_b_16",
    "efficientnet_b0",
    "convnext_tiny",
    "densenet121",
    "resnext50_32x4d",
    "resnet18",
    "resnet50",
    "resnet101",
    "vgg16_bn",
)


def look_at(name: str, images: int, speedup: float) -> dict[str, Any]:
    """Measure one model.

    Args:
        name: of its file in `conf/model`.
        images: to calibrate on.
        speedup: of the plan, or the highest that the space reaches where that is less.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = make_config(compose("config", [f"model={name}", "dataset=fake"]))
    torch.manual_seed(0)
    examples: Any = TensorDataset(torch.randn(images, 3, SIZE, SIZE), torch.arange(images))
    splits = Splits(examples, examples, examples, num_classes=CLASSES)
    model = build_dense_model(config, splits).network.to(memory_format=torch.channels_last).eval()
    space = build_search_space(model, splits, space_settings(config), MacsCost(), CPU)
    published = get_model_weights(name).DEFAULT.meta["_ops"]
    start = time.perf_counter()
    shown = [batch.contiguous(memory_format=torch.channels_last) for batch in examples.tensors[0].split(BATCH)]
    layers = decompose_model(model, space, shown, [], sequential_images=0)
    seconds = time.perf_counter() - start
    reached = min(speedup, int(space.highest_speedup * 100) / 100)
    plan = allocate(space, layers.errors, int(space.cost.dense / reached))
    network = layers.build(plan)
    with torch.no_grad():
        runs = network(shown[0][:2]).shape == (2, CLASSES)
    return {
        "model": name,
        "searched": len(space.layers),
        "left dense": len(space.left),
        "MACs (G)": space.cost.dense / 1e9,
        "published (G)": published,
        "off by (%)": 100 * (space.cost.dense / 1e9 / published - 1),
        "calibration (s)": seconds,
        "speedup": space.cost.dense / space.cost.total(plan),
        "predicted = measured MACs": space.cost.total(plan) == count_macs(network, (3, SIZE, SIZE)),
        "runs": runs,
        "images": images,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Look at the models that are asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, help="of conf/model; all twelve by default")
    parser.add_argument("--images", type=int, default=256, help="to calibrate on")
    parser.add_argument("--speedup", type=float, default=2.0, help="of the plan")
    parser.add_argument("--output", type=Path, default=Path("models.csv"))
    given = parser.parse_args()
    register_schemas()
    rows = list(csv.DictReader(given.output.open())) if given.output.exists() else []
    for name in given.models:
        if name in [row["model"] for row in rows]:
            continue
        row = look_at(name, given.images, given.speedup)
        rows.append({key: f"{value:.3f}" if isinstance(value, float) else str(value) for key, value in row.items()})
        print(json.dumps(row), flush=True)
        with given.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()

"""Which scheme is worth what, on Fashion-MNIST. Run: python benchmarks/schemes.py [--quick].

The images are Debian's package `dataset-fashion-mnist`, or the four .gz files from the data set's own home in any
folder (--data). All networks are trained here, on the training images but 5,000, and every accuracy is that of these
5,000; the test images are never read, and no plan is chosen by any label: plans are the closed form's.

Finished figures are kept under --outputs and read again, so a run that was stopped goes on; take that folder away once
the solver has changed. Parts of the work can be given to several processes: --parts, --networks, --seeds. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import schemes_layers
import schemes_speed
import torch
from schemes_picture import picture
from torch import Tensor, nn

from ranksearch.allocation.closed_form import MORE_EXPONENTS, choose, propose
from ranksearch.cost.base import NetworkCost
from ranksearch.cost.macs import MacsCost, count_macs
from ranksearch.factorize import (
    collect_statistics,
    decompose_schemes,
    factorize_model,
    factorize_sequentially,
    profile_layers,
    recalibrate_batchnorm,
)
from ranksearch.models.cifar import CifarResNet
from ranksearch.plan import RankPlan
from ranksearch.predictions import predict
from ranksearch.search_space.rules import Rule, SpaceSettings, build_space
from ranksearch.training.loop import evaluate, train
from ranksearch.training.recipe import Recipe

SETS = {
    "full only": ["full"],
    "vertical + horizontal": ["vertical", "horizontal"],
    "pointwise": ["pointwise"],
    "all four": ["full", "vertical", "horizontal", "pointwise"],
}
PARTS = ("accuracy", "layers", "speed")
SHARES = (0.5, 0.35, 0.25, 0.2, 0.12)
CALIBRATION, COMPARISON, IN_TURN, COMPARED_ON, BATCH, HELD_OUT = 512, 512, 256, 64, 64, 5000
# Every layer on what the dense network feeds it, or one after another, on what the layers before it leave.
SOLVED = ("each by itself", "in turn")
# What one table and one panel of the picture show.
PANEL = ("network", "solved", "steps")


def vgg() -> nn.Module:
    """Six convolutions with BatchNorm, no shortcuts."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 16, 0, 32, 32, 0, 64, 64):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


NETWORKS = {"resnet": lambda: CifarResNet(14, 10), "vgg": vgg}


@dataclass(frozen=True)
class Data:
    """Fashion-MNIST's training images as `[N, 3, 28, 28]`, shuffled once, the last 5,000 held out."""

    images: Tensor
    labels: Tensor

    def batches(self, seed: int, size: int, flip: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of training images without end."""
        generator = torch.Generator().manual_seed(seed)
        count = len(self.images) - HELD_OUT
        while True:
            order = torch.randperm(count, generator=generator)
            for start in range(0, count - size + 1, size):
                chosen = order[start : start + size]
                images = self.images[chosen]
                if flip:
                    mirrored = torch.rand(size, generator=generator) < 0.5
                    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
                yield images, self.labels[chosen]

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The images that accuracies are measured on."""
        for start in range(len(self.images) - HELD_OUT, len(self.images), 500):
            yield self.images[start : start + 500], self.labels[start : start + 500]


def decode(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images `[N, 3, 28, 28]` and labels of a part, ``train`` or ``t10k``, in the order of its files."""
    files = [folder / f"{part}-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1")]
    if not all(file.exists() for file in files):
        raise SystemExit(
            f"{folder} lacks {files[0].name} or {files[1].name}: install Debian's package dataset-fashion-mnist "
            "(apt-get install dataset-fashion-mnist), or name the folder that has them with --data"
        )
    pixels, labels = (gzip.decompress(file.read_bytes()) for file in files)
    images = torch.tensor(np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy()).float()
    images = ((images / 255 - 0.286) / 0.353).expand(-1, 3, -1, -1)
    return images, torch.tensor(np.frombuffer(labels, np.uint8, offset=8).copy()).long()


def read(folder: Path) -> Data:
    """Read the training images."""
    images, labels = decode(folder, "train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    # A third faster than torch's default on a CPU.
    return Data(images[order].contiguous(memory_format=torch.channels_last), labels[order])


def trained(name: str, seed: int, steps: int, data: Data, folder: Path) -> nn.Module:
    """Train a network, or read it back."""
    torch.manual_seed(seed)
    model = NETWORKS[name]().to(memory_format=torch.channels_last)
    file = folder / f"{name}-{seed}-{steps}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    start = time.perf_counter()
    train(model, data.batches(seed, 128, flip=True), Recipe(steps=steps, batch_size=128, learning_rate=0.1))
    print(f"trained {name}, seed {seed}, in {time.perf_counter() - start:.0f} s", flush=True)
    torch.save(model.state_dict(), file)
    return model


def accuracies(name: str, seed: int, model: nn.Module, data: Data, options: argparse.Namespace) -> None:
    """Every set of schemes at every budget, before and after fine-tuning; a line of the log for each figure."""
    log = options.outputs / f"{name}-{seed}-{options.steps}.jsonl"
    known = {key(row) for row in rows(log)}
    wanted = [
        (kinds, share, steps, solved)
        for solved in SOLVED
        for steps in options.tune
        for kinds in SETS
        for share in options.shares
    ]
    rest = [(*asked, name, seed) for asked in wanted if (*asked, name, seed) not in known]
    if not rest:
        return
    source = data.batches(seed + 100, BATCH)
    images = [next(source)[0] for _ in range(CALIBRATION // BATCH)]
    comparison = [next(source)[0] for _ in range(COMPARISON // BATCH)]
    profile = profile_layers(model, images[0][:1])
    names = [spec.name for spec in profile.layers]
    statistics = collect_statistics(model, images, names)
    decompositions = {layer: decompose_schemes(model.get_submodule(layer), statistics[layer]) for layer in names}
    errors = {layer: {s: d.expected_errors() for s, d in found.items()} for layer, found in decompositions.items()}
    cost = NetworkCost(MacsCost(), count_macs(model, (3, 28, 28)), {spec.name: spec for spec in profile.layers})
    dense, predicted = evaluate(model, data.held_out()).accuracy, predict(model, comparison)

    def build(plan: RankPlan, solved: str, count: int) -> nn.Module:
        if solved == "in turn":
            network = factorize_sequentially(model, plan, decompositions, torch.cat(images)[:count])
        else:
            network = factorize_model(model, plan, decompositions)
        recalibrate_batchnorm(network, images)
        return network

    plans: dict[tuple[str, float, str], RankPlan] = {}
    reached: dict[tuple[RankPlan, int, str], float] = {}
    for kinds, share, steps, solved, *_ in rest:
        if (kinds, share, solved) not in plans:
            space = build_space(SpaceSettings(default=Rule(schemes=SETS[kinds]), multiple_of=1), profile, cost)
            proposals = propose(space, errors, int(share * cost.dense), MORE_EXPONENTS)
            quickly = partial(build, solved=solved, count=COMPARED_ON)
            plans[kinds, share, solved] = choose(proposals, errors, quickly, comparison, predicted)
        plan = plans[kinds, share, solved]
        # Two sets of schemes may lead to one plan, which would be trained on the same batches.
        if (plan, steps, solved) not in reached:
            network = build(plan, solved, IN_TURN)
            if steps:
                torch.manual_seed(seed)
                recipe = Recipe(steps=steps, batch_size=BATCH, learning_rate=0.02, distillation=0.7)
                train(network, data.batches(seed + 200, BATCH), recipe, teacher=model)
            reached[plan, steps, solved] = evaluate(network, data.held_out()).accuracy
        found = {
            "schemes": kinds,
            "share": share,
            "steps": steps,
            "solved": solved,
            "network": name,
            "seed": seed,
            "accuracy": reached[plan, steps, solved],
            "dense": dense,
            "macs": cost.total(plan) / cost.dense,
        }
        with log.open("a") as file:
            file.write(json.dumps(found) + "\n")


def rows(log: Path) -> list[dict[str, Any]]:
    """The figures that a log holds."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two figures the same."""
    return tuple(row[name] for name in ("schemes", "share", "steps", "solved", "network", "seed"))


def table(
    title: str, steps: int, found: Sequence[dict[str, Any]], shares: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Print the accuracies of one panel: mean and spread over seeds; give the means."""
    seeds = sorted({row["seed"] for row in found})
    dense = {row["seed"]: row["dense"] for row in found}
    print(f"\n{title}, {steps} fine-tuning steps, seeds {seeds}, dense {100 * mean(dense.values()):.1f} %")
    print(f"{'MACs kept':24}" + "".join(f"{share:>14.0%}" for share in shares))
    means: dict[str, dict[str, Any]] = {}
    for kinds in SETS:
        means[kinds] = {}
        cells = ""
        for share in shares:
            values = [100 * row["accuracy"] for row in found if row["schemes"] == kinds and row["share"] == share]
            means[kinds][f"{share:g}"] = round(mean(values), 2) if values else None
            cells += f"{mean(values):>8.1f} +-{pstdev(values):>3.1f}" if values else f"{'-':>14}"
        print(f"{kinds:24}{cells}")
    return means


def main() -> None:
    """Run the parts that were asked for, and print what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a short training, two budgets: ten minutes")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmarks/schemes"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tune", nargs="+", type=int, default=[0, 50, 150, 400], help="steps of fine-tuning")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    options = parser.parse_args()
    options.steps, options.shares = 1500, SHARES
    if options.quick:
        options.seeds, options.steps, options.tune, options.shares = [0], 500, (0, 50), (0.25, 0.12)
    options.outputs.mkdir(parents=True, exist_ok=True)
    data = read(options.data)
    last: dict[str, Any] = {"quick": options.quick, "torch": torch.__version__}
    if "accuracy" in options.parts:
        found = []
        for seed in options.seeds:
            for name in options.networks:
                accuracies(name, seed, trained(name, seed, options.steps, data, options.outputs), data, options)
                found += rows(options.outputs / f"{name}-{seed}-{options.steps}.jsonl")
        last["accuracy"] = {
            f"{name} {solved},{steps}": table(f"{name}, layers solved {solved}", steps, chosen, options.shares)
            for name in options.networks
            for solved in SOLVED
            for steps in options.tune
            if (
                chosen := [
                    row for row in found if (row["network"], row["solved"], row["steps"]) == (name, solved, steps)
                ]
            )
        }
        picture(last["accuracy"], SETS, options.outputs / "schemes.svg")
    if "layers" in options.parts:
        model = trained("resnet", options.seeds[0], options.steps, data, options.outputs)
        seen, fresh = data.batches(100, BATCH), next(data.held_out())[0]
        images = [next(seen)[0] for _ in range(CALIBRATION // BATCH)]
        last["layers"] = schemes_layers.measure(model, images, fresh, (0.25,) if options.quick else (0.5, 0.33, 0.2))
    if "speed" in options.parts:
        last["speed"] = schemes_speed.measure(options.quick)
    (options.outputs / "schemes.json").write_text(json.dumps(last, indent=1) + "\n")
    print(json.dumps(last))


if __name__ == "__main__":
    main()

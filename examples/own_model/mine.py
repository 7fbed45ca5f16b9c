"""A network and a data set of one's own, for ranksearch to call by name."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset, random_split

from ranksearch.data.splits import Splits


def network(num_classes: int, width: int) -> nn.Module:
    """Map images `[B, 1, 8, 8]` to logits `[B, num_classes]`."""
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * width, width), nn.ReLU(), nn.Linear(width, num_classes))


def parity(seed: int) -> Splits:
    """Handwritten digits, odd or even: 60 % to train on, 20 % to choose by, 20 % to report on."""
    images, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
    examples = TensorDataset(images.float().reshape(-1, 1, 8, 8) / 16, digits % 2)
    parts = random_split(examples, [0.6, 0.2, 0.2], torch.Generator().manual_seed(seed))
    return Splits(*parts, num_classes=2)

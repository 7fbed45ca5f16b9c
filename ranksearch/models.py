"""Network builders that `conf/model` points at. The only home of torchvision's models."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import WeightsEnum, get_model, get_model_weights, list_models

from ranksearch.errors import UserError


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without weights (He et al., 2015, option A)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """The residual network for small images of He et al. (2015), section 4.2.

    Maps `[B, 3, H, W]` to `[B, num_classes]`.

    Args:
        depth: 6n + 2: 20, 32, 44, 56, ...
        num_classes: outputs.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise UserError(f"model.depth={depth} is not 6n + 2: use 20, 32, 44, 56, ...")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = _BasicBlock(in_channels, out_channels, stride)
        return nn.Sequential(first, *(_BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, 3, H, W]` to logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any


def cifar_resnet(depth: int, num_classes: int) -> nn.Module:
    """Build a `CifarResNet` with random weights."""
    return CifarResNet(depth, num_classes)


def torchvision_classifier(architecture: str, num_classes: int, weights: str | None = None) -> nn.Module:
    """Build a classification network of torchvision.

    Args:
        architecture: torchvision's name of it.
        num_classes: outputs; where the weights have another number, the last linear layer is made anew.
        weights: torchvision's name of the weights, or None for random ones.

    Raises:
        UserError: a name is unknown, or the weights cannot be downloaded.
    """
    known = list_models(module=torchvision.models)
    if architecture not in known:
        close = ", ".join(get_close_matches(architecture, known, n=3)) or "see torchvision.models.list_models()"
        raise UserError(f"torchvision has no model '{architecture}': use {close}")
    if weights is None:
        # These two otherwise answer with several outputs while they train.
        extra = {"aux_logits": False, "init_weights": True} if architecture in ("googlenet", "inception_v3") else {}
        network = get_model(architecture, weights=None, num_classes=num_classes, **extra)
        assert isinstance(network, nn.Module)
        return network
    choice = find_weights(architecture, weights)
    try:
        network = get_model(architecture, weights=choice)
    except (URLError, OSError, RuntimeError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / choice.url.rsplit("/", 1)[-1]
        raise UserError(
            f"model.weights={weights} cannot be downloaded ({error}): connect to the network, or put the file at {file}"
        ) from None
    assert isinstance(network, nn.Module)
    if num_classes != len(choice.meta["categories"]):
        _replace_head(network, num_classes)
    return network


def find_weights(architecture: str, weights: str) -> WeightsEnum:
    """Look up torchvision's weights by name.

    Raises:
        UserError: the architecture has no weights of this name.
    """
    known = get_model_weights(architecture)
    if weights == "DEFAULT" or weights in known.__members__:
        choice = known[weights] if weights in known.__members__ else known.DEFAULT
        assert isinstance(choice, WeightsEnum)
        return choice
    names = ", ".join(known.__members__) or "none are published"
    raise UserError(f"model.weights={weights} is unknown for {architecture}: use one of {names}")


def _replace_head(network: nn.Module, num_classes: int) -> None:
    name, head = [item for item in network.named_modules() if isinstance(item[1], nn.Linear)][-1]
    parent, _, child = name.rpartition(".")
    assert isinstance(head, nn.Linear)
    setattr(network.get_submodule(parent), child, nn.Linear(head.in_features, num_classes))


def weights_fit(architecture: str, weights: str, num_classes: int) -> bool:
    """Whether torchvision's weights were made for this number of classes."""
    return len(find_weights(architecture, weights).meta["categories"]) == num_classes


def is_torchvision(recipe: Mapping[str, Any]) -> bool:
    """Whether a model's recipe is one of `torchvision_classifier`."""
    return bool(recipe["_target_"] == f"{__name__}.{torchvision_classifier.__name__}")

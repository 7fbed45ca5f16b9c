"""Network builders that `conf/model` points at."""

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
from torchvision.models import get_model, list_models

from ranksearch.errors import SettingError, UserError, first_line
from ranksearch.pretrained import (
    Published,
    find_timm_weights,
    find_weights,
    import_timm,
    timm_published,
    torchvision_published,
)

# He et al. (2015) went up to 1,202.
DEEPEST = 1400


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
            raise SettingError("depth", depth, "is not 6n + 2 with an n of 1 or more: use 8, 14, 20, 32, 44, 56, ...")
        if depth > DEEPEST:
            raise SettingError("depth", depth, f"exceeds {DEEPEST}: lower it")
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
        num_classes: outputs; where the weights have another number, the last layer is made anew.
        weights: torchvision's name of the weights, or None for random ones.

    Raises:
        UserError: a name is unknown, or the weights cannot be downloaded.
    """
    known = list_models(module=torchvision.models)
    if architecture not in known:
        close = ", ".join(get_close_matches(architecture, known, n=3)) or "one of torchvision.models.list_models()"
        raise UserError(f"torchvision has no model '{architecture}': use {close}")
    if weights is None:
        # These two otherwise answer with several outputs while they train.
        several = architecture in ("googlenet", "inception_v3")
        extra = {"aux_logits": False, "init_weights": True} if several else {}
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
    if getattr(network, "aux_logits", False):  # of Inception, whose weights come with a second output
        network.aux_logits, network.AuxLogits = False, None  # type: ignore[assignment]  # as its builder does
    if num_classes != len(choice.meta["categories"]):
        _replace_head(network, len(choice.meta["categories"]), num_classes)
    return network


def _replace_head(network: nn.Module, old: int, new: int) -> None:
    """Make the last layer anew that gives an output for every class: a linear one, or in SqueezeNets a convolution."""
    heads = [
        (name, layer)
        for name, layer in network.named_modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == old)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == old)
    ]
    name, head = heads[-1]
    parent, _, child = name.rpartition(".")
    if isinstance(head, nn.Linear):
        fresh: nn.Module = nn.Linear(head.in_features, new)
    else:
        fresh = nn.Conv2d(head.in_channels, new, head.kernel_size)  # type: ignore[arg-type]  # two numbers
    setattr(network.get_submodule(parent), child, fresh)


def timm_classifier(architecture: str, num_classes: int, weights: str | None = None) -> nn.Module:
    """Build a classification network of timm (`pip install ranksearch[timm]`).

    Args:
        architecture: timm's name of it, without a tag.
        num_classes: outputs; where the weights have another number, timm makes the last layer anew.
        weights: the tag of the weights, such as ``a1_in1k``; ``"DEFAULT"`` for those that timm prefers; or None for
            random ones.

    Raises:
        UserError: timm is not installed, a name is unknown, or the weights cannot be downloaded.
    """
    timm = import_timm()
    known = timm.list_models()
    if architecture not in known:
        close = ", ".join(get_close_matches(architecture, known, n=3)) or "one of timm.list_models()"
        raise UserError(f"timm has no model '{architecture}': use {close}")
    name = architecture if weights is None else find_timm_weights(architecture, weights)
    try:
        network = timm.create_model(name, pretrained=weights is not None, num_classes=num_classes)
    except (OSError, RuntimeError) as error:  # huggingface_hub's errors are kinds of OSError
        if weights is None:
            raise
        reason = first_line(error)
        raise UserError(
            f"model.weights={weights} cannot be downloaded ({reason}): connect to the network, or give the file to "
            "model.checkpoint"
        ) from None
    assert isinstance(network, nn.Module)
    return network


def published(builder: Mapping[str, Any]) -> Published | None:
    """What the published weights of a builder were made for; None where it asks for none, or makes some other network.

    Args:
        builder: ``_target_`` and its arguments.

    Raises:
        UserError: there are no such weights.
    """
    if builder.get("weights") is None or not is_published(builder):
        return None
    ours = {torchvision_classifier.__name__: torchvision_published, timm_classifier.__name__: timm_published}
    look_up = ours[str(builder["_target_"]).rpartition(".")[2]]
    return look_up(builder["architecture"], builder["weights"])


def is_published(builder: Mapping[str, Any]) -> bool:
    """Whether a builder makes a network of torchvision's or timm's, whose ``weights`` name published ones."""
    ours = (torchvision_classifier, timm_classifier)
    return builder.get("_target_") in [f"{__name__}.{one.__name__}" for one in ours]

"""Classification networks of torchvision and timm."""

from difflib import get_close_matches
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, list_models

from ranksearch.errors import UserError, first_line
from ranksearch.models.pretrained import find_timm_weights, find_weights, import_timm


def torchvision_classifier(architecture: str, num_classes: int, weights: str | None = None) -> nn.Module:
    """Build a classification network from torchvision.

    Args:
        architecture: torchvision's name of the architecture.
        num_classes: number of outputs; if the weights have another number, the last layer is newly initialized.
        weights: torchvision's name of the weights; None for random weights.

    Raises:
        UserError: a name is unknown, or the weights cannot be downloaded.
    """
    names = list_models(module=torchvision.models)
    if architecture not in names:
        close = ", ".join(get_close_matches(architecture, names, n=3)) or "one of torchvision.models.list_models()"
        raise UserError(f"torchvision has no model '{architecture}': use {close}")
    if weights is None:
        # By default these two return auxiliary outputs in training mode.
        auxiliary = architecture in ("googlenet", "inception_v3")
        extra = {"aux_logits": False, "init_weights": True} if auxiliary else {}
        network: nn.Module = get_model(architecture, weights=None, num_classes=num_classes, **extra)
        return network
    choice = find_weights(architecture, weights)
    try:
        network = get_model(architecture, weights=choice)
    except (URLError, OSError, RuntimeError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / choice.url.rsplit("/", 1)[-1]
        advice = f"connect to the network, or put the file at {file}"
        raise UserError(f"model.builder.weights={weights} cannot be downloaded ({error}): {advice}") from None
    if getattr(network, "aux_logits", False):  # Inception's weights include an auxiliary output
        network.aux_logits, network.AuxLogits = False, None  # type: ignore[assignment]  # as its builder does
    if num_classes != len(choice.meta["categories"]):
        _replace_head(network, len(choice.meta["categories"]), num_classes)
    return network


def _replace_head(network: nn.Module, old: int, new: int) -> None:
    """Replace the last linear or convolutional layer with ``old`` outputs by a new one with ``new`` outputs."""
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    name, head = [(name, layer) for name, layer in layers if len(layer.weight) == old][-1]
    parent, _, child = name.rpartition(".")
    if isinstance(head, nn.Linear):
        fresh: nn.Module = nn.Linear(head.in_features, new)
    else:
        fresh = nn.Conv2d(head.in_channels, new, head.kernel_size)  # type: ignore[arg-type]  # a pair of integers
    setattr(network.get_submodule(parent), child, fresh)


def timm_classifier(architecture: str, num_classes: int, weights: str | None = None) -> nn.Module:
    """Build a classification network from timm (`pip install ranksearch[timm]`).

    Args:
        architecture: timm's name of the architecture, without a tag.
        num_classes: number of outputs; if the weights have another number, timm initializes a new last layer.
        weights: tag of the weights, such as ``a1_in1k``; ``"DEFAULT"`` for timm's default tag; None for random weights.

    Raises:
        UserError: timm is not installed, a name is unknown, or the weights cannot be downloaded.
    """
    timm = import_timm()
    names = timm.list_models()
    if architecture not in names:
        close = ", ".join(get_close_matches(architecture, names, n=3)) or "one of timm.list_models()"
        raise UserError(f"timm has no model '{architecture}': use {close}")
    name = architecture if weights is None else find_timm_weights(architecture, weights)
    try:
        network: nn.Module = timm.create_model(name, pretrained=weights is not None, num_classes=num_classes)
    except (OSError, RuntimeError) as error:  # huggingface_hub's errors are subclasses of OSError
        if weights is None:
            raise
        reason, advice = first_line(error), "connect to the network, or give the file to model.checkpoint"
        raise UserError(f"model.builder.weights={weights} cannot be downloaded ({reason}): {advice}") from None
    return network

"""Published weights: look-up by name, number of classes and image preprocessing."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn
from torchvision.models import WeightsEnum, get_model_weights

from ranksearch.errors import UserError


@dataclass(frozen=True)
class Published:
    """Number of classes and image preprocessing of published weights.

    Attributes:
        num_classes: number of outputs.
        images: image preprocessing: ``image_size`` in pixels, ``crop`` (the share of the shorter side that the central
            crop keeps), ``interpolation``, and each channel's ``mean`` and ``std`` on a scale of 0 to 1.
    """

    num_classes: int
    images: Mapping[str, Any]


@dataclass(frozen=True)
class Pretrained:
    """Origin of the dense network's initial weights.

    Attributes:
        source: published name or file of the weights; None if ranksearch knows of neither.
        fit: whether the weights have the data set's classes; otherwise the last layer is newly initialized.
        checksum: checksum of the file.
    """

    source: str | None = None
    fit: bool = False
    checksum: str | None = None


@dataclass(frozen=True)
class DenseModel:
    """A dense network as built, before any training by ranksearch.

    Attributes:
        network: the network.
        builder: ``_target_`` and arguments that rebuild the network without its weights.
        pretrained: origin of its weights.
    """

    network: nn.Module
    builder: Mapping[str, Any]
    pretrained: Pretrained


def find_weights(architecture: str, weights: str) -> WeightsEnum:
    """Look up torchvision's weights by name.

    Raises:
        UserError: the architecture has no weights of this name.
    """
    published = get_model_weights(architecture)
    choices = {choice.name: choice for choice in published if choice.meta.get("categories")}  # classifiers only
    choice = published.DEFAULT if choices and weights == "DEFAULT" else choices.get(weights)
    if isinstance(choice, WeightsEnum):
        return choice
    names = ", ".join(choices) or "null, as none are published"
    raise UserError(f"model.builder.weights={weights} is unknown for {architecture}: use {names}")


def import_timm() -> ModuleType:
    """Import timm, an optional dependency.

    Raises:
        UserError: timm is not installed.
    """
    try:
        import timm
    except ImportError:
        raise UserError("timm is not installed: pip install 'ranksearch[timm]'") from None
    return timm


def find_timm_weights(architecture: str, weights: str) -> str:
    """Return timm's full name of weights, ``architecture.tag``, or ``architecture`` alone for timm's default tag.

    Raises:
        UserError: the architecture has no weights of this tag, or timm is not installed.
    """
    tags = [name.partition(".")[2] for name in import_timm().list_pretrained(f"{architecture}.*")]
    if weights == "DEFAULT" and tags:
        return architecture  # timm resolves the bare name to its default tag
    if weights not in tags:
        names = ", ".join(tags) or "null, as none are published"
        raise UserError(f"model.builder.weights={weights} is unknown for {architecture}: use {names}")
    return f"{architecture}.{weights}"


def torchvision_published(architecture: str, weights: str) -> Published:
    """Return the number of classes and image preprocessing of torchvision's weights.

    Raises:
        UserError: the architecture has no weights of this name.
    """
    choice = find_weights(architecture, weights)
    prepared = choice.transforms()
    size = prepared.crop_size[0]
    images = {"image_size": size, "crop": size / prepared.resize_size[0], "interpolation": prepared.interpolation.value}
    images |= {"mean": list(prepared.mean), "std": list(prepared.std)}
    return Published(len(choice.meta["categories"]), images)


def timm_published(architecture: str, weights: str) -> Published:
    """Return the number of classes and image preprocessing of timm's weights.

    Raises:
        UserError: the architecture has no weights of this tag, or timm is not installed.
    """
    config = import_timm().get_pretrained_cfg(find_timm_weights(architecture, weights))
    interpolation = config.interpolation if config.interpolation in ("bilinear", "bicubic") else "bicubic"
    images = {"image_size": config.input_size[-1], "crop": config.crop_pct, "interpolation": interpolation}
    images |= {"mean": list(config.mean), "std": list(config.std)}
    return Published(config.num_classes, images)


# Builders whose ``weights`` name published ones -> function that looks these up.
PUBLISHERS = {
    "ranksearch.models.torchvision_classifier": torchvision_published,
    "ranksearch.models.timm_classifier": timm_published,
}


def published(builder: Mapping[str, Any]) -> Published | None:
    """Look up the number of classes and image preprocessing of a builder's published weights.

    Args:
        builder: ``_target_`` and arguments of the builder.

    Returns:
        None if the builder asks for no weights, or builds another kind of network.

    Raises:
        UserError: the weights do not exist, or timm is needed and not installed.
    """
    if builder.get("weights") is None or not is_published(builder):
        return None
    return PUBLISHERS[builder["_target_"]](builder["architecture"], builder["weights"])


def is_published(builder: Mapping[str, Any]) -> bool:
    """Return whether a builder makes a torchvision or timm network, whose ``weights`` name published ones."""
    return builder.get("_target_") in PUBLISHERS

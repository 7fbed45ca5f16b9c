"""Published weights: their names, and what they were made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torchvision.models import WeightsEnum, get_model_weights

from ranksearch.errors import UserError


@dataclass(frozen=True)
class Published:
    """What published weights were made for.

    Attributes:
        num_classes: outputs.
        images: how images were prepared: ``image_size`` in pixels, ``crop`` (the share of the shorter side that the
            central crop keeps), ``interpolation``, and each channel's ``mean`` and ``std`` on a scale of 0 to 1.
    """

    num_classes: int
    images: Mapping[str, Any]


@dataclass(frozen=True)
class Pretrained:
    """Weights that the dense network came with, before any training.

    Attributes:
        source: their published name, or their file; None where there are none that ranksearch knows of.
        fit: whether they were made for the data set's classes; otherwise the last layer is new.
        checksum: of the file.
    """

    source: str | None = None
    fit: bool = False
    checksum: str | None = None


def find_weights(architecture: str, weights: str) -> WeightsEnum:
    """Look up torchvision's weights by name.

    Raises:
        UserError: the architecture has no weights of this name.
    """
    published = get_model_weights(architecture)
    known = {choice.name: choice for choice in published if choice.meta.get("categories")}  # without: no classifier
    choice = published.DEFAULT if known and weights == "DEFAULT" else known.get(weights)
    if isinstance(choice, WeightsEnum):
        return choice
    names = ", ".join(known) or "null, for none are published"
    raise UserError(f"model.weights={weights} is unknown for {architecture}: use {names}")


def import_timm() -> ModuleType:
    """The module timm, which few need.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ImportError:
        raise UserError("timm is not installed: pip install 'ranksearch[timm]'") from None
    return timm


def find_timm_weights(architecture: str, weights: str) -> str:
    """Timm's full name of weights, ``architecture.tag``.

    Raises:
        UserError: the architecture has no weights of this tag, or timm is not installed.
    """
    tags = [name.partition(".")[2] for name in import_timm().list_pretrained(f"{architecture}.*")]
    if weights == "DEFAULT" and tags:
        return architecture  # for timm, the bare name stands for the tag that it prefers
    if weights not in tags:
        names = ", ".join(tags) or "null, for none are published"
        raise UserError(f"model.weights={weights} is unknown for {architecture}: use {names}")
    return f"{architecture}.{weights}"


def torchvision_published(architecture: str, weights: str) -> Published:
    """What torchvision's weights were made for.

    Raises:
        UserError: the architecture has no weights of this name.
    """
    choice = find_weights(architecture, weights)
    prepared = choice.transforms()
    size = prepared.crop_size[0]
    images = {
        "image_size": size,
        "crop": size / prepared.resize_size[0],
        "interpolation": prepared.interpolation.value,
        "mean": list(prepared.mean),
        "std": list(prepared.std),
    }
    return Published(len(choice.meta["categories"]), images)


def timm_published(architecture: str, weights: str) -> Published:
    """What timm's weights were made for.

    Raises:
        UserError: the architecture has no weights of this tag, or timm is not installed.
    """
    found = import_timm().get_pretrained_cfg(find_timm_weights(architecture, weights))
    images = {
        "image_size": found.input_size[-1],
        "crop": found.crop_pct,
        "interpolation": found.interpolation if found.interpolation in ("bilinear", "bicubic") else "bicubic",
        "mean": list(found.mean),
        "std": list(found.std),
    }
    return Published(found.num_classes, images)

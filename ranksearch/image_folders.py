"""Data sets of image files in folders, one folder a class, read as they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from ranksearch.datasets import Splits
from ranksearch.errors import SettingError, first_line
from ranksearch.image_files import load_image, require_images
from ranksearch.image_sets import stratified

# What ImageNet's images have, on a scale of 0 to 1, and what networks for them are trained with unless they say so.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def image_folder(
    root: str,
    validation_share: float,
    split_seed: int,
    train: str = "train",
    test: str | None = None,
    test_share: float = 0.2,
    image_size: int | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    workers: int | None = None,
    validation_images: int | None = None,
) -> Splits:
    """Folders of image files: ``<root>/<train>/<class>/*``, and where there is one, ``<root>/<test>/<class>/*``.

    The network is trained on random crops, mirrored at random, and calibrated on such crops; validation and test see
    the central one.

    Args:
        root: the folder that holds the others.
        validation_share: share of the training folder, 0 to 1.
        split_seed: of the stratified splits.
        train: the training folder's name.
        test: the test folder's name; None takes a share of the training folder.
        test_share: that share, 0 to 1.
        image_size: height and width of the crops; None for 224.
        crop: share of the shorter side that the central crop keeps; None for 0.875.
        interpolation: ``"bilinear"`` or ``"bicubic"``; None for the first.
        mean: taken from each of the three channels, on a scale of 0 to 1; None for ImageNet's.
        std: that each is divided by; None for ImageNet's.
        workers: processes that prepare batches; None for one a core, at most 16.
        validation_images: validation images at the most; None for all.

    Raises:
        SettingError: a folder is missing or holds no images, or a setting is out of its range.
        DataError: a file is no image, or damaged.
    """
    if validation_images is not None and validation_images < 1:
        raise SettingError("validation_images", validation_images, "is out of range: use 1 or more, or null for all")
    if test is not None and (Path(root) / test).resolve() == (Path(root) / train).resolve():
        raise SettingError("test", test, "is the training folder itself: name another, or null for a share of it")
    size = 224 if image_size is None else image_size
    mode = _interpolation(interpolation)
    shown = v2.Compose([v2.RandomResizedCrop(size, interpolation=mode), v2.RandomHorizontalFlip()])
    augmented = v2.Compose([shown, _to_tensor(mean, std)])
    centred = central_crop(size, crop, interpolation, mean, std)
    pool = _read(root, train, augmented)
    plain = _read(root, train, centred)
    require_images([file for file, _ in pool.samples])
    if len(pool.classes) < 2:
        raise SettingError("root", root, f"has one class alone in '{train}': give a folder for each of two or more")
    labels = np.asarray(pool.targets)
    index = np.arange(len(labels))
    if test is None:
        index, held_out = stratified(index, labels, test_share, split_seed, "test_share")
        tested: Any = Subset(plain, held_out.tolist())
    else:
        tested = _read(root, test, centred)
        require_images([file for file, _ in tested.samples])
        if tested.classes != pool.classes:
            advice = f"holds other class folders in '{test}' than in '{train}': make them the same"
            raise SettingError("root", root, advice)
    trained, validation = stratified(index, labels[index], validation_share, split_seed)
    return Splits(
        Subset(pool, trained.tolist()),
        Subset(plain, validation[:validation_images].tolist()),
        tested,
        num_classes=len(pool.classes),
        workers=min(16, _cores()) if workers is None else workers,
    )


def central_crop(
    image_size: int,
    crop: float | None = None,
    interpolation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Callable[[Any], Tensor]:
    """How an image is prepared for validation and test, see `image_folder`.

    Raises:
        SettingError: a setting is out of its range.
    """
    kept = 0.875 if crop is None else crop
    if not 0 < kept <= 1:
        raise SettingError("crop", kept, "is out of range: use a share above 0, at most 1")
    resized = v2.Resize(round(image_size / kept), _interpolation(interpolation))
    return v2.Compose([resized, v2.CenterCrop(image_size), _to_tensor(mean, std)])  # type: ignore[no-any-return]  # torchvision has no types


def _interpolation(name: str | None) -> InterpolationMode:
    try:
        return InterpolationMode(name or "bilinear")
    except ValueError:
        raise SettingError("interpolation", name, "is unknown: use bilinear or bicubic") from None


def _to_tensor(mean: Sequence[float] | None, std: Sequence[float] | None) -> v2.Compose:
    normalize = v2.Normalize(list(mean or IMAGENET_MEAN), list(std or IMAGENET_STD))
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalize])


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(root: str, split: str, transform: Callable[[Any], Any]) -> ImageFolder:
    folder = Path(root) / split
    if not folder.is_dir():
        advice = f"put the images into {folder}/<class>/, or point dataset.root at them"
        raise SettingError("root", root, f"lacks the folder '{split}': {advice}")
    try:
        found = ImageFolder(folder, transform, loader=load_image)
    except FileNotFoundError as error:
        advice = f"has no images in '{split}' ({first_line(error)}): put some into {folder}/<class>/"
        raise SettingError("root", root, advice) from None
    return found

"""Data sets of image files of any depth in folders, one folder per class, read as they are needed."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from ranksearch.data.builtin import stratified
from ranksearch.data.splits import Splits
from ranksearch.errors import DataError, SettingError, first_line, shorten

# Up to this many files are all checked before training; of more, an evenly spaced sample is, the rest when read.
LOOKED_AT = 50_000
# First bytes of JPEG, PNG and GIF files -> last bytes of intact ones.
WHOLE = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82", b"GIF8": b";"}
TAIL = 16
# Channel statistics of ImageNet on a scale of 0 to 1, the usual normalization of networks trained on it.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB.

    16-bit grayscale images are scaled down; floating-point images range from 0 to 1, or to 255 if a value exceeds 1.

    Raises:
        DataError: the file is no image, is damaged, or has a depth of unknown range; the message names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and about sizes, which raise errors when too large
            with Image.open(path) as image:
                image.load()
                return _as_rgb(image, path)
    except DataError:
        raise
    except Exception as error:  # a decoder may raise anything on a damaged file
        reason = shorten(first_line(error).replace(f"'{path}'", "it"), 120)
        raise DataError(f"{path} cannot be read as an image ({reason}): fix it, or remove it") from None


def _as_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image.convert("RGB")
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    limits = [1.0, 255.0] if image.mode == "F" else [255.0, 65535.0] if image.mode == "I" else [65535.0]
    limit = next((limit for limit in limits if high <= limit), None)
    if limit is None or not low >= 0:
        unclear = f"has values from {low:g} to {high:g}, a range that its mode {image.mode} does not define"
        raise DataError(f"{path} {unclear}: save it with 8 or 16 bits per channel")
    return Image.fromarray(np.rint(values * (255.0 / limit)).astype(np.uint8)).convert("RGB")


def require_images(files: Sequence[str | Path]) -> None:
    """Raise if a file is no image or is truncated; only files without the expected first and last bytes are decoded.

    Args:
        files: image files; of more than `LOOKED_AT`, an evenly spaced sample is checked.

    Raises:
        DataError: a file is no image or is truncated; the message names it.
    """
    step = len(files) // LOOKED_AT + 1
    for file in files[::step]:
        if not _looks_whole(file):
            load_image(file)


def _looks_whole(file: str | Path) -> bool:
    """Return whether a file has the first and last bytes of an intact JPEG, PNG or GIF."""
    try:
        with open(file, "rb") as content:
            head = content.read(TAIL)
            content.seek(0, 2)
            content.seek(max(content.tell() - TAIL, 0))
            tail = content.read()
    except OSError:
        return False
    return any(head.startswith(start) and tail.endswith(end) for start, end in WHOLE.items())


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
    """Load image folders: ``<root>/<train>/<class>/*`` and, if a test folder is named, ``<root>/<test>/<class>/*``.

    Training and calibration use random crops, mirrored at random; validation and test use the central crop.

    Args:
        root: parent folder of the training and test folders.
        validation_share: share of the training folder, 0 to 1.
        split_seed: seed of the stratified splits.
        train: name of the training folder.
        test: name of the test folder; None splits the test set off the training folder.
        test_share: share of the training folder to split off for the test, 0 to 1.
        image_size: height and width of the crops; None for 224.
        crop: share of the shorter side that the central crop keeps; None for 0.875.
        interpolation: ``"bilinear"`` or ``"bicubic"``; None for bilinear.
        mean: channel means to subtract, on a scale of 0 to 1; None for ImageNet's.
        std: channel standard deviations to divide by; None for ImageNet's.
        workers: number of processes that prepare batches; None for one per core, at most 16.
        validation_images: maximum number of validation images; None for all.

    Raises:
        SettingError: a folder is missing or has no images, or a setting is out of range.
        DataError: a file is no image, or is damaged.
    """
    if validation_images is not None and validation_images < 1:
        raise SettingError("validation_images", validation_images, "is out of range: use 1 or more, or null for all")
    if test is not None and (Path(root) / test).resolve() == (Path(root) / train).resolve():
        raise SettingError("test", test, "is the training folder itself: name another, or null for a share of it")
    size = 224 if image_size is None else image_size
    cropped = v2.RandomResizedCrop(size, interpolation=_interpolation(interpolation))
    augmented = v2.Compose([cropped, v2.RandomHorizontalFlip(), _to_tensor(mean, std)])
    centred = central_crop(size, crop, interpolation, mean, std)
    pool = _read(root, train, augmented)
    plain = _read(root, train, centred)
    require_images([file for file, _ in pool.samples])
    if len(pool.classes) < 2:
        raise SettingError("root", root, f"has only one class in '{train}': give a folder for each of two or more")
    labels = np.asarray(pool.targets)
    index = np.arange(len(labels))
    if test is None:
        index, held_out = stratified(index, labels, test_share, split_seed, "test_share")
        tested: Any = Subset(plain, held_out.tolist())
    else:
        tested = _read(root, test, centred)
        require_images([file for file, _ in tested.samples])
        if tested.classes != pool.classes:
            advice = f"has different class folders in '{test}' and '{train}': make them the same"
            raise SettingError("root", root, advice)
    trained, validation = stratified(index, labels[index], validation_share, split_seed)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Splits(
        Subset(pool, trained.tolist()),
        Subset(plain, validation[:validation_images].tolist()),
        tested,
        num_classes=len(pool.classes),
        workers=min(16, cores) if workers is None else workers,
    )


def central_crop(
    image_size: int,
    crop: float | None = None,
    interpolation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Callable[[Any], Tensor]:
    """Return the preprocessing of validation and test images; see `image_folder`.

    Raises:
        SettingError: a setting is out of range.
    """
    kept = 0.875 if crop is None else crop
    if not 0 < kept <= 1:
        raise SettingError("crop", kept, "is out of range: use a share above 0, at most 1")
    resized = v2.Resize(round(image_size / kept), _interpolation(interpolation))
    prepared: Callable[[Any], Tensor] = v2.Compose([resized, v2.CenterCrop(image_size), _to_tensor(mean, std)])
    return prepared


def _interpolation(name: str | None) -> InterpolationMode:
    try:
        return InterpolationMode(name or "bilinear")
    except ValueError:
        raise SettingError("interpolation", name, "is unknown: use bilinear or bicubic") from None


def _to_tensor(mean: Sequence[float] | None, std: Sequence[float] | None) -> v2.Compose:
    normalize = v2.Normalize(list(mean or IMAGENET_MEAN), list(std or IMAGENET_STD))
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalize])


def _read(root: str, split: str, transform: Callable[[Any], Any]) -> ImageFolder:
    folder = Path(root) / split
    if not folder.is_dir():
        advice = f"put the images into {folder}/<class>/, or point dataset.root at them"
        raise SettingError("root", root, f"lacks the folder '{split}': {advice}")
    try:
        return ImageFolder(folder, transform, loader=load_image)
    except FileNotFoundError as error:
        advice = f"has no images in '{split}' ({first_line(error)}): put some into {folder}/<class>/"
        raise SettingError("root", root, advice) from None

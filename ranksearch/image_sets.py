"""Small data sets that `conf/dataset` points at: held as tensors, each as three disjoint splits."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision import datasets as torchvision_datasets

from ranksearch.datasets import Examples, Splits
from ranksearch.errors import SettingError, UserError, first_line


def digits(
    image_size: int,
    validation_share: float,
    test_share: float,
    split_seed: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Splits:
    """scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, in 10 classes; nothing is downloaded.

    Args:
        image_size: height and width that the images are enlarged to.
        validation_share: share of all images, 0 to 1.
        test_share: share of all images, 0 to 1.
        split_seed: of the stratified split.
        mean: taken from each of the three channels, on a scale of 0 to 1; None for the training split's own.
        std: that each is divided by; None for the training split's own.

    Raises:
        UserError: the shares leave nothing to train on, or the size is below 8.
    """
    if image_size < 8:
        raise SettingError("image_size", image_size, "is below the 8 pixels of the originals: use 8 or more")
    if min(validation_share, test_share) <= 0 or validation_share + test_share >= 1:
        advice = f"and test_share={test_share} leave a split empty: use shares above 0 that sum to less than 1"
        raise SettingError("validation_share", validation_share, advice)
    from sklearn.datasets import load_digits  # which takes a second to import

    raw = load_digits()
    images = torch.from_numpy(np.asarray(raw.images, dtype=np.float32))[:, None] / 16
    labels = torch.from_numpy(np.asarray(raw.target, dtype=np.int64))
    images = _scaled(images, image_size)
    everything, left = np.arange(len(labels)), 1 - test_share
    rest, test = stratified(everything, labels.numpy(), test_share, split_seed, "test_share")
    train, validation = stratified(
        rest, labels.numpy()[rest], validation_share / left, split_seed, "validation_share", left
    )
    [images] = _normalized(images, train, mean, std)
    parts = [_held(images[index], labels[index]) for index in (train, validation, test)]
    return Splits(parts[0], parts[1], parts[2], num_classes=10)


# Where Debian's package dataset-fashion-mnist lays its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(
    root: str,
    image_size: int,
    validation_share: float,
    split_seed: int,
    validation_images: int | None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Splits:
    """Fashion-MNIST: 70,000 grey images of 28x28 pixels, in 10 classes (Xiao et al., 2017).

    The files are taken from ``root``, else from Debian's package, else they are downloaded; all are checked.

    Args:
        root: folder that holds ``FashionMNIST/raw``, or will.
        image_size: height and width that the images are scaled to.
        validation_share: share of the training set, 0 to 1.
        split_seed: of the stratified split.
        validation_images: validation images at the most; None for all.
        mean: taken from each of the three channels, on a scale of 0 to 1; None for the training split's own.
        std: that each is divided by; None for the training split's own.

    Raises:
        UserError: the files are not there and cannot be downloaded, or the share leaves a split empty.
    """
    kind = torchvision_datasets.FashionMNIST
    raw = Path(root) / "FashionMNIST" / "raw"
    files = [Path(name).with_suffix("").name for name, _ in kind.resources]
    try:
        for file in files:
            packed = DEBIAN_FASHION_MNIST / f"{file}.gz"
            if packed.exists() and not (raw / file).exists():
                raw.mkdir(parents=True, exist_ok=True)
                with gzip.open(packed) as content, (raw / file).open("wb") as unpacked:
                    shutil.copyfileobj(content, unpacked)
        train, test = (kind(root, train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"dataset.root={root} lacks Fashion-MNIST, and it cannot be downloaded ({first_line(error)}): "
            f"put {', '.join(f'{file}.gz' for file in files)} into {raw}"
        ) from None
    scaled = [_scaled(part.data[:, None].float() / 255, image_size) for part in (train, test)]
    trained, validation = stratified(np.arange(len(train)), train.targets.numpy(), validation_share, split_seed)
    index = trained, validation[:validation_images]
    parts = _parts(scaled, [train.targets, test.targets], index, mean, std)
    return Splits(*parts, num_classes=len(train.classes))


def cifar(
    classes: int,
    root: str,
    image_size: int,
    validation_share: float,
    split_seed: int,
    validation_images: int | None,
    augment: bool,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Splits:
    """CIFAR-10 or CIFAR-100: 60,000 colour images of 32x32 pixels (Krizhevsky, 2009).

    The files are taken from ``root``, else they are downloaded; either way they are checked.

    Args:
        classes: 10 or 100.
        root: folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``, or will.
        image_size: height and width that the images are scaled to.
        validation_share: share of the training set, 0 to 1.
        split_seed: of the stratified split.
        validation_images: validation images at the most; None for all.
        augment: whether training sees images shifted and mirrored at random; see `shift_and_mirror`.
        mean: taken from each channel, on a scale of 0 to 1; None for the training split's own.
        std: that each is divided by; None for the training split's own.

    Raises:
        UserError: the files are not there and cannot be downloaded, or the share leaves a split empty.
    """
    kinds = {10: torchvision_datasets.CIFAR10, 100: torchvision_datasets.CIFAR100}
    if classes not in kinds:
        raise SettingError("classes", classes, "is unknown: use 10 or 100")
    kind = kinds[classes]
    try:
        train, test = (kind(root, train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"dataset.root={root} lacks CIFAR-{classes}, and it cannot be downloaded ({first_line(error)}): "
            f"put {kind.filename} into it, or what that holds into {Path(root) / kind.base_folder}"
        ) from None
    labels = [torch.tensor(part.targets) for part in (train, test)]
    scaled = [
        _scaled(torch.from_numpy(part.data).permute(0, 3, 1, 2).float().div_(255), image_size) for part in (train, test)
    ]
    trained, validation = stratified(np.arange(len(train)), labels[0].numpy(), validation_share, split_seed)
    index = trained, validation[:validation_images]
    parts = _parts(scaled, labels, index, mean, std)
    return Splits(*parts, num_classes=classes, augment=shift_and_mirror if augment else None)


def shift_and_mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to an eighth of its size, zeros coming in, and mirror half of them.

    For images of 32 pixels these are the four of He et al. (2015), section 4.2.

    Args:
        images: `[B, C, H, W]`.
        generator: of the draws, on the CPU.
    """
    count, _, height, width = images.shape
    margin = (height // 8, width // 8)
    rows, columns = (
        torch.randint(2 * most + 1, (count, 1), generator=generator) + torch.arange(size)
        for most, size in zip(margin, (height, width), strict=True)
    )
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (margin[1], margin[1], margin[0], margin[0]))
    rows, columns = rows.to(images.device), columns.to(images.device)
    example = torch.arange(count, device=images.device)[:, None, None]
    moved = padded[example, :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
    return moved.permute(0, 3, 1, 2)


def _held(images: Tensor, labels: Tensor) -> Examples:
    return cast(Examples, TensorDataset(images, labels))


def _parts(
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    index: tuple[np.ndarray, np.ndarray],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[Examples, Examples, Examples]:
    """Train, validation and test of an official training set and test set, normalized; ``index`` splits the first."""
    known, held_out = _normalized(images[0], index[0], mean, std, held_out=images[1])
    train, validation = (_held(known[rows], labels[0][rows]) for rows in index)
    return train, validation, _held(held_out, labels[1])


def _normalized(
    images: Tensor,
    train: np.ndarray,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    held_out: Tensor | None = None,
) -> list[Tensor]:
    """Bring images to three channels of a mean and a spread, by default such that those to train on have 0 and 1."""
    if mean is None or std is None:
        channels = images[train].transpose(0, 1).flatten(1)
    center = channels.mean(1) if mean is None else torch.tensor(mean)
    spread = channels.std(1) if std is None else torch.tensor(std)
    return [
        ((part - center[:, None, None]) / spread[:, None, None]).expand(-1, 3, -1, -1)
        for part in ((images,) if held_out is None else (images, held_out))
    ]


def _scaled(images: Tensor, size: int) -> Tensor:
    if size < 1:
        raise SettingError("image_size", size, "is out of range: use 1 or more")
    _require_memory("image_size", size, len(images) * 3 * size * size)
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def _require_memory(key: str, value: int, numbers: int) -> None:
    """Raise if a setting asks for more images than this machine can hold.

    Raises:
        SettingError: it does.
    """
    held = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40
    if 4 * numbers > held:
        advice = f"makes {4 * numbers / 2**30:.0f} GiB of images, of {held / 2**30:.0f} GiB of memory: lower it"
        raise SettingError(key, value, advice)


def stratified(
    index: np.ndarray,
    labels: np.ndarray,
    share: float,
    split_seed: int,
    key: str = "validation_share",
    of_all: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Take a stratified share of examples away.

    Args:
        index: of the examples.
        labels: of each.
        share: of them, 0 to 1.
        split_seed: of the draw.
        key: of the setting that the share comes from, for the error.
        of_all: what the examples are of all that the setting is a share of.

    Returns:
        Indices of what stays, and of what is taken away.

    Raises:
        SettingError: the share leaves a split without some class.
    """
    from sklearn.model_selection import train_test_split  # which takes a second to import

    try:
        rest, taken = train_test_split(index, test_size=share, stratify=labels, random_state=split_seed)
    except ValueError as error:
        advice = f"cannot be split off ({first_line(error)}): use another share, or bring more images"
        raise SettingError(key, round(share * of_all, 6), advice) from None
    return rest, taken


def fake(image_size: int, num_classes: int, images: int, seed: int) -> Splits:
    """Made-up images, for smoke tests and for speed: a pattern of each class under noise.

    Args:
        image_size: height and width.
        num_classes: how many patterns.
        images: in all; half of them are trained on, a quarter each is for validation and test.
        seed: of patterns and noise.

    Raises:
        UserError: there are fewer images than four for each class.
    """
    if images < 4 * num_classes:
        raise SettingError("images", images, f"leave some class out: use {4 * num_classes} or more")
    if num_classes < 1:
        raise SettingError("num_classes", num_classes, "is out of range: use 1 or more")
    _require_memory("images", images, images * 3 * max(image_size, 1) ** 2)
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(num_classes, 3, 4, 4, generator=generator)
    labels = torch.arange(images) % num_classes
    found = _scaled(patterns, image_size)[labels]
    found += torch.randn(found.shape, generator=generator)
    ends = (0, images // 2, images - images // 4, images)
    parts = [_held(found[low:high], labels[low:high]) for low, high in pairwise(ends)]
    return Splits(parts[0], parts[1], parts[2], num_classes)

"""Data sets that `conf/dataset` points at, each as three disjoint splits. The only home of torchvision's data."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Subset, TensorDataset
from torchvision import datasets as torchvision_datasets
from torchvision.transforms import v2

from ranksearch.datasets import Examples, Splits
from ranksearch.errors import UserError


def digits(image_size: int, validation_share: float, test_share: float, split_seed: int) -> Splits:
    """scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, in 10 classes; nothing is downloaded.

    Args:
        image_size: height and width that the images are enlarged to.
        validation_share: share of all images, 0 to 1.
        test_share: share of all images, 0 to 1.
        split_seed: of the stratified split.

    Raises:
        UserError: the shares leave nothing to train on, or the size is below 8.
    """
    if image_size < 8:
        raise UserError(f"dataset.image_size={image_size} is below the 8 pixels of the originals: use 8 or more")
    if min(validation_share, test_share) <= 0 or validation_share + test_share >= 1:
        raise UserError(
            f"dataset.validation_share={validation_share} and test_share={test_share} leave a split empty: "
            "use shares above 0 that sum to less than 1"
        )
    raw = load_digits()
    images = torch.from_numpy(np.asarray(raw.images, dtype=np.float32))[:, None] / 16
    labels = torch.from_numpy(np.asarray(raw.target, dtype=np.int64))
    images = _scaled(images, image_size)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=test_share, stratify=labels.numpy(), random_state=split_seed
    )
    train, validation = _split(rest, labels.numpy()[rest], validation_share / (1 - test_share), split_seed)
    mean, deviation = images[train].mean(), images[train].std()
    images = ((images - mean) / deviation).expand(-1, 3, -1, -1).contiguous()

    def part(index: np.ndarray) -> Examples:
        return cast(Examples, TensorDataset(images[index], labels[index]))

    return Splits(part(train), part(validation), part(test), num_classes=10)


# Where Debian's package dataset-fashion-mnist lays its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(
    root: str, image_size: int, validation_share: float, split_seed: int, eval_images: int | None
) -> Splits:
    """Fashion-MNIST: 70,000 grey images of 28x28 pixels, in 10 classes (Xiao et al., 2017).

    The files are taken from ``root``, else from Debian's package, else they are downloaded; all are checked.

    Args:
        root: folder that holds ``FashionMNIST/raw``, or will.
        image_size: height and width that the images are scaled to.
        validation_share: share of the training set, 0 to 1.
        split_seed: of the stratified split.
        eval_images: validation images at the most; None for all.

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
            f"dataset.root={root} lacks Fashion-MNIST, and it cannot be downloaded ({str(error).splitlines()[0]}): "
            f"put {', '.join(f'{file}.gz' for file in files)} into {raw}"
        ) from None
    index, validation = _split(np.arange(len(train)), train.targets.numpy(), validation_share, split_seed)
    if eval_images is not None:
        validation = validation[:eval_images]
    scaled = [_scaled(part.data[:, None].float() / 255, image_size) for part in (train, test)]
    mean, deviation = scaled[0][index].mean(), scaled[0][index].std()
    images, held_out = (((part - mean) / deviation).expand(-1, 3, -1, -1) for part in scaled)

    def part(images: Tensor, labels: Tensor) -> Examples:
        return cast(Examples, TensorDataset(images, labels))

    return Splits(
        part(images[index], train.targets[index]),
        part(images[validation], train.targets[validation]),
        part(held_out, test.targets),
        num_classes=len(train.classes),
    )


def _scaled(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def _split(
    index: np.ndarray, labels: np.ndarray, validation_share: float, split_seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Take a stratified share of a training set away for validation."""
    try:
        train, validation = train_test_split(
            index, test_size=validation_share, stratify=labels, random_state=split_seed
        )
    except ValueError as error:
        raise UserError(f"dataset.validation_share={validation_share} cannot be split off ({error})") from None
    return train, validation


def imagenet(
    root: str,
    image_size: int,
    validation_share: float,
    split_seed: int,
    workers: int,
    eval_images: int | None,
) -> Splits:
    """ImageNet's folders, or any others laid out alike: ``train/<class>/*`` and ``val/<class>/*``.

    The official validation set is the test split; the validation split is taken from the training set.

    Args:
        root: the folder that holds ``train`` and ``val``.
        image_size: height and width of the crops.
        validation_share: share of the training set, 0 to 1.
        split_seed: of the stratified split.
        workers: processes that prepare batches.
        eval_images: validation images at the most; None for all.

    Raises:
        UserError: a folder is missing or holds no images.
    """
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, deviation)]
    augmented = v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(), *to_tensor])
    centred = v2.Compose([v2.Resize(image_size * 256 // 224), v2.CenterCrop(image_size), *to_tensor])
    augmented_train = _image_folder(root, "train", augmented)
    plain_train = _image_folder(root, "train", centred)
    test = _image_folder(root, "val", centred)
    if test.classes != plain_train.classes:
        raise UserError(f"dataset.root={root}: train and val hold different class folders: make them the same")
    targets = np.asarray(plain_train.targets)
    train, validation = _split(np.arange(len(plain_train)), targets, validation_share, split_seed)
    if eval_images is not None:
        validation = validation[:eval_images]
    return Splits(
        Subset(augmented_train, train.tolist()),
        Subset(plain_train, validation.tolist()),
        test,
        num_classes=len(plain_train.classes),
        workers=workers,
    )


def _image_folder(root: str, split: str, transform: Callable[[Any], Any]) -> torchvision_datasets.ImageFolder:
    folder = Path(root) / split
    if not folder.is_dir():
        raise UserError(
            f"dataset.root={root} lacks the folder '{split}': expected {folder}/<class>/<image>.JPEG; "
            "point dataset.root at the data set"
        )
    try:
        return torchvision_datasets.ImageFolder(folder, transform)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no images ({error}): expected {folder}/<class>/<image>.JPEG") from None


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
        raise UserError(f"dataset.images={images} leave some class out: use {4 * num_classes} or more")
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(num_classes, 3, 4, 4, generator=generator)
    labels = torch.arange(images) % num_classes
    found = _scaled(patterns, image_size)[labels]
    found += torch.randn(found.shape, generator=generator)
    ends = (0, images // 2, images - images // 4, images)
    parts = [cast(Examples, TensorDataset(found[low:high], labels[low:high])) for low, high in pairwise(ends)]
    return Splits(parts[0], parts[1], parts[2], num_classes)

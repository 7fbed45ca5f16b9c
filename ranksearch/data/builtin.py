"""Small built-in data sets for `conf/dataset`, held as tensors in three disjoint splits."""

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

from ranksearch.data.splits import Examples, Splits
from ranksearch.errors import SettingError, UserError, first_line

# Folder that Debian's package dataset-fashion-mnist installs to.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def digits(
    image_size: int,
    validation_share: float,
    test_share: float,
    split_seed: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Splits:
    """Load scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels in 10 classes, without a download.

    Args:
        image_size: height and width that the images are enlarged to.
        validation_share: share of all images, 0 to 1.
        test_share: share of all images, 0 to 1.
        split_seed: seed of the stratified split.
        mean: channel means to subtract, on a scale of 0 to 1; None for those of the training split.
        std: channel standard deviations to divide by; None for those of the training split.

    Raises:
        UserError: a share is out of range or leaves a split without some class, or the size is below 8.
    """
    if image_size < 8:
        raise SettingError("image_size", image_size, "is below the 8 pixels of the originals: use 8 or more")
    if min(validation_share, test_share) <= 0 or validation_share + test_share >= 1:
        advice = f"and test_share={test_share} leave a split empty: use shares above 0 that sum to less than 1"
        raise SettingError("validation_share", validation_share, advice)
    from sklearn.datasets import load_digits  # slow import

    raw = load_digits()
    images = _scaled(torch.from_numpy(np.asarray(raw.images, dtype=np.float32))[:, None] / 16, image_size)
    labels = torch.from_numpy(np.asarray(raw.target, dtype=np.int64))
    everything, remaining = np.arange(len(labels)), 1 - test_share
    rest, test = stratified(everything, labels.numpy(), test_share, split_seed, "test_share")
    train, validation = stratified(
        rest, labels.numpy()[rest], validation_share / remaining, split_seed, of_all=remaining
    )
    [images] = _normalized([images], train, mean, std)
    parts = [_held(images[index], labels[index]) for index in (train, validation, test)]
    return Splits(parts[0], parts[1], parts[2], num_classes=10)


def fashion_mnist(
    root: str,
    image_size: int,
    validation_share: float,
    split_seed: int,
    validation_images: int | None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Splits:
    """Load Fashion-MNIST: 70,000 grayscale images of 28x28 pixels in 10 classes (Xiao et al., 2017).

    The files are read from ``root``, copied from Debian's package, or downloaded; all are verified.

    Args:
        root: folder of ``FashionMNIST/raw``, which is created if needed.
        image_size: height and width that the images are scaled to.
        validation_share: share of the training set, 0 to 1.
        split_seed: seed of the stratified split.
        validation_images: maximum number of validation images; None for all.
        mean: channel means to subtract, on a scale of 0 to 1; None for those of the training split.
        std: channel standard deviations to divide by; None for those of the training split.

    Raises:
        UserError: the files are missing and cannot be downloaded, or the share leaves a split empty.
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
        lack = f"dataset.root={root} lacks Fashion-MNIST, and it cannot be downloaded ({first_line(error)})"
        raise UserError(f"{lack}: put {', '.join(f'{file}.gz' for file in files)} into {raw}") from None
    scaled = [_scaled(part.data[:, None].float() / 255, image_size) for part in (train, test)]
    trained, validation = stratified(np.arange(len(train)), train.targets.numpy(), validation_share, split_seed)
    labels = [train.targets, test.targets]
    parts = _parts(scaled, labels, (trained, validation[:validation_images]), mean, std)
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
    """Load CIFAR-10 or CIFAR-100: 60,000 color images of 32x32 pixels (Krizhevsky, 2009).

    The files are read from ``root`` or downloaded; either way they are verified.

    Args:
        classes: number of classes, 10 or 100.
        root: folder of ``cifar-10-batches-py`` or ``cifar-100-python``, which is created if needed.
        image_size: height and width that the images are scaled to.
        validation_share: share of the training set, 0 to 1.
        split_seed: seed of the stratified split.
        validation_images: maximum number of validation images; None for all.
        augment: whether training images are randomly shifted and mirrored; see `shift_and_mirror`.
        mean: channel means to subtract, on a scale of 0 to 1; None for those of the training split.
        std: channel standard deviations to divide by; None for those of the training split.

    Raises:
        UserError: the files are missing and cannot be downloaded, or the share leaves a split empty.
    """
    kind = {10: torchvision_datasets.CIFAR10, 100: torchvision_datasets.CIFAR100}.get(classes)
    if kind is None:
        raise SettingError("classes", classes, "is unknown: use 10 or 100")
    try:
        train, test = (kind(root, train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        lack = f"dataset.root={root} lacks CIFAR-{classes}, and it cannot be downloaded ({first_line(error)})"
        advice = f"put {kind.filename} into it, or its contents into {Path(root) / kind.base_folder}"
        raise UserError(f"{lack}: {advice}") from None
    labels = [torch.tensor(part.targets) for part in (train, test)]
    scaled = [
        _scaled(torch.from_numpy(part.data).permute(0, 3, 1, 2).float().div_(255), image_size) for part in (train, test)
    ]
    trained, validation = stratified(np.arange(len(train)), labels[0].numpy(), validation_share, split_seed)
    parts = _parts(scaled, labels, (trained, validation[:validation_images]), mean, std)
    return Splits(*parts, num_classes=classes, augment=shift_and_mirror if augment else None)


def shift_and_mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to an eighth of its size, with zero padding, and mirror half of them.

    For images of 32 pixels this is a shift of up to 4 pixels, as in He et al. (2015), section 4.2.

    Args:
        images: images `[B, C, H, W]`.
        generator: random generator on the CPU.
    """
    count, _, height, width = images.shape
    margin = (height // 8, width // 8)
    rows, columns = (
        torch.randint(2 * max_shift + 1, (count, 1), generator=generator) + torch.arange(size)
        for max_shift, size in zip(margin, (height, width), strict=True)
    )
    columns = torch.where(torch.rand(count, 1, generator=generator) < 0.5, columns.flip(1), columns)
    padded = F.pad(images, (margin[1], margin[1], margin[0], margin[0]))
    rows, columns = rows.to(images.device), columns.to(images.device)
    example = torch.arange(count, device=images.device)[:, None, None]
    return padded[example, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # from [B, H, W, C]


def _held(images: Tensor, labels: Tensor) -> Examples:
    return cast(Examples, TensorDataset(images, labels))


def _parts(
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    index: tuple[np.ndarray, np.ndarray],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[Examples, Examples, Examples]:
    """Return normalized train, validation and test splits; ``index`` splits the official training set in two."""
    normalized, held_out = _normalized(images, index[0], mean, std)
    train, validation = (_held(normalized[rows], labels[0][rows]) for rows in index)
    return train, validation, _held(held_out, labels[1])


def _normalized(
    images: Sequence[Tensor], train: np.ndarray, mean: Sequence[float] | None, std: Sequence[float] | None
) -> list[Tensor]:
    """Normalize images to three channels, by default with the statistics of the rows ``train`` of the first tensor."""
    if mean is None or std is None:
        channels = images[0][train].transpose(0, 1).flatten(1)
    center = channels.mean(1) if mean is None else torch.tensor(mean)
    spread = channels.std(1) if std is None else torch.tensor(std)
    return [((part - center[:, None, None]) / spread[:, None, None]).expand(-1, 3, -1, -1) for part in images]


def _scaled(images: Tensor, size: int) -> Tensor:
    if size < 1:
        raise SettingError("image_size", size, "is out of range: use 1 or more")
    _require_memory("image_size", size, len(images) * 3 * size * size)
    same = images.shape[-1] == size
    return images if same else F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def _require_memory(key: str, value: int, numbers: int) -> None:
    """Raise SettingError if a setting asks for more images than fit into this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40
    if 4 * numbers > memory:
        advice = f"needs {4 * numbers / 2**30:.0f} GiB for images, of {memory / 2**30:.0f} GiB of memory: lower it"
        raise SettingError(key, value, advice)


def stratified(
    index: np.ndarray,
    labels: np.ndarray,
    share: float,
    split_seed: int,
    key: str = "validation_share",
    of_all: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Split off a stratified share of examples.

    Args:
        index: indices of the examples.
        labels: label of each example.
        share: share to split off, 0 to 1.
        split_seed: seed of the split.
        key: name of the setting that holds the share, for the error message.
        of_all: fraction that these examples make up of those that the setting refers to.

    Returns:
        Indices of the remaining examples, and of those split off.

    Raises:
        SettingError: the share leaves a split without some class.
    """
    from sklearn.model_selection import train_test_split  # slow import

    try:
        rest, taken = train_test_split(index, test_size=share, stratify=labels, random_state=split_seed)
    except ValueError as error:
        advice = f"cannot be split off ({first_line(error)}): use another share, or add images"
        raise SettingError(key, round(share * of_all, 6), advice) from None
    return rest, taken


def fake(image_size: int, num_classes: int, images: int, seed: int) -> Splits:
    """Generate synthetic images for smoke tests and benchmarks: one pattern per class, with additive noise.

    Args:
        image_size: height and width.
        num_classes: number of classes.
        images: total number of images; half are for training, a quarter each for validation and test.
        seed: seed of patterns and noise.

    Raises:
        UserError: there are fewer than four images per class, or a setting is out of range.
    """
    if images < 4 * num_classes:
        raise SettingError("images", images, f"are too few for 4 of each class: use {4 * num_classes} or more")
    if num_classes < 1:
        raise SettingError("num_classes", num_classes, "is out of range: use 1 or more")
    _require_memory("images", images, images * 3 * max(image_size, 1) ** 2)
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(num_classes, 3, 4, 4, generator=generator)
    labels = torch.arange(images) % num_classes
    inputs = _scaled(patterns, image_size)[labels]
    inputs += torch.randn(inputs.shape, generator=generator)
    ends = (0, images // 2, images - images // 4, images)
    parts = [_held(inputs[low:high], labels[low:high]) for low, high in pairwise(ends)]
    return Splits(parts[0], parts[1], parts[2], num_classes)

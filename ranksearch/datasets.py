"""Data sets that `conf/dataset` points at, each as three disjoint splits. The only home of torchvision's data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import datasets as torchvision_datasets
from torchvision.transforms import v2

from ranksearch.errors import UserError

Examples = Dataset[tuple[Any, Any]]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Splits:
    """A data set, split once and for all.

    Attributes:
        train: to train, fine-tune and calibrate on.
        validation: to choose on.
        test: to report on, and for nothing else.
        num_classes: labels are 0 to ``num_classes - 1``.
        workers: processes that prepare batches; 0 prepares them in this one.
    """

    train: Examples
    validation: Examples
    test: Examples
    num_classes: int
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            examples = getattr(self, name)
            if length(examples) == 0:
                raise UserError(f"the {name} split is empty: give it examples")
            image = examples[0][0]
            if not isinstance(image, Tensor) or not image.is_floating_point():
                found = image.dtype if isinstance(image, Tensor) else type(image).__name__
                raise UserError(f"the images of the {name} split are {found}: give tensors of floats, [C, H, W]")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, `[C, H, W]`."""
        return tuple(self.train[0][0].shape)


def length(examples: Examples) -> int:
    """Number of examples of a split."""
    return len(cast(Sized, examples))


def batches(
    examples: Examples, size: int, device: torch.device, workers: int = 0, limit: int | None = None
) -> Iterator[Batch]:
    """Go once through a split, in order.

    Args:
        examples: the split.
        size: examples of a batch.
        device: where the batches go.
        workers: processes that prepare batches.
        limit: examples at the most, spread evenly over the split; None for all.

    Yields:
        Images `[B, C, H, W]` and labels `[B]`.
    """
    count = length(examples)
    if limit is not None and limit < count:
        examples = Subset(examples, [index * count // limit for index in range(limit)])
    yield from _loaded(DataLoader(examples, size, num_workers=workers), device)


def draw(examples: Examples, count: int, device: torch.device, seed: int, workers: int = 0) -> Tensor:
    """Inputs spread evenly over a split, `[count, ...]` or all there are, in an order drawn by the seed."""
    found = torch.cat([inputs for inputs, _ in batches(examples, 64, device, workers, limit=count)])
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).to(device)
    shuffled = found[order]
    return shuffled.contiguous(memory_format=torch.channels_last) if found.ndim == 4 else shuffled


def endless_batches(
    examples: Examples, size: int, device: torch.device, seed: int, workers: int = 0
) -> Iterator[Batch]:
    """Go through a split again and again, shuffled by the seed; the same seed gives the same batches.

    A last batch that is not full is left out, unless it is the only one.
    """
    full = length(examples) >= size
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(examples, size, shuffle=True, drop_last=full, num_workers=workers, generator=generator)
    while True:
        yield from _loaded(loader, device)


def _loaded(loader: DataLoader[tuple[Any, Any]], device: torch.device) -> Iterator[Batch]:
    for images, labels in loader:
        images = images.to(device, non_blocking=True)
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        yield images, labels.to(device, non_blocking=True)


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
    images = F.interpolate(images, size=(image_size, image_size), mode="bilinear", align_corners=False)
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=test_share, stratify=labels.numpy(), random_state=split_seed
    )
    train, validation = train_test_split(
        rest,
        test_size=validation_share / (1 - test_share),
        stratify=labels.numpy()[rest],
        random_state=split_seed,
    )
    mean, deviation = images[train].mean(), images[train].std()
    images = ((images - mean) / deviation).expand(-1, 3, -1, -1).contiguous()

    def part(index: np.ndarray) -> Examples:
        return cast(Examples, TensorDataset(images[index], labels[index]))

    return Splits(part(train), part(validation), part(test), num_classes=10)


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
    try:
        train, validation = train_test_split(
            np.arange(len(plain_train)),
            test_size=validation_share,
            stratify=plain_train.targets,
            random_state=split_seed,
        )
    except ValueError as error:
        raise UserError(f"dataset.validation_share={validation_share} cannot be split off ({error})") from None
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

"""A data set as three disjoint splits, validated, and access to splits held in memory."""

from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from ranksearch.errors import UserError

Examples = Dataset[tuple[Any, Any]]
Batch = tuple[Tensor, Tensor]
# Random augmentation of a batch of images `[B, C, H, W]`; the generator is on the CPU.
Augment = Callable[[Tensor, torch.Generator], Tensor]

# Maximum size of a split that is held in device memory.
HELD_BYTES = 2**30


@dataclass(frozen=True)
class Splits:
    """A data set with fixed train, validation and test splits.

    Attributes:
        train: examples for training, fine-tuning and calibration.
        validation: examples for model selection.
        test: examples for the final report only.
        num_classes: number of classes; labels are 0 to ``num_classes - 1``.
        workers: number of processes that prepare batches; 0 prepares them in the current process.
        augment: random augmentation of training images, batch by batch; None for none.
    """

    train: Examples
    validation: Examples
    test: Examples
    num_classes: int
    workers: int = 0
    augment: Augment | None = None

    def __post_init__(self) -> None:
        for key, minimum in (("num_classes", 1), ("workers", 0)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                advice = f"give a whole number from {minimum} up"
                raise UserError(f"{key} {value!r} of the data set is out of range: {advice}")
        if self.augment is not None and not callable(self.augment):
            raise UserError(f"augment {self.augment!r} of the data set cannot be called: give a function, or None")
        for name in ("train", "validation", "test"):
            examples = getattr(self, name)
            if length(examples) == 0:
                raise UserError(f"the {name} split is empty: give it examples")
            image = examples[0][0]
            if not isinstance(image, Tensor) or not image.is_floating_point():
                kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
                raise UserError(f"the images of the {name} split are {kind}: give tensors of floats, [C, H, W]")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, `[C, H, W]`."""
        return tuple(self.train[0][0].shape)


def length(examples: Examples) -> int:
    """Return the number of examples in a split."""
    return len(cast(Sized, examples))


def held_tensors(examples: Examples) -> tuple[Tensor, Tensor, list[int]] | None:
    """Return all images, all labels and the row indices of a split, or None unless it consists of two tensors."""
    if isinstance(examples, Subset):
        inner = held_tensors(examples.dataset)
        return inner and (*inner[:2], [inner[2][index] for index in examples.indices])
    if type(examples) is TensorDataset and len(examples.tensors) == 2:
        return (*examples.tensors, list(range(len(examples))))
    return None


def held_on(splits: Splits, device: torch.device) -> Splits:
    """Return the splits with those made of tensors, up to `HELD_BYTES` each, moved to a device.

    Args:
        splits: the splits; left unchanged.
        device: device that batches are used on.
    """

    def moved(examples: Examples) -> Examples:
        held = held_tensors(examples)
        if held is None or device.type == "cpu":
            return examples
        images, labels, rows = held
        if images[0].nbytes * len(rows) > HELD_BYTES:
            return examples
        return cast(Examples, TensorDataset(images[rows].to(device), labels[rows].to(device)))

    return replace(splits, train=moved(splits.train), validation=moved(splits.validation), test=moved(splits.test))

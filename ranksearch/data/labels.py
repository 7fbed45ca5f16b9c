"""Validation of labels and images of custom data sets: unambiguous labels are converted, others rejected."""

from dataclasses import replace
from numbers import Integral, Real
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from ranksearch.data.splits import Examples, Splits, held_tensors, length
from ranksearch.errors import DataError, UserError, first_line, shorten

# Maximum number of examples per split checked before training; the others are checked when they are read.
LOOKED_AT = 512


def checked(splits: Splits) -> Splits:
    """Return the splits with labels converted to integers from 0 to ``num_classes - 1``.

    Args:
        splits: splits of (image, label) pairs; further entries of an example are ignored.

    Raises:
        DataError: a label or an example is invalid; test splits that are read lazily are checked when read.
    """
    names = ("train", "validation", "test")
    shape = splits.input_shape
    for name in names[1:]:
        other = tuple(getattr(splits, name)[0][0].shape)
        if other != shape:
            mismatch = f"images of the {name} split have shape {list(other)}, those of the train split {list(shape)}"
            raise DataError(f"{mismatch}: give all one shape")
    parts = {name: _checked(getattr(splits, name), name, splits.num_classes) for name in names}
    for part in (parts["train"], parts["validation"]):
        if isinstance(part, _Checked):
            step = 1 if len(part) <= LOOKED_AT else len(part) // LOOKED_AT + 1
            for index in range(0, len(part), step):
                part[index]
    return replace(splits, train=parts["train"], validation=parts["validation"], test=parts["test"])


def _checked(examples: Examples, name: str, classes: int) -> Examples:
    inner = examples.dataset if isinstance(examples, Subset) else examples
    if hasattr(inner, "class_to_idx") and hasattr(inner, "samples"):  # of torchvision, which assigns the labels
        return examples
    held = held_tensors(examples)
    if held is None:
        return _Checked(examples, name, classes)
    images, labels, rows = held
    of_split = labels[rows]
    if not bool(torch.isfinite(images).all()):
        raise DataError(f"images of the {name} split have values that are not finite: remove them")
    whole = of_split.dtype == torch.int64 and of_split.ndim == 1
    if images.dtype == torch.float32 and whole and bool(((of_split >= 0) & (of_split < classes)).all()):
        return examples
    numbers = [as_label(label, name, row, classes) for row, label in zip(rows, of_split, strict=True)]
    return cast(Examples, TensorDataset(images[rows].float(), torch.tensor(numbers)))


class _Checked(Dataset[tuple[Any, Any]]):
    """Examples whose images and labels are validated when they are read."""

    def __init__(self, examples: Examples, name: str, classes: int) -> None:
        self.examples, self.name, self.classes = examples, name, classes
        self.shape = examples[0][0].shape

    def __len__(self) -> int:
        return length(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        where = f"example {index} of the {self.name} split"
        try:
            example: Any = self.examples[index]
        except UserError:
            raise
        except Exception as error:  # a custom data set may raise anything
            reason = shorten(f"{type(error).__name__}: {first_line(error)}", 160)
            raise DataError(f"{where} cannot be read ({reason}): fix it, or the data set") from error
        if not isinstance(example, tuple | list) or len(example) < 2:
            raise DataError(f"{where} is a {type(example).__name__}: give pairs of an image and a label")
        image, label = example[0], example[1]
        if not isinstance(image, Tensor) or not image.is_floating_point() or image.shape != self.shape:
            actual = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise DataError(f"the image of {where} is {actual}, not floats {list(self.shape)}: give all one shape")
        if not bool(torch.isfinite(image).all()):
            raise DataError(f"the image of {where} has values that are not finite: remove it")
        return image.float(), as_label(label, self.name, index, self.classes)


def as_label(label: Any, split: str, index: int, classes: int) -> int:
    """Convert a label to an integer.

    Args:
        label: an integral number of any type, alone or in a tensor of one entry; or a one-hot vector.
        split: name of the split, for the error message.
        index: index of the example, for the error message.
        classes: number of classes.

    Raises:
        DataError: the label is of another kind or out of range.
    """
    where = f"the label of example {index} of the {split} split"
    values = torch.as_tensor(label) if hasattr(label, "__array__") or isinstance(label, Tensor) else None
    if values is not None:
        if values.numel() == 1:
            label = values.reshape(()).item()
        elif values.shape == (classes,) and bool(((values == 0) | (values == 1)).all()) and int(values.sum()) == 1:
            label = int(values.argmax())
        else:
            raise DataError(f"{where} has shape {list(values.shape)}: give one whole number for each image")
    whole = isinstance(label, Integral) or (isinstance(label, Real) and float(label).is_integer())
    if not whole:
        raise DataError(f"{where} is {shorten(repr(label))}: give labels as whole numbers, 0 to {classes - 1}")
    number = int(label)
    if not 0 <= number < classes:
        raise DataError(f"{where} is {number}, of {classes} classes: give labels from 0 to {classes - 1}")
    return number

"""Labels are taken for what they plainly mean, or refused with the example that has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, TensorDataset

from ranksearch.data.labels import as_label, checked
from ranksearch.data.splits import Splits
from ranksearch.errors import DataError, UserError

MEANT = {
    "int": lambda label: label,
    "float": float,
    "bool of two": lambda label: label,
    "numpy": np.int32,
    "numpy array": lambda label: np.array([label]),
    "int32": lambda label: torch.tensor(label, dtype=torch.int32),
    "uint8": lambda label: torch.tensor(label, dtype=torch.uint8),
    "shape 1": lambda label: torch.tensor([label]),
    "float tensor": lambda label: torch.tensor(float(label)),
    "one-hot": lambda label: torch.eye(10)[label],
}


@given(st.sampled_from(list(MEANT)), st.integers(0, 9))
def test_what_is_plainly_meant_is_taken(kind: str, label: int) -> None:
    assert as_label(MEANT[kind](label), "train", 3, 10) == label


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (10, "is 10, of 10 classes: give labels from 0 to 9"),
        (-1, "is -1, of 10 classes"),
        (2.5, r"is 2\.5: give labels as whole numbers"),
        ("3", r"is '3': give labels as whole numbers"),
        (None, "is None: give labels"),
        (float("nan"), "is nan: give labels"),
        (float("inf"), "is inf: give labels"),
        (torch.tensor(11), "is 11, of 10 classes"),
        (torch.zeros(10), r"has shape \[10\]: give one whole number"),
        (torch.ones(10), r"has shape \[10\]"),
        (torch.zeros(3), r"has shape \[3\]"),
        ("x" * 500, r"is 'x+ \.\.\. x+'"),
    ],
)
def test_everything_else_is_refused_with_its_example(label: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"the label of example 7 of the train split {said}"):
        as_label(label, "train", 7, 10)


class Examples(Dataset[tuple[Any, Any]]):
    def __init__(self, example: Any) -> None:
        self.example = example

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return self.example(index)


def image(index: int, size: int = 8) -> torch.Tensor:
    return torch.full((3, size, size), float(index))


def test_examples_are_looked_at_before_training() -> None:
    good = Examples(lambda index: (image(index), index % 10, "path"))
    splits = checked(Splits(good, good, good, 10))
    assert [splits.train[index][1] for index in range(20)] == [index % 10 for index in range(20)]
    assert len(splits.validation[0]) == 2
    for wrong, said in {
        "label": (lambda index: (image(index), index), "the label of example 10 of the train split is 10"),
        "size": (lambda index: (image(index, 9 if index == 4 else 8), 0), r"the image of example 4 .* is \[3, 9, 9\]"),
        "kind": (lambda index: image(index) if index == 2 else (image(index), 0), "example 2 of the .* is a Tensor"),
    }.values():
        with pytest.raises(DataError, match=said):
            checked(Splits(Examples(wrong), good, good, 10))


def test_held_tensors_are_looked_at_as_a_whole_and_stay_what_they_are_where_they_are_right() -> None:
    images, labels = torch.randn(20, 3, 8, 8), torch.arange(20) % 10
    right = TensorDataset(images, labels)
    assert checked(Splits(right, right, right, 10)).train is right
    narrow = TensorDataset(images, labels.to(torch.uint8)[:, None])
    found = checked(Splits(narrow, right, right, 10)).train
    assert torch.equal(found.tensors[1], labels)
    with pytest.raises(DataError, match="the label of example 9 of the train split is 9, of 9 classes"):
        checked(Splits(right, right, right, 9))


def test_what_a_data_set_raises_or_gives_is_named_with_its_example() -> None:
    good = Examples(lambda index: (image(index), 0))
    for wrong, said in {
        "late": (
            lambda index: (image(index // (index != 3)), 0),
            r"example 3 of the train split cannot be read \(Zero",
        ),
        "nan": (
            lambda index: (image(index) * float("nan" if index == 5 else 1), 0),
            "the image of example 5 .* finite",
        ),
    }.values():
        with pytest.raises(DataError, match=said):
            checked(Splits(Examples(wrong), good, good, 10))
    wide = Examples(lambda index: (torch.zeros(1, 8, 8), 0))
    with pytest.raises(
        DataError, match=r"images of the test split have shape \[1, 8, 8\], those of the train split \[3, 8, 8\]"
    ):
        checked(Splits(good, good, wide, 10))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_other_floats_become_float32(dtype: torch.dtype) -> None:
    held = TensorDataset(torch.ones(20, 3, 8, 8, dtype=dtype), torch.zeros(20, dtype=torch.long))
    read = Examples(lambda index: (image(index).to(dtype), 0))
    for examples in (held, read):
        assert checked(Splits(examples, examples, examples, 10)).train[0][0].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": -1}, "workers -1 of the data set is out of range: give a whole number from 0 up"),
        ({"num_classes": "4"}, "num_classes '4' of the data set is out of range"),
        ({"num_classes": 0}, "num_classes 0 of the data set"),
        ({"augment": 5}, "augment 5 of the data set cannot be called: give a function, or None"),
    ],
)
def test_splits_of_impossible_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    good = Examples(lambda index: (image(index), 0))
    with pytest.raises(UserError, match=said):
        Splits(good, good, good, **{"num_classes": 10, **settings})

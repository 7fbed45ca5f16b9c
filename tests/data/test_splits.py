"""Splits are disjoint, stratified and fixed by their seed."""

from __future__ import annotations

import dataclasses
import gzip
import pickle
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, Subset

import ranksearch.data.builtin
from ranksearch.data.builtin import cifar, digits, fake, fashion_mnist, shift_and_mirror
from ranksearch.data.loaders import batches, draw, endless_batches
from ranksearch.data.splits import Examples, Splits, held_on, held_tensors, length
from ranksearch.errors import UserError

CPU = torch.device("cpu")


def fingerprints(examples: Examples) -> set[bytes]:
    return {examples[index][0].numpy().tobytes() for index in range(length(examples))}


def test_splits_are_disjoint_and_complete(splits: Splits) -> None:
    parts = [fingerprints(part) for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797


def test_splits_are_stratified(splits: Splits) -> None:
    for part in (splits.train, splits.validation, splits.test):
        counts = Counter(int(part[index][1]) for index in range(length(part)))
        assert len(counts) == 10
        assert max(counts.values()) - min(counts.values()) <= 0.1 * length(part) / 10 + 2


def test_the_split_follows_its_seed_and_nothing_else() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # the legacy state is the one that must not matter
    first, second, other = (digits(8, 0.2, 0.2, seed) for seed in (5, 5, 6))
    assert fingerprints(first.test) == fingerprints(second.test)
    assert fingerprints(first.test) != fingerprints(other.test)


def test_shuffled_batches_repeat_by_seed_and_are_full(splits: Splits) -> None:
    first, second, other = (list(islice(endless_batches(splits.train, 64, CPU, seed), 20)) for seed in (0, 0, 1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    assert {len(images) for images, _ in first} == {64}


def test_a_limit_spreads_over_the_split(splits: Splits) -> None:
    labels = torch.cat([labels for _, labels in batches(splits.train, 16, CPU, limit=50)])
    assert len(labels) == 50
    assert len(set(labels.tolist())) > 5


@pytest.mark.parametrize("wrong", [{"image_size": 4}, {"validation_share": 0.0}, {"test_share": 0.9}])
def test_impossible_splits_are_refused(wrong: dict[str, float]) -> None:
    settings = {"image_size": 8, "validation_share": 0.2, "test_share": 0.2, "split_seed": 0} | wrong
    with pytest.raises(UserError, match=next(iter(wrong))):
        digits(**settings)


@given(st.integers(1, 6), st.sampled_from([(8, 8), (16, 8), (32, 24)]), st.integers(0, 2**16))
def test_shifted_and_mirrored_images_are_windows_of_the_padded_ones(
    count: int, size: tuple[int, int], seed: int
) -> None:
    height, width = size
    images = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    drawn, again = (shift_and_mirror(images, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(drawn, again)
    padded = torch.nn.functional.pad(images, (width // 8, width // 8, height // 8, height // 8))
    for image, wide in zip(drawn, padded, strict=True):
        windows = wide.unfold(1, height, 1).unfold(2, width, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert any(torch.equal(image, window) or torch.equal(image, window.flip(-1)) for window in windows)


def test_only_training_sees_images_changed_at_random(splits: Splits) -> None:
    ours = next(endless_batches(splits.train, 32, CPU, 3, augment=shift_and_mirror))
    plain = next(endless_batches(splits.train, 32, CPU, 3))
    assert torch.equal(ours[1], plain[1])
    assert not torch.equal(ours[0], plain[0])
    assert torch.equal(ours[0], shift_and_mirror(plain[0], torch.Generator().manual_seed(3)))


class Plain(Dataset[tuple[Any, Any]]):
    """The same examples, which nothing knows to be tensors."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return length(self.examples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.examples[index]


@pytest.mark.parametrize("size", [7, 64, 5000])
def test_held_tensors_give_the_batches_of_any_other_data_set(size: int, splits: Splits) -> None:
    some = Subset(splits.train, range(0, length(splits.train), 3))
    for examples in (splits.train, some):
        assert held_tensors(examples) is not None
        assert held_tensors(Plain(examples)) is None
        for ours, theirs in (
            (batches(examples, size, CPU), batches(Plain(examples), size, CPU)),
            (
                islice(endless_batches(examples, size, CPU, 3), 30),
                islice(endless_batches(Plain(examples), size, CPU, 3), 30),
            ),
        ):
            for (images, labels), (others, their_labels) in zip(ours, theirs, strict=True):
                assert torch.equal(images, others)
                assert torch.equal(labels, their_labels)
        assert torch.equal(draw(examples, 50, CPU, 1), draw(Plain(examples), 50, CPU, 1))


def test_small_sets_of_tensors_are_held_on_the_device(splits: Splits) -> None:
    assert held_on(splits, CPU) == splits
    meta = torch.device("meta")
    plain = dataclasses.replace(splits, test=Plain(splits.test))
    moved = held_on(plain, meta)
    assert moved.train[0][0].device == meta
    assert length(moved.train) == length(splits.train)
    assert moved.test is plain.test


def test_fake_images_are_those_of_their_seed_and_hold_every_class() -> None:
    first, second, other = (fake(16, 7, 64, seed) for seed in (0, 0, 1))
    assert fingerprints(first.train) == fingerprints(second.train)
    assert fingerprints(first.train) != fingerprints(other.train)
    assert (length(first.train), length(first.validation), length(first.test)) == (32, 16, 16)
    assert first.input_shape == (3, 16, 16)
    for part in (first.train, first.validation, first.test):
        assert {int(part[index][1]) for index in range(length(part))} == set(range(7))
    with pytest.raises(UserError, match="images=20 are too few for 4 of each class: use 28 or more"):
        fake(16, 7, 20, 0)


def idx(values: np.ndarray) -> bytes:
    """An array of bytes as the files of MNIST hold it."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">i4").tobytes() + values.tobytes()


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of Fashion-MNIST's layout, few images."""
    folder, draw = tmp_path / "packed", np.random.default_rng(0)
    folder.mkdir()
    for name, count in (("train", 200), ("t10k", 50)):
        images = draw.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    monkeypatch.setattr(ranksearch.data.builtin, "DEBIAN_FASHION_MNIST", folder)
    return folder


def test_fashion_mnist_keeps_its_test_set_and_splits_the_rest(packed: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "data")
    splits = fashion_mnist(root, 28, 0.2, 0, None)
    assert (length(splits.train), length(splits.validation), length(splits.test)) == (160, 40, 50)
    assert splits.input_shape == (3, 28, 28)
    parts = [fingerprints(part) for part in (splits.train, splits.validation, splits.test)]
    assert len(set.union(*parts)) == 250
    for part in (splits.train, splits.validation):
        assert set(Counter(int(part[index][1]) for index in range(length(part))).values()) == {length(part) // 10}
    images = torch.stack([splits.train[index][0] for index in range(160)])
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    shutil.rmtree(packed)  # what was unpacked is enough from now on
    bounded = fashion_mnist(root, 32, 0.2, 0, 10)
    assert (bounded.input_shape, length(bounded.validation)) == ((3, 32, 32), 10)


def test_fashion_mnist_that_cannot_be_had_says_what_to_put_where(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    shutil.rmtree(packed)
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"root=.*: put train-images-idx3-ubyte.gz, .* into .*FashionMNIST/raw"):
        fashion_mnist(str(tmp_path / "data"), 28, 0.2, 0, None)


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of CIFAR's layout, few images, which torchvision takes for whole."""
    draw, root = np.random.default_rng(0), tmp_path / "data"
    for kind, key in ((torchvision.datasets.CIFAR10, "labels"), (torchvision.datasets.CIFAR100, "fine_labels")):
        folder, classes = root / kind.base_folder, 10 if key == "labels" else 100
        folder.mkdir(parents=True)
        for name, _ in kind.train_list + kind.test_list:
            count = 2 * classes
            entry = {
                "data": draw.integers(0, 256, (count, 3072)).astype(np.uint8),
                key: [index % classes for index in range(count)],
            }
            (folder / name).write_bytes(pickle.dumps(entry))
        names = {kind.meta["key"]: [str(index) for index in range(classes)]}
        (folder / kind.meta["filename"]).write_bytes(pickle.dumps(names))
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
        monkeypatch.setattr(kind, "_load_meta", lambda self: None)
    return root


@pytest.mark.parametrize(("classes", "sizes"), [(10, (80, 20, 20)), (100, (100, 100, 200))])
def test_cifar_keeps_its_test_set_and_splits_the_rest(
    small_cifar: Path, classes: int, sizes: tuple[int, int, int]
) -> None:
    settings: dict[str, Any] = {"image_size": 32, "split_seed": 0, "validation_images": None, "augment": True}
    splits = cifar(classes, str(small_cifar), validation_share=sizes[1] / (sizes[0] + sizes[1]), **settings)
    assert (length(splits.train), length(splits.validation), length(splits.test)) == sizes
    assert splits.num_classes == classes
    assert splits.input_shape == (3, 32, 32)
    assert splits.augment is shift_and_mirror
    images = torch.stack([splits.train[index][0] for index in range(sizes[0])])
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(images.std((0, 2, 3)), torch.ones(3), atol=1e-3)
    plain = cifar(classes, str(small_cifar), validation_share=0.5, mean=[0.0] * 3, std=[1.0] * 3, **settings)
    assert 0 <= plain.test[0][0].min() < plain.test[0][0].max() <= 1
    with pytest.raises(UserError, match="classes=11 is unknown: use 10 or 100"):
        cifar(11, str(small_cifar), validation_share=0.5, **settings)


def test_cifar_that_cannot_be_had_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"root=.* put cifar-100-python.tar.gz into it, or .*cifar-100-python$"):
        cifar(100, str(tmp_path), 32, 0.1, 0, None, True)

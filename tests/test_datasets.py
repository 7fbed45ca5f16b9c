"""Splits are disjoint, stratified and fixed by their seed."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ranksearch.datasets import Examples, Splits, batches, digits, endless_batches, imagenet, length
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
        digits(**settings)  # type: ignore[arg-type]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3)):
        for label in ("n01440764", "n01443537"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{index}.JPEG")
    return tmp_path


def read(root: Path, **more: object) -> Splits:
    settings = {"image_size": 32, "validation_share": 0.2, "split_seed": 0, "workers": 0, "eval_images": None} | more
    return imagenet(str(root), **settings)  # type: ignore[arg-type]


def test_imagenet_folders_keep_the_official_validation_set_for_the_test(folders: Path) -> None:
    splits = read(folders)
    assert (length(splits.train), length(splits.validation), length(splits.test)) == (16, 4, 6)
    assert splits.input_shape == (3, 32, 32)
    assert splits.num_classes == 2
    assert set(splits.train.indices).isdisjoint(splits.validation.indices)  # type: ignore[attr-defined]
    assert length(read(folders, eval_images=3).validation) == 3


def test_missing_folders_say_what_is_expected_where(tmp_path: Path, folders: Path) -> None:
    with pytest.raises(UserError, match=r"lacks the folder 'train': expected .*<class>/<image>.JPEG"):
        read(tmp_path / "nowhere")
    for file in (folders / "val" / "n01440764").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="holds no images"):
        read(folders)

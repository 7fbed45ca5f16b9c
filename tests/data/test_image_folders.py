"""Images in folders: what is kept for which split, and how it is prepared."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU
from PIL import Image
from torchvision.transforms import v2

from ranksearch.data.image_folders import image_folder
from ranksearch.data.loaders import batches, endless_batches
from ranksearch.data.splits import Splits, length
from ranksearch.errors import UserError


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
    settings = {"image_size": 32, "validation_share": 0.2, "split_seed": 0, "workers": 0, "test": "val"} | more
    return image_folder(str(root), **settings)


def test_folders_keep_the_official_validation_set_for_the_test(folders: Path) -> None:
    splits = read(folders)
    assert (length(splits.train), length(splits.validation), length(splits.test)) == (16, 4, 6)
    assert splits.input_shape == (3, 32, 32)
    assert splits.num_classes == 2
    assert set(splits.train.indices).isdisjoint(splits.validation.indices)
    assert length(read(folders, validation_images=3).validation) == 3


def test_without_a_test_folder_a_share_of_the_training_folder_is_kept_for_it(folders: Path) -> None:
    splits = read(folders, test=None, test_share=0.25)
    parts = [set(part.indices) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [12, 3, 5]
    assert set.union(*parts) == set(range(20))


def test_images_are_prepared_as_they_are_asked_to_be(folders: Path) -> None:
    as_they_are = read(folders, mean=[0.0] * 3, std=[1.0] * 3).test[0][0]
    assert torch.allclose(
        read(folders, mean=[0.5] * 3, std=[0.25] * 3).test[0][0], (as_they_are - 0.5) / 0.25, atol=1e-5
    )
    assert read(folders, image_size=None).input_shape == (3, 224, 224)
    whole = read(folders, crop=1.0, mean=[0.0] * 3, std=[1.0] * 3).test[0][0]
    path = sorted((folders / "val" / "n01440764").iterdir())[0]
    expected = v2.functional.center_crop(v2.functional.resize(Image.open(path), [32]), [32])
    assert torch.allclose(whole, v2.functional.to_image(expected).float() / 255, atol=1e-5)
    for wrong, said in (
        ({"crop": 1.5}, "crop=1.5 is out"),
        ({"interpolation": "cubic"}, "interpolation=cubic is unknown"),
    ):
        with pytest.raises(UserError, match=said):
            read(folders, **wrong)


def test_random_crops_follow_the_seed_with_any_number_of_workers(folders: Path) -> None:
    """Also whatever else was drawn in between, as dropout does."""
    splits, found = read(folders), []
    for seed, workers in ((1, 0), (1, 0), (1, 2), (2, 0)):
        torch.manual_seed(len(found))
        batches_of = endless_batches(splits.train, 5, CPU, seed, workers)
        found.append(torch.stack([next(batches_of)[0] for _ in range(7)]))
    first, again, with_workers, other = found
    assert torch.equal(first, again)
    assert torch.equal(first, with_workers)
    assert not torch.equal(first, other)
    assert len({image.numpy().tobytes() for image in first.flatten(0, 1)}) == 35  # each time another crop
    calibrating = [torch.cat([images for images, _ in batches(splits.train, 5, CPU, count)]) for count in (0, 2)]
    assert torch.equal(*calibrating)


def test_missing_folders_say_what_is_expected_where(tmp_path: Path, folders: Path) -> None:
    with pytest.raises(UserError, match=r"lacks the folder 'train': put the images into .*/train/<class>/"):
        read(tmp_path / "nowhere")
    for file in (folders / "val" / "n01440764").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"has no images in 'val' .*: put some into"):
        read(folders)


def test_splits_that_would_share_images_or_have_one_class_are_refused(folders: Path) -> None:
    for wrong, said in (
        ({"test": "train"}, "test=train is the training folder itself: name another"),
        ({"test": "val/../train"}, "is the training folder itself"),
        ({"validation_images": 0}, "validation_images=0 is out of range: use 1 or more"),
        ({"validation_images": -3}, "validation_images=-3 is out of range"),
    ):
        with pytest.raises(UserError, match=said):
            read(folders, **wrong)
    shutil.rmtree(folders / "train" / "n01440764")
    with pytest.raises(UserError, match="has only one class in 'train': give a folder for each of two or more"):
        read(folders, test=None)

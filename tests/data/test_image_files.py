"""Images of any depth look like their 8-bit copies, and files that are none are named before training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ranksearch.data.image_folders import image_folder, load_image, require_images
from ranksearch.data.loaders import batches
from ranksearch.errors import DataError, UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
DEPTHS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "8 bits": (".png", lambda pixels: pixels),
    "16 bits": (".png", lambda pixels: pixels.astype(np.uint16) * 257),
    "16 bits, TIFF": (".tiff", lambda pixels: pixels.astype(np.uint16) * 257),
    "32 bits of 16": (".tiff", lambda pixels: pixels.astype(np.int32) * 257),
    "32 bits of 8": (".tiff", lambda pixels: pixels.astype(np.int32)),
    "floats to 1": (".tiff", lambda pixels: (pixels / 255).astype(np.float32)),
    "floats to 255": (".tiff", lambda pixels: pixels.astype(np.float32)),
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_gives_the_8_bit_picture(depth: str, tmp_path: Path) -> None:
    suffix, change = DEPTHS[depth]
    Image.fromarray(change(PIXELS)).save(tmp_path / f"image{suffix}")
    image = load_image(tmp_path / f"image{suffix}")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.repeat(PIXELS[..., None], 3, 2))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_all_other_modes_are_converted_as_pillow_does(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(PIXELS[..., None], 3, 2)).convert(mode)
    image.save(tmp_path / "image.tiff")
    assert np.array_equal(np.asarray(load_image(tmp_path / "image.tiff")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("values", [[[-1.0, 0.5]], [[0.0, 1000.0]], [[0, 70000]], [[float("nan"), 0.0]]])
def test_a_range_that_nobody_can_know_is_refused(values: list[list[float]], tmp_path: Path) -> None:
    kind = np.int32 if isinstance(values[0][1], int) else np.float32
    Image.fromarray(np.array(values, dtype=kind)).save(tmp_path / "image.tiff")
    with pytest.raises(DataError, match=r"image\.tiff has values from .*: save it with 8 or 16 bits"):
        load_image(tmp_path / "image.tiff")


@given(st.binary(max_size=200), st.sampled_from([".png", ".jpg", ".gif", ".bmp", ".webp"]))
def test_what_is_no_image_is_named(content: bytes, suffix: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"file{suffix}")
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"file\{suffix} cannot be read as an image \(.*\): fix it"):
            load_image(file)
        with pytest.raises(DataError, match="cannot be read"):
            require_images([file])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff"])
@pytest.mark.parametrize("share", [0.6, pytest.param(0.95, marks=pytest.mark.slow)])
def test_a_file_that_was_cut_off_is_named_before_training_and_a_whole_one_is_taken(
    share: float, suffix: str, tmp_path: Path
) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(picture).save(tmp_path / "train" / label / f"{number}{suffix}")
    splits = image_folder(str(tmp_path), 0.2, 0, image_size=16, workers=0)
    assert len(splits.train[0][0]) == 3
    whole = (tmp_path / "train" / "a" / f"3{suffix}").read_bytes()
    (tmp_path / "train" / "a" / f"cut{suffix}").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=rf"cut\{suffix} cannot be read as an image"):
        image_folder(str(tmp_path), 0.2, 0, image_size=16, workers=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_only_its_decoder_finds_damaged_is_named_when_it_is_read(workers: int, tmp_path: Path) -> None:
    import torch

    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(picture).save(tmp_path / "train" / label / f"{number}.png")
    splits = image_folder(str(tmp_path), 0.2, 0, image_size=16, workers=workers)
    content = bytearray((tmp_path / "train" / "b" / "0.png").read_bytes())
    content[200:400] = bytes(200)
    for number in range(10):
        (tmp_path / "train" / "b" / f"{number}.png").write_bytes(content)
    with pytest.raises(UserError, match=r"b/\d\.png cannot be read as an image") as caught:
        list(batches(splits.train, 4, torch.device("cpu"), workers))
    assert len(str(caught.value).splitlines()) == 1

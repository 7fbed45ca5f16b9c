"""Files of weights are read whatever program wrote them, or refused in one line with the model as it was."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from ranksearch.errors import UserError
from ranksearch.models.checkpoint import read_checkpoint


def network(classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    )


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


@given(
    wrapper=st.sampled_from([None, "state_dict", "model_state_dict", "model"]),
    prefix=st.sampled_from(["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."]),
    suffix=st.sampled_from([".pt", ".pth", ".safetensors"]),
)
def test_every_way_of_writing_gives_the_weights_back(
    tmp_path_factory: pytest.TempPathFactory, wrapper: str | None, prefix: str, suffix: str
) -> None:
    source, target = network(seed=1), network(seed=2)
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrapper: state, "epoch": 7, "args": {"rate": 0.1}} if wrapper else state, path)
    assert read_checkpoint(str(path), target) == []
    assert same(source, target)


def test_another_number_of_classes_leaves_the_last_layer_new(tmp_path: Path) -> None:
    source, target, fresh = network(7, seed=1), network(3, seed=2), network(3, seed=2)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    assert read_checkpoint(str(tmp_path / "weights.pt"), target) == ["4.weight", "4.bias"]
    found = target.state_dict()
    for name, tensor in source.state_dict().items():
        assert torch.equal(found[name], fresh.state_dict()[name] if name.startswith("4.") else tensor)


class Anything:
    """What a pickle may hold, and what reading it would run."""


def wrong(path: Path, what: str) -> None:
    state: dict[str, Any] = dict(network().state_dict())
    if what == "missing":
        del state["0.weight"]
    elif what == "unexpected":
        state["9.weight"] = torch.zeros(1)
    elif what == "shape":
        state["0.weight"] = torch.zeros(4, 3, 5, 5)
    elif what == "wider head":
        state["4.weight"] = torch.zeros(3, 5)
    elif what == "unsafe":
        state["extra"] = Anything()
    elif what == "no weights":
        state = {"epoch": 3}
    torch.save(state, path)
    if what == "damaged":
        path.write_bytes(path.read_bytes()[:200])
    elif what == "absent":
        path.unlink()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "lacks '0.weight': give a file of the same architecture"),
        ("unexpected", "has unknown '9.weight'"),
        ("shape", r"has \[4, 3, 5, 5\] for '0.weight', the model \[4, 3, 3, 3\]"),
        ("wider head", r"has \[3, 5\] for '4.weight', the model \[3, 4\]"),
        ("unsafe", "has more than tensors and plain values, which is unsafe to read"),
        ("no weights", "holds no weights"),
        ("damaged", "cannot be read"),
        ("absent", "does not exist"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_does_not_fit_is_named_and_the_model_stays(tmp_path: Path, what: str, said: str, suffix: str) -> None:
    path = tmp_path / "weights.pt"
    wrong(path, what)
    if suffix == ".safetensors" and what not in ("unsafe", "no weights"):  # which this format cannot hold
        if path.exists():
            tensors = torch.load(path, weights_only=True) if what != "damaged" else network().state_dict()
            path = path.with_suffix(suffix)
            save_file(tensors, path)
            if what == "damaged":
                path.write_bytes(path.read_bytes()[:100])
        path = path.with_suffix(suffix)
    model, before = network(seed=3), network(seed=3)
    with pytest.raises(UserError, match=said) as caught:
        read_checkpoint(str(path), model)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same(model, before)


AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")


@pytest.mark.parametrize("averaged", AVERAGES)
@pytest.mark.parametrize("raw", ["state_dict", "model", "model_state_dict", None])
def test_averaged_weights_are_taken_before_raw_ones_and_the_choice_is_logged(
    raw: str | None, averaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second, target = network(seed=1), network(seed=2), network(seed=3)
    content: dict[str, Any] = {averaged: second.state_dict(), "epoch": 3}
    if raw is not None:
        content[raw] = first.state_dict()
    torch.save(content, tmp_path / "weights.pt")
    assert read_checkpoint(str(tmp_path / "weights.pt"), target) == []
    assert same(second, target)
    assert (f"not those under '{raw}'" in caplog.text) == (raw is not None)


def test_torch_s_averaged_model_is_read(tmp_path: Path) -> None:
    source, target = network(seed=1), network(seed=2)
    torch.save(torch.optim.swa_utils.AveragedModel(source).state_dict(), tmp_path / "weights.pt")
    assert read_checkpoint(str(tmp_path / "weights.pt"), target) == []
    assert same(source, target)


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))


JUNK: dict[str, Callable[[Path], object]] = {
    "a word": lambda path: path.write_text("hello"),
    "a page": lambda path: path.write_text("<!DOCTYPE html><title>Sign in</title>\n"),
    "nothing": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "a list": lambda path: torch.save([1, 2], path),
    "a tensor": lambda path: torch.save(torch.ones(3), path),
    "sparse weights": lambda path: torch.save({"4.weight": torch.ones(3, 4).to_sparse()}, path),
    "quantized weights": lambda path: torch.save(
        {"4.weight": torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8)}, path
    ),
    "weights on the meta device": lambda path: torch.save({"4.weight": torch.ones(3, 4, device="meta")}, path),
    "a folder": lambda path: path.mkdir(),
    "a bomb": zip_bomb,
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", JUNK)
@pytest.mark.filterwarnings("ignore:.*quantize.*", "ignore:.*Quantiz.*", "ignore:.*TypedStorage.*")
def test_whatever_is_no_set_of_dense_weights_is_refused_in_one_line(kind: str, suffix: str, tmp_path: Path) -> None:
    path, model, before = tmp_path / f"weights{suffix}", network(), network()
    JUNK[kind](path)
    with pytest.raises(UserError, match=rf"model\.checkpoint={path} ") as caught:
        read_checkpoint(str(path), model)
    assert len(str(caught.value).splitlines()) == 1
    assert same(model, before)


@pytest.mark.parametrize("old", [False, True])
def test_half_a_download_is_refused(old: bool, tmp_path: Path) -> None:
    path, model, before = tmp_path / "weights.pt", network(), network()
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=not old)
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match=r"model\.checkpoint="):
            read_checkpoint(str(path), model)
        assert same(model, before)


@pytest.mark.parametrize("kind", ["int8", "bool", "complex", "nan"])
def test_weights_that_are_no_trained_floats_are_refused(kind: str, tmp_path: Path) -> None:
    model, before = network(), network()
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "int8": lambda value: (value * 100).to(torch.int8),
        "bool": lambda value: value > 0,
        "complex": lambda value: value.to(torch.complex64),
        "nan": lambda value: value * float("nan") if value.is_floating_point() else value,
    }
    torch.save({name: changes[kind](value) for name, value in model.state_dict().items()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"has (torch\.\w+|values that are not finite) for '0\.weight': give trained"):
        read_checkpoint(str(tmp_path / "weights.pt"), model)
    assert same(model, before)

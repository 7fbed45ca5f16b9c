"""Files that are either whole or not there."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from ranksearch.errors import DamagedError, PlanError

CHECKSUM = "sha256"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write to, and move it to its place once the block ends well; folders are made as needed.

    It lies in a neighbouring folder of its own, for libraries that write may leave half a file of theirs beside it.
    """
    prefix = f".{path.name}.{platform.node()}."
    folder = path.with_name(f"{prefix}{os.getpid()}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder / path.name
        (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        if not _is_alive(left.name.removeprefix(prefix)):
            shutil.rmtree(left, ignore_errors=True)  # half a file, of a process that was killed


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True  # not ours to judge
    return True


def write_text(path: Path, content: str) -> None:
    """Write text in UTF-8, in one step."""
    with replacing(path) as neighbour:
        neighbour.write_text(content, encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table in one step, empty where a row has nothing for a column."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Write plain JSON values in one step; numbers that JSON lacks (NaN, infinities) are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values with a checksum, in one step."""
    content = io.BytesIO()
    torch.save(state, content)
    with replacing(path) as neighbour:
        neighbour.write_bytes(hashlib.sha256(content.getbuffer()).digest() + content.getbuffer())


def read_state(path: Path) -> dict[str, Any]:
    """Read what `write_state` wrote.

    Raises:
        FileNotFoundError: it is not there.
        DamagedError: its checksum does not fit.
    """
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise DamagedError(f"{path} is damaged, its checksum does not fit")
    state: dict[str, Any] = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
    return state


def write_weights(path: Path, model: nn.Module) -> None:
    """Write a model's parameters and buffers as safetensors with a checksum, in one step; tied ones once."""
    with replacing(path) as neighbour:
        save_model(model, str(neighbour), metadata={CHECKSUM: checksum(model)})


def checksum(model: nn.Module) -> str:
    """A hash of all parameters and buffers, in hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_weights(path: Path, model: nn.Module) -> None:
    """Read what `write_weights` wrote into a model of the same shape, in place.

    Raises:
        PlanError: the file is missing, damaged, or made for another shape; the model is as it was then.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        load_model(model, path, strict=True)
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(CHECKSUM)
    except FileNotFoundError:
        raise PlanError(f"{path} does not exist: put it back, or run the search again") from None
    except (SafetensorError, RuntimeError) as error:
        summary = " ".join(str(error).split())[:300]
        raise PlanError(f"{path} does not fit the network ({summary}): run the search again to write it anew") from None
    if expected is not None and checksum(model) != expected:
        model.load_state_dict(before)
        raise PlanError(f"{path} is damaged, its checksum does not fit: run the search again to write it anew")

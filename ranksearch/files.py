"""Files that are either whole or not there."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ranksearch.errors import DamagedError, PlanError, first_line, shorten

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
        _clear(folder)
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        if not _is_alive(left.name.removeprefix(prefix)):
            _clear(left)  # half a file, of a process that was killed


def _clear(folder: Path) -> None:
    """Take away a folder that `replacing` made, and the files in it."""
    with suppress(OSError):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def remove_files(folder: Path, patterns: Iterable[str]) -> None:
    """Take away the files of some patterns below a folder, and the folders that this leaves empty; no others."""
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)
            with suppress(OSError):  # not empty, so it holds something else
                file.parent.rmdir()
    with suppress(OSError):
        folder.rmdir()


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


def read_json(path: Path) -> Any:
    """Read plain JSON values.

    Raises:
        FileNotFoundError: it is not there.
        DamagedError: it is no JSON, nested without end, no text, or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({shorten(first_line(error), 160)})") from None


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
        DamagedError: its checksum does not fit, or it holds something else.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise DamagedError(f"{path} is damaged, its checksum does not fit")
    try:
        state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a reader makes of something else
        raise DamagedError(f"{path} is damaged ({shorten(first_line(error), 160)})") from None
    if not isinstance(state, dict):
        raise DamagedError(f"{path} is damaged (a {type(state).__name__})")
    return state


def write_weights(path: Path, model: nn.Module) -> None:
    """Write a model's parameters and buffers as safetensors with a checksum, in one step; shared ones once."""
    state = model.state_dict()
    kept = {name: _whole(state[name]) for name, first in _shared(state).items() if name == first}
    with replacing(path) as neighbour:
        save_file(kept, str(neighbour), metadata={CHECKSUM: checksum(model)})


def _shared(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name of a tensor -> the first name of the same memory."""
    firsts: dict[Any, str] = {}
    found = {}
    for name, tensor in state.items():
        where = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        found[name] = firsts.setdefault(where if tensor.numel() else name, name)
    return found


def _whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU whose memory is its own and laid out in order."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() else tensor.clone()


def _load(path: Path, model: nn.Module) -> None:
    """Give a model the tensors of a file; of shared ones, under whichever of their names it has them."""
    held = load_file(path)
    expected = _shared(model.state_dict())
    by_memory = {expected[name]: tensor for name, tensor in held.items() if name in expected}
    missing = [name for name, first in expected.items() if first not in by_memory]
    unknown = [name for name in held if name not in expected]
    if missing or unknown:
        name = (missing or unknown)[0]
        raise ValueError(f"it {'lacks' if missing else 'has an unknown'} '{name}'")
    model.load_state_dict({name: by_memory[first] for name, first in expected.items()})


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
        _load(path, model)
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(CHECKSUM)
    except FileNotFoundError:
        raise PlanError(f"{path} does not exist: put it back, or run the search again") from None
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        model.load_state_dict(before)
        summary = " ".join(str(error).split())[:300]
        raise PlanError(f"{path} does not fit the network ({summary}): run the search again to write it anew") from None
    if expected is not None and checksum(model) != expected:
        model.load_state_dict(before)
        raise PlanError(f"{path} is damaged, its checksum does not fit: run the search again to write it anew")

"""Tensors on disk with a checksum: weights of networks, and the state of a training run."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ranksearch.errors import DamagedError, PlanError, first_line, shorten
from ranksearch.files import replacing

CHECKSUM = "sha256"


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values with a checksum, atomically."""
    content = io.BytesIO()
    torch.save(state, content)
    with replacing(path) as neighbour:
        neighbour.write_bytes(hashlib.sha256(content.getbuffer()).digest() + content.getbuffer())


def read_state(path: Path) -> dict[str, Any]:
    """Read a file that `write_state` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedError: the checksum does not match, or the file cannot be read or holds no dict.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise DamagedError(f"{path} is damaged, its checksum does not match")
    try:
        state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
    except Exception as error:  # a reader may raise anything on another format
        raise DamagedError(f"{path} is damaged ({shorten(first_line(error), 160)})") from None
    if not isinstance(state, dict):
        raise DamagedError(f"{path} is damaged (a {type(state).__name__})")
    return state


def write_weights(path: Path, model: nn.Module) -> None:
    """Write a model's parameters and buffers as safetensors with a checksum, atomically; shared tensors once."""
    state = model.state_dict()
    kept = {name: _whole(state[name]) for name, first in _shared(state).items() if name == first}
    with replacing(path) as neighbour:
        save_file(kept, str(neighbour), metadata={CHECKSUM: checksum(model)})


def _shared(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Map the name of each tensor to the first name of the same memory."""
    firsts: dict[Any, str] = {}
    first_names = {}
    for name, tensor in state.items():
        where = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first_names[name] = firsts.setdefault(where if tensor.numel() else name, name)
    return first_names


def _whole(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, contiguous and with a storage of exactly its size."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() else tensor.clone()


def _load(path: Path, model: nn.Module) -> None:
    """Load the tensors of a file into a model; shared tensors may be stored under any of their names."""
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
    """Return a SHA-256 hash of all parameters and buffers and their names, in hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_weights(path: Path, model: nn.Module) -> None:
    """Read a file that `write_weights` wrote into a model of the same shape, in place.

    Raises:
        PlanError: the file is missing, damaged, or made for another shape; the model is left unchanged.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        _load(path, model)
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(CHECKSUM)
    except FileNotFoundError:
        raise PlanError(f"{path} does not exist: restore it, or run the search again") from None
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        model.load_state_dict(before)
        summary = " ".join(str(error).split())[:300]
        raise PlanError(f"{path} does not fit the network ({summary}): run the search again to rewrite it") from None
    if expected is not None and checksum(model) != expected:
        model.load_state_dict(before)
        raise PlanError(f"{path} is damaged, its checksum does not match: run the search again to rewrite it")

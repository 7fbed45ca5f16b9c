"""Safe loading of trained weights from checkpoints of any training program."""

import logging
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ranksearch.errors import SettingError, first_line, shorten

log = logging.getLogger(__name__)

# Keys that training programs store weights under: averaged ones (EMA), which they evaluate, before raw ones.
AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model",
    "ema",
    "averaged_model",
    "model_ema_state_dict",
)
RAW = ("state_dict", "model_state_dict", "model")
# Prefixes that wrappers add to the names of weights.
PREFIXES = ("module.", "_orig_mod.", "model.")
# Maximum ratio of unpacked to packed size; torch.save does not compress.
LARGEST_INFLATION = 4
SETTING = "model.checkpoint"  # as error messages name it


def read_checkpoint(path: str, model: nn.Module) -> list[str]:
    """Load the weights of a file into a model, in place.

    The file holds a state dict, alone or under ``state_dict``, ``model_state_dict`` or ``model``; averaged weights
    (EMA) take precedence, and the log says so. Name prefixes of `nn.DataParallel` and `torch.compile` are removed.

    Args:
        path: path of a ``.safetensors`` or `torch.save` file; only tensors and plain values in it are read.
        model: the model; left unchanged if the file does not fit.

    Returns:
        Names of the last layer's weights, if not loaded because the file has another number of classes; else empty.

    Raises:
        UserError: the file is missing, unsafe or without weights, or its names or shapes differ from the model's.
    """
    state = _unprefixed(_read(Path(path)), model)
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        parts = [f"{verb} {_list(names)}" for verb, names in (("lacks", missing), ("has unknown", unexpected)) if names]
        raise SettingError(SETTING, path, f"{' and '.join(parts)}: give a file of the same architecture")
    for name, tensor in state.items():
        if expected[name].is_floating_point() and not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
            kind = "values that are not finite" if tensor.is_floating_point() else f"{tensor.dtype}"
            raise SettingError(SETTING, path, f"has {kind} for '{name}': give trained floating-point weights")
    other = [name for name in state if state[name].shape != expected[name].shape]
    head = _head(model)
    elsewhere = [name for name in other if name not in head]
    if elsewhere or any(state[name].shape[1:] != expected[name].shape[1:] for name in other):
        name = (elsewhere or other)[0]
        actual, wanted = list(state[name].shape), list(expected[name].shape)
        raise SettingError(SETTING, path, f"has {actual} for '{name}', the model {wanted}: give it the same settings")
    model.load_state_dict({**expected, **{name: state[name] for name in state if name not in other}})
    return other


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, by name."""
    try:
        _require_honest_size(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats that raise an error below
            if path.suffix == ".safetensors":
                return load_file(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SettingError(SETTING, path, "does not exist: name a .safetensors or .pt file") from None
    except pickle.UnpicklingError:
        advice = "has more than tensors and plain values, which is unsafe to read: save only model.state_dict()"
        raise SettingError(SETTING, path, advice) from None
    except SettingError:
        raise
    except Exception as error:  # a reader may raise anything on another format
        reason = shorten(first_line(error), 160)
        raise SettingError(SETTING, path, f"cannot be read ({reason}): save it again") from None
    state = _chosen(content, path)
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise SettingError(SETTING, path, "holds no weights: save model.state_dict() to it")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "on the meta device" if tensor.is_meta else "quantized" if tensor.is_quantized else "sparse"
            raise SettingError(SETTING, path, f"holds '{name}' {kind}: save dense floating-point weights")
    return {str(name): tensor for name, tensor in state.items()}


def _chosen(content: Any, path: Path) -> Any:
    """Return the weights among a training program's entries; a choice between several is logged."""
    held = [key for key in AVERAGED + RAW if _is_state(content.get(key))] if isinstance(content, Mapping) else []
    if not held:
        return content
    chosen, *others = held
    if others:
        kind = "averaged weights (EMA)" if chosen in AVERAGED else "weights"
        log.info("model: using the %s under '%s' of %s, not those under '%s'", kind, chosen, path, others[0])
    weights = content[chosen]
    inner = [key for key in RAW if _is_state(weights.get(key))]  # the state of a wrapper
    return weights[inner[0]] if inner else weights


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _require_honest_size(path: Path) -> None:
    """Raise SettingError if a zip archive claims a far larger content than its own size, as a zip bomb does."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST_INFLATION * max(path.stat().st_size, 1):
        advice = f"claims to hold {size} bytes in {path.stat().st_size}: write it with torch.save"
        raise SettingError(SETTING, path, advice)


def _unprefixed(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the state without the prefixes that wrappers add to every name."""
    expected = model.state_dict()
    if "n_averaged" not in expected:  # the counter of torch's AveragedModel
        state = {name: tensor for name, tensor in state.items() if name != "n_averaged"}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state) and not any(name in expected for name in state):
            return _unprefixed({name.removeprefix(prefix): tensor for name, tensor in state.items()}, model)
    return state


def _head(model: nn.Module) -> list[str]:
    """Return the names of the last linear or convolutional layer's weights."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        return []
    name, layer = layers[-1]
    return [f"{name}.{weight}" if name else weight for weight, _ in layer.named_parameters(recurse=False)]


def _list(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more

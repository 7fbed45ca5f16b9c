"""A file of trained weights, whoever's program wrote it, read safely into a model."""

from __future__ import annotations

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

# Where training programs put the weights among other things that they keep: averaged ones (EMA), which are what such
# programs evaluate, before raw ones.
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
# What wrappers put before the names of weights.
PREFIXES = ("module.", "_orig_mod.", "model.")
# torch.save compresses nothing.
LARGEST_INFLATION = 4


def read_checkpoint(path: str, model: nn.Module) -> list[str]:
    """Give a model the weights of a file, in place.

    The weights may stand alone in it or under ``state_dict``, ``model_state_dict`` or ``model``, and their names may
    begin as `nn.DataParallel` or `torch.compile` make them begin. Averaged ones (EMA) beside them are taken instead,
    and the log says so.

    Args:
        path: of a ``.safetensors`` file, or of one that `torch.save` wrote, of which only tensors and plain values
            are read: nothing in it is run.
        model: is left as it was when the file does not fit.

    Returns:
        The names of the last layer's weights, where the file has them for another number of classes: they keep the
        model's own values. Otherwise nothing.

    Raises:
        UserError: the file is missing or unsafe or holds no weights, or its names or shapes are not the model's.
    """
    state = _unprefixed(_read(Path(path)), model)
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        parts = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("has unknown", unexpected)) if names]
        raise SettingError("model.checkpoint", path, f"{' and '.join(parts)}: give the file of this very architecture")
    for name, tensor in state.items():
        if expected[name].is_floating_point() and not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
            kind = "numbers that are not finite" if tensor.is_floating_point() else f"{tensor.dtype}"
            raise SettingError(
                "model.checkpoint", path, f"has {kind} for '{name}': give trained floating-point weights"
            )
    other = [name for name in state if state[name].shape != expected[name].shape]
    head = _head(model)
    if any(name not in head for name in other) or not _differ_in_classes(state, expected, other):
        name = next((name for name in other if name not in head), other[0] if other else "")
        found, wanted = list(state[name].shape), list(expected[name].shape)
        raise SettingError(
            "model.checkpoint", path, f"has {found} for '{name}', the model {wanted}: give it the same settings"
        )
    model.load_state_dict({**expected, **{name: state[name] for name in state if name not in other}})
    return other


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name."""
    setting = "model.checkpoint"
    try:
        _require_honest_size(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that raise an error below
            if path.suffix == ".safetensors":
                return load_file(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SettingError(setting, path, "does not exist: name a .safetensors or .pt file") from None
    except pickle.UnpicklingError:
        advice = "holds more than tensors and plain values, which is not safe to read: save model.state_dict() alone"
        raise SettingError(setting, path, advice) from None
    except SettingError:
        raise
    except Exception as error:  # whatever a reader makes of something else
        reason = shorten(first_line(error), 160)
        raise SettingError(setting, path, f"cannot be read ({reason}): write it anew") from None
    state = _chosen(content, path)
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise SettingError(setting, path, "holds no weights: save model.state_dict() to it")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "on the meta device" if tensor.is_meta else "quantized" if tensor.is_quantized else "sparse"
            raise SettingError(setting, path, f"holds '{name}' {kind}: save dense floating-point weights")
    return {str(name): tensor for name, tensor in state.items()}


def _chosen(content: Any, path: Path) -> Any:
    """Of all that a training program has kept, the weights; the choice is logged where there is one."""
    if not isinstance(content, Mapping):
        return content
    held = [key for key in (*AVERAGED, *RAW) if _is_state(content.get(key))]
    if not held:
        return content
    chosen, *others = held
    if others:
        kind = "averaged weights (EMA)" if chosen in AVERAGED else "weights"
        log.info("model: the %s under '%s' of %s are used, not those under '%s'", kind, chosen, path, others[0])
    found = content[chosen]
    inner = [key for key in RAW if _is_state(found.get(key))]  # as where a wrapper's own state was kept
    return found[inner[0]] if inner else found


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _require_honest_size(path: Path) -> None:
    """Raise if a file says that it holds far more than it does, as a bomb of compressed zeros does.

    Raises:
        SettingError: it says so.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST_INFLATION * max(path.stat().st_size, 1):
        advice = f"says that it holds {size} bytes in {path.stat().st_size}: write it with torch.save"
        raise SettingError("model.checkpoint", path, advice)


def _unprefixed(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The same without what a wrapper put before every name."""
    known = model.state_dict()
    if "n_averaged" not in known:  # the counter of torch's AveragedModel
        state = {name: tensor for name, tensor in state.items() if name != "n_averaged"}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state) and not any(name in known for name in state):
            return _unprefixed({name.removeprefix(prefix): tensor for name, tensor in state.items()}, model)
    return state


def _head(model: nn.Module) -> list[str]:
    """Names of the weights of the last layer that has any and is no normalization."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        return []
    name, layer = layers[-1]
    return [f"{name}.{weight}" if name else weight for weight, _ in layer.named_parameters(recurse=False)]


def _differ_in_classes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], other: list[str]) -> bool:
    """Whether shapes differ in the number of outputs alone."""
    return all(state[name].shape[1:] == expected[name].shape[1:] for name in other)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more

"""Which layers of a model run, on what shapes, and which of them can be factorized."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ranksearch.errors import DataError
from ranksearch.factorize.layers.base import FactorizedLayer
from ranksearch.factorize.shapes import describe
from ranksearch.factorize.source_model import clone, require_ready, unwrap
from ranksearch.factorize.statistics import Layer
from ranksearch.factorize.thinning import as_rows
from ranksearch.plan import FIRST_AXES, LayerProfile

Seen = TypeVar("Seen")
TOO_SMALL = "too small for any latent size to save MACs"


@torch.no_grad()
def dry_run(model: nn.Module, example: Tensor, watch: Callable[[nn.Module, Callable[[], None]], Seen]) -> Seen:
    """Run a copy of the model, in eval mode, on an input of the example's shape.

    The copy is on the meta device, where nothing is computed. If its forward fails there, because it needs values or
    tensors outside the model, a copy on the model's own device runs on zeros.

    Args:
        model: the network; left unchanged.
        example: batch of inputs; only its shape and dtype matter.
        watch: function of the copy and of a callable that runs it; its result is returned.
    """
    model = unwrap(model)
    require_ready(model)

    def watch_on(device: torch.device) -> Seen:
        ghost = clone(model).to(device).eval()

        def run() -> None:
            # Tensors created in forward, such as positions to embed, must be on the same device.
            with device:
                ghost(torch.zeros(example.shape, dtype=example.dtype, device=device))

        return watch(ghost, run)

    try:
        return watch_on(torch.device("meta"))
    except Exception:  # a forward may fail in any way on tensors without values
        parameter = next(model.parameters(), None)
        return watch_on(example.device if parameter is None else parameter.device)


def meta_example(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """Return a batch of inputs on the meta device, in the model's floating-point type.

    Args:
        model: network that the batch is for.
        shape: shape of the batch, `[B, ...]`.
    """
    types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return torch.empty(tuple(shape), device="meta", dtype=next(types, torch.float32))


def watch_layer(layer: nn.Module, on_call: Callable[[Tensor, Tensor], None], on_read: Callable[[], None]) -> None:
    """Call back on every output of a layer, and on every read of its weight or bias outside its own forward.

    No hook is used, since hooks make PyTorch's transformer layers leave their fast path, which reads weights.

    Args:
        layer: layer of a copied model; its class is replaced by a subclass.
        on_call: called with the input and the output of each call.
        on_read: called on each read of the weight or the bias from outside.
    """
    calling = False

    class Watched(type(layer)):  # type: ignore[misc]  # a class created at run time
        def __getattr__(self, name: str) -> Any:
            if name in ("weight", "bias") and not calling:
                on_read()
            return super().__getattr__(name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal calling
            calling = True
            try:
                output = super().forward(*args, **kwargs)
            finally:
                calling = False
            on_call(args[0] if args else kwargs["input"], output)
            return output

    layer.__class__ = Watched


def layer_inputs(
    model: nn.Module, names: Sequence[str], batch_size: int, input_shape: Sequence[int]
) -> dict[str, list[torch.Size]]:
    """Return the input shapes of every call of the named layers, for a batch of examples; see `dry_run`."""

    def watch(ghost: nn.Module, run: Callable[[], None]) -> dict[str, list[torch.Size]]:
        shapes: dict[str, list[torch.Size]] = {name: [] for name in names}
        for name in names:
            watch_layer(ghost.get_submodule(name), _noting(shapes[name]), lambda: None)
        run()
        return shapes

    return dry_run(model, meta_example(model, (batch_size, *input_shape)), watch)


def _noting(shapes: list[torch.Size]) -> Callable[[Tensor, Tensor], None]:
    return lambda input, output: shapes.append(input.shape)


def reason_to_skip(module: nn.Module, positions: int) -> str | None:
    """Return the reason why a module with that many output positions cannot be factorized; None if it can."""
    if isinstance(module, LazyModuleMixin) or type(module) not in (nn.Conv2d, nn.Linear):
        return f"{type(module).__name__} is not a plain Conv2d or Linear"
    assert isinstance(module, nn.Conv2d | nn.Linear)
    if any(callable(value) and hasattr(type(module), name) for name, value in vars(module).items()):
        return "one of its methods was replaced on the instance"
    if module.bias is not None and "bias" not in module._parameters:
        return "its bias is not a parameter but computed by a hook, as in pruning"
    if "weight" not in module._parameters:
        return "its weight is not a parameter but computed by a hook, as in pruning"
    if module.weight.is_complex():
        return "its weight is complex"
    if module._modules or module._buffers or not set(module._parameters) <= {"weight", "bias"}:
        return "it holds more than a weight and a bias"
    if positions == 0:
        return "never called for every example, so its weight may be read directly"
    if not describe(module).schemes:
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.out_channels:
            return "a depthwise convolution, with nothing to share among its outputs"
        return TOO_SMALL
    return None


def shared_layers(model: nn.Module) -> dict[str, str]:
    """Return name -> reason of the modules that share weights with others or are factors of a factorized layer."""
    owners: dict[nn.Parameter, str] = {}
    reasons: dict[str, str] = {}
    for owner, module in model.named_modules():
        if isinstance(module, FactorizedLayer):
            prefix = f"{owner}." if owner else ""
            reasons |= dict.fromkeys((f"{prefix}module0", f"{prefix}module1"), "a factor of a factorized layer")
        for parameter in module.parameters(recurse=False):
            first = owners.setdefault(parameter, owner)
            if first != owner:
                reasons[owner] = f"shares its weights with '{first}'"
                reasons[first] = f"shares its weights with '{owner}'"
    return reasons


@dataclass
class _Run:
    """Record of one run of a model, with layers in the order of their first calls."""

    rows: dict[str, int]  # layer name -> number of output rows
    latent_rows: dict[str, dict[str, int]]  # layer name -> scheme -> number of rows of the map between two factors
    read: set[str]  # names of the layers whose weights are read by other code


def _layers(model: nn.Module) -> dict[str, Layer]:
    """Return all convolutions and linear layers by name, including factors but not factorized layers."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, FactorizedLayer)
    }


def _watch_layers(ghost: nn.Module, run: Callable[[], None]) -> _Run:
    seen = _Run({}, {}, set())

    def watch(name: str, layer: nn.Module) -> None:
        def count(input: Tensor, output: Tensor) -> None:
            rows = len(as_rows(output, layer))
            seen.rows[name] = seen.rows.get(name, 0) + rows
            if isinstance(layer, nn.Conv2d):
                between = seen.latent_rows.setdefault(name, dict.fromkeys(FIRST_AXES, 0))
                maps = rows // (output.shape[-2] * output.shape[-1])
                for scheme, axes in FIRST_AXES.items():
                    # Between the factors, an axis of the first factor has the output's size, any other the input's.
                    height, width = ((output if owned else input).shape[axis - 2] for axis, owned in enumerate(axes))
                    between[scheme] += maps * height * width

        watch_layer(layer, count, lambda: seen.read.add(name))

    for name, module in _layers(ghost).items():
        watch(name, module)
    run()
    return seen


def profile_layers(model: nn.Module, example: Tensor) -> LayerProfile:
    """Return the layers that can be factorized, with their shapes and positions, from a run of the model.

    Args:
        model: the dense network; left unchanged, as a copy is run, see `dry_run`.
        example: one batch of inputs, `[B, ...]`, on any device; only its shape and dtype matter.

    Raises:
        DataError: the batch is empty.
    """
    model = unwrap(model)
    candidates = _layers(model)
    seen = dry_run(model, example, _watch_layers)
    bound = shared_layers(model) | dict.fromkeys(seen.read, "its weight is also read by code outside the layer")
    if not len(example):
        raise DataError("the example batch is empty: give one input or more")
    count, layers, skipped = len(example), {}, {}
    for name, module in candidates.items():
        positions = seen.rows.get(name, 0) // count
        reason = reason_to_skip(module, positions) or bound.get(name)
        if reason is None:
            between = {scheme: rows // count for scheme, rows in seen.latent_rows.get(name, {}).items()}
            layers[name] = describe(module, name, positions, between)
            reason = None if layers[name].schemes else TOO_SMALL  # strides and borders may enlarge the latent map
        if reason is not None:
            skipped[name] = reason
    convolutions = [name for name in seen.rows if isinstance(candidates[name], nn.Conv2d)]
    linears = [name for name in seen.rows if isinstance(candidates[name], nn.Linear)]
    usable = tuple(layers[name] for name in seen.rows if name not in skipped)
    return LayerProfile(usable, skipped, next(iter(convolutions), None), next(reversed(linears), None))

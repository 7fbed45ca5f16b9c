"""Which layers of a model run, on what shapes, and which of them can be factorized."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.batches import Call, read_batch
from ranksearch.errors import DataError
from ranksearch.factorize.exposure import PLAIN, exposed, without_fused_attention
from ranksearch.factorize.layers.base import FactorizedLayer
from ranksearch.factorize.layers.padded import PaddedConv2d
from ranksearch.factorize.shapes import describe
from ranksearch.factorize.source_model import clone, has_replaced_method, require_ready, unwrap
from ranksearch.factorize.statistics import Layer
from ranksearch.factorize.thinning import as_rows
from ranksearch.plan import FIRST_AXES, LayerProfile, SkippedLayer

Seen = TypeVar("Seen")
TOO_SMALL = "too small for any latent size to save MACs"


@torch.no_grad()
def dry_run(model: nn.Module, example: Any, watch: Callable[[nn.Module, Callable[[], None]], Seen]) -> Seen:
    """Run a copy of the model, in eval mode, on an example.

    The copy is on the meta device, where nothing is computed. If its forward fails there, because it needs values or
    tensors outside the model, a copy runs on the model's own device: on the example's values, zeros if it has none.

    Args:
        model: the network; left unchanged.
        example: batch of examples; see `read_batch`.
        watch: function of the copy and of a callable that runs it; its result is returned.
    """
    model = unwrap(model)
    require_ready(model)
    batch = read_batch(model, example)

    def watch_on(device: torch.device) -> Seen:
        ghost = clone(model).to(device).eval()
        on_device = batch.map(
            lambda tensor: tensor.to(device) if not tensor.is_meta else torch.zeros_like(tensor, device=device)
        )

        def run() -> None:
            # Tensors created in forward, such as positions to embed, must be on the same device.
            with device, without_fused_attention():
                on_device.run(ghost)

        return watch(ghost, run)

    try:
        return watch_on(torch.device("meta"))
    except Exception:  # a forward may fail in any way on tensors without values
        return watch_on(next((tensor.device for tensor in (*model.parameters(), *batch.tensors)), torch.device("cpu")))


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
    if isinstance(module, LazyModuleMixin) or type(module) not in PLAIN:
        return f"{type(module).__name__} is not a plain Conv2d or Linear"
    assert isinstance(module, nn.Conv2d | nn.Linear)
    if has_replaced_method(module):
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
    uneven: set[str]  # names of the layers that pad inputs of this size in another way
    flops: dict[str, int]  # name of a module that runs -> FLOPs, without those of modules inside it
    all_flops: int = 0


def _layers(model: nn.Module) -> dict[str, Layer]:
    """Return all convolutions and linear layers by name, including factors but not factorized layers."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, FactorizedLayer)
    }


def _meter(module: nn.Module, count: Callable[[int], None], counter: FlopCounterMode, inside: list[int]) -> None:
    """Count the FLOPs of a module's calls, without those of modules inside it.

    Args:
        module: a module of a copied model; its forward is replaced on the instance.
        count: is called with the FLOPs of each call.
        counter: counts the FLOPs of the run.
        inside: one number, the FLOPs of modules in the module that runs; shared by all.
    """
    forward = module.forward

    def metered(*args: Any, **kwargs: Any) -> Any:
        before, around = int(counter.get_total_flops()), inside[0]
        inside[0] = 0
        try:
            return forward(*args, **kwargs)
        finally:
            spent = int(counter.get_total_flops()) - before
            count(spent - inside[0])
            inside[0] = around + spent

    module.forward = metered


def _holds_matrix(module: nn.Module) -> bool:
    return any(weight is not None and weight.squeeze().ndim > 1 for weight in module._parameters.values())


def _watch_layers(ghost: nn.Module, run: Callable[[], None]) -> _Run:
    seen, inside = _Run({}, {}, set(), set(), {}), [0]

    def watch(name: str, layer: nn.Module) -> None:
        def count(input: Tensor, output: Tensor) -> None:
            rows = len(as_rows(output, layer))
            seen.rows[name] = seen.rows.get(name, 0) + rows
            if isinstance(layer, PaddedConv2d) and not layer.pads_like(input.shape[-2:]):
                seen.uneven.add(name)
            if isinstance(layer, nn.Conv2d):
                between = seen.latent_rows.setdefault(name, dict.fromkeys(FIRST_AXES, 0))
                maps = rows // (output.shape[-2] * output.shape[-1])
                for scheme, axes in FIRST_AXES.items():
                    # Between the factors, an axis of the first factor has the output's size, any other the input's.
                    height, width = ((output if owned else input).shape[axis - 2] for axis, owned in enumerate(axes))
                    between[scheme] += maps * height * width

        watch_layer(layer, count, lambda: seen.read.add(name))

    def meter(name: str, module: nn.Module) -> None:
        def count(flops: int) -> None:
            seen.flops[name] = seen.flops.get(name, 0) + flops

        _meter(module, count, counter, inside)

    counter = FlopCounterMode(display=False)
    for name, module in _layers(ghost).items():
        watch(name, module)
    for name, module in ghost.named_modules():
        meter(name, module)
    with counter:
        run()
    seen.all_flops = int(counter.get_total_flops())
    return seen


def profile_layers(model: nn.Module, example: Any, *, call: Call | None = None) -> LayerProfile:
    """Return the layers that can be factorized, with their shapes and positions, from a run of the model.

    Args:
        model: the dense network; left unchanged, as a copy is run, see `dry_run`.
        example: batch of examples, see `read_batch`.
        call: runs the model on the batch.

    Raises:
        DataError: the batch is empty.
    """
    model = exposed(model)
    batch = read_batch(model, example, call)
    candidates = _layers(model)
    seen = dry_run(model, batch, _watch_layers)
    bound = shared_layers(model) | dict.fromkeys(seen.read, "its weight is also read by code outside the layer")
    bound |= dict.fromkeys(seen.uneven, "its padding depends on the size of its input")
    if not len(batch):
        raise DataError("the example batch is empty: give one input or more")
    count, layers, reasons = len(batch), {}, dict[str, str]()
    for name, module in candidates.items():
        positions = seen.rows.get(name, 0) // count
        reason = reason_to_skip(module, positions) or bound.get(name)
        if reason is None:
            between = {scheme: rows // count for scheme, rows in seen.latent_rows.get(name, {}).items()}
            layers[name] = describe(module, name, positions, between)
            reason = None if layers[name].schemes else TOO_SMALL  # strides and borders may enlarge the latent map
        if reason is not None:
            reasons[name] = reason
    convolutions = [name for name in seen.rows if isinstance(candidates[name], nn.Conv2d)]
    linears = [name for name in seen.rows if isinstance(candidates[name], nn.Linear)]
    for name in seen.flops:
        if name not in candidates and _holds_matrix(model.get_submodule(name)):
            kind = type(model.get_submodule(name)).__name__
            reasons[name] = f"{kind} is neither a convolution nor a linear layer"
    usable = tuple(layers[name] for name in seen.rows if name not in reasons)
    shares = {name: seen.flops.get(name, 0) / max(1, seen.all_flops) for name in reasons}
    skipped = {name: SkippedLayer(reason, shares[name]) for name, reason in reasons.items()}
    macs = seen.all_flops // 2 // count
    return LayerProfile(usable, skipped, next(iter(convolutions), None), next(reversed(linears), None), macs)

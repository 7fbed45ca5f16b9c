"""Running a copy of a model for what can be seen on the way: shapes, not numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ranksearch.factorize.source_model import clone, require_ready, unwrap

Seen = TypeVar("Seen")


@torch.no_grad()
def dry_run(model: nn.Module, example: Tensor, watch: Callable[[nn.Module, Callable[[], None]], Seen]) -> Seen:
    """Run a copy of the model, in eval mode, on an example's shape.

    The copy is on the meta device, where nothing is computed. A forward that needs numbers, or tensors that are not
    the model's own, fails there; it then runs on zeros where the model is.

    Args:
        model: is not touched.
        example: a batch of inputs; only its shape and dtype matter.
        watch: is given the copy and what runs it, and returns what it saw.
    """
    model = unwrap(model)
    require_ready(model)
    meta = torch.device("meta")
    try:
        return _on(meta, model, example, watch)
    except Exception:  # whatever a forward makes of tensors without numbers
        parameter = next(model.parameters(), None)
        return _on(example.device if parameter is None else parameter.device, model, example, watch)


def _on(
    device: torch.device, model: nn.Module, example: Tensor, watch: Callable[[nn.Module, Callable[[], None]], Seen]
) -> Seen:
    ghost = clone(model).to(device).eval()

    def run() -> None:
        # What forward makes by itself, such as positions to embed, must then be on the same device.
        with device:
            ghost(torch.zeros(example.shape, dtype=example.dtype, device=device))

    return watch(ghost, run)


def meta_example(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """A batch of inputs without numbers, of the model's own floating-point type.

    Args:
        model: that it is for.
        shape: `[B, ...]`.
    """
    types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return torch.empty(tuple(shape), device="meta", dtype=next(types, torch.float32))


def watch_layer(layer: nn.Module, on_call: Callable[[Tensor, Tensor], None], on_read: Callable[[], None]) -> None:
    """Call back at every output of a layer, and at every read of its weight by anything but its own forward.

    No hook is used: PyTorch's transformer layers leave their fast path, which reads weights, where they see one.

    Args:
        layer: becomes an instance of a class of its own, so only ever a copy's.
        on_call: is given the input and the output of each call.
        on_read: is called at each foreign read of the weight or the bias.
    """
    calling = False

    class Watched(type(layer)):  # type: ignore[misc]  # a class made at run time
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
    """The shapes that layers are called on, call by call, for a batch of examples; see `dry_run`."""

    def watch(ghost: nn.Module, run: Callable[[], None]) -> dict[str, list[torch.Size]]:
        shapes: dict[str, list[torch.Size]] = {name: [] for name in names}
        for name in names:
            watch_layer(ghost.get_submodule(name), _noting(shapes[name]), lambda: None)
        run()
        return shapes

    return dry_run(model, meta_example(model, (batch_size, *input_shape)), watch)


def _noting(shapes: list[torch.Size]) -> Callable[[Tensor, Tensor], None]:
    return lambda input, output: shapes.append(input.shape)

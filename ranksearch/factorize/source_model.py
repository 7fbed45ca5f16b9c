"""Running, hooking and copying a source model without changing it."""

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from ranksearch.errors import UserError, first_line

# Depth to which containers are searched for tensors that a module holds besides its parameters and buffers.
NESTING = 4


def unwrap(model: nn.Module) -> nn.Module:
    """Unwrap `DataParallel`, `DistributedDataParallel` and `torch.compile`; plans use the names of the result."""
    while True:
        if isinstance(model, nn.DataParallel | DistributedDataParallel):
            model = model.module
        elif _is_compiled(model):
            model = model._orig_mod  # type: ignore[assignment]  # a module, untyped in nn.Module.__getattr__
        else:
            return model


def _is_compiled(module: nn.Module) -> bool:
    # Checked by name, because importing the class takes seconds.
    return type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), nn.Module)


def has_replaced_method(module: nn.Module) -> bool:
    """Return whether a method of a module's class was replaced on the instance."""
    return any(callable(value) and hasattr(type(module), name) for name, value in vars(module).items())


def require_ready(model: nn.Module) -> None:
    """Raise unless a model can be run and copied layer by layer.

    Raises:
        UserError: a lazy module has no weights yet, or a part of the model is compiled or scripted separately.
    """
    for name, module in model.named_modules():
        called = f"'{name}'" if name else "the model"
        for weight, tensor in (*module._parameters.items(), *module._buffers.items()):
            if nn.parameter.is_lazy(tensor):
                raise UserError(f"{called} is lazy, its '{weight}' has no shape yet: run the model once on an example")
        if _is_compiled(module):
            raise UserError(f"{called} is compiled separately, which hides its layers: compile the finished network")
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{called} is a TorchScript module, which hides its layers: give the Python module")


@contextmanager
def hooked(handles: list[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Switch a model to eval mode inside the block, and restore its state at the end.

    The state is made up of modes, tensor values, gradients, ``requires_grad`` flags, hooks, and all attributes and
    containers that a forward may change. A module that was compiled in place runs uncompiled.

    Raises:
        UserError: see `require_ready`.
    """
    require_ready(model)
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    containers = [pair for _, kept in attributes for pair in _containers(list(kept.values()), NESTING)]
    tensors = {id(tensor): tensor for _, kept in attributes for tensor in _tensors(kept, NESTING)}
    values = [(tensor, tensor.detach().clone()) for tensor in tensors.values() if not tensor.is_meta]
    gradients = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    try:
        model.eval()
        for module, _ in attributes:
            if vars(module).get("_compiled_call_impl") is not None:
                module._compiled_call_impl = None
        yield
    finally:
        for module, kept in attributes:
            vars(module).clear()
            vars(module).update(kept)
        for container, entries in containers:
            container.clear()
            container.update(entries) if isinstance(container, dict | set) else container.extend(entries)
        for tensor, before in values:
            # Compared by value, because a write through .data leaves no other trace.
            if not torch.equal(tensor, before):
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.detach().copy_(before)
        for weight, required, gradient in gradients:
            if weight.requires_grad != required:
                weight.requires_grad_(required)
            weight.grad = gradient


def _containers(value: Any, depth: int) -> Iterator[tuple[Any, Any]]:
    """Yield nested dicts, lists, sets and deques, each with a shallow copy."""
    if isinstance(value, dict | list | set | deque):
        yield value, value.copy()
    if depth and isinstance(value, dict | list | tuple | deque):
        for entry in list(value.values()) if isinstance(value, dict) else list(value):
            yield from _containers(entry, depth - 1)


def clone(model: nn.Module, memo: Mapping[int, object] | None = None) -> nn.Module:
    """Copy a model, including non-leaf tensors that it holds, which `copy.deepcopy` alone rejects.

    Args:
        model: the model to copy; left unchanged.
        memo: id of a module or tensor -> its replacement in the copy; see `copy.deepcopy`.

    Raises:
        UserError: a module holds an attribute that cannot be copied; the message names it.
    """
    replaced = dict(memo or {})
    for module in model.modules():
        for tensor in _tensors(vars(module), NESTING):
            if not tensor.is_leaf:  # a weight computed by pruning or weight norm, or a stored output
                replaced.setdefault(id(tensor), tensor.detach().clone())
    try:
        return copy.deepcopy(model, replaced)
    except Exception as error:  # a user-defined attribute may raise anything
        raise UserError(_uncopyable(model, error)) from error


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict | list | tuple | set):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry, depth - 1)


def _uncopyable(model: nn.Module, error: Exception) -> str:
    remedy = "remove it while the network is factorized, or give it a __deepcopy__"
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, {id(tensor): tensor for tensor in _tensors(value, NESTING)})
            except Exception as reason:
                owner = f"'{name}'" if name else "the model"
                return f"'{attribute}' of {owner} cannot be copied ({first_line(reason)}): {remedy}"
    return f"the model cannot be copied ({first_line(error)}): {remedy}"

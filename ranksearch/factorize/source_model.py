"""The source model of a call: run, hooked and copied, and afterwards exactly as it was."""

from __future__ import annotations

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

# How deep containers are searched for tensors that a module keeps beside its parameters and buffers.
NESTING = 4


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside `nn.DataParallel`, `DistributedDataParallel` and `torch.compile`, whose names plans use."""
    while True:
        if isinstance(model, nn.DataParallel | DistributedDataParallel):
            model = model.module
        elif _is_compiled(model):
            model = model._orig_mod  # type: ignore[assignment]  # a module, which nn.Module's __getattr__ leaves open
        else:
            return model


def _is_compiled(module: nn.Module) -> bool:
    # By name, for the class lies behind an import of seconds.
    return type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), nn.Module)


def require_ready(model: nn.Module) -> None:
    """Raise if a model cannot be run and copied layer by layer.

    Raises:
        UserError: a lazy module has no weights yet, or a part of the model is compiled or scripted by itself.
    """
    for name, module in model.named_modules():
        called = f"'{name}'" if name else "the model"
        for weight, tensor in (*module._parameters.items(), *module._buffers.items()):
            if nn.parameter.is_lazy(tensor):
                raise UserError(f"{called} is lazy, its '{weight}' has no shape yet: run the model once on an example")
        if _is_compiled(module):
            raise UserError(f"{called} is compiled by itself, which hides its layers: compile the finished network")
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{called} is a TorchScript module, which hides its layers: give the Python module")


@contextmanager
def hooked(handles: list[RemovableHandle]) -> Iterator[None]:
    """Take hooks away again at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode inside the block, and put everything about it back at its end.

    That is: modes, the values of all its tensors, gradients and their flags, hooks, and every attribute and container
    that a forward may change. A module that was compiled in place runs as it was written.

    Raises:
        UserError: see `require_ready`.
    """
    require_ready(model)
    modules = list(model.modules())
    attributes = [(module, dict(vars(module))) for module in modules]
    containers = [pair for _, kept in attributes for pair in _containers(list(kept.values()), NESTING)]
    tensors = {id(tensor): tensor for _, kept in attributes for tensor in _tensors(kept, NESTING)}
    values = [(tensor, tensor.detach().clone()) for tensor in tensors.values() if not tensor.is_meta]
    gradients = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    try:
        model.eval()
        for module in modules:
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
            # Compared by value, for what is written through .data leaves no other trace.
            if not torch.equal(tensor, before):
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.detach().copy_(before)
        for weight, required, gradient in gradients:
            if weight.requires_grad != required:
                weight.requires_grad_(required)
            weight.grad = gradient


def _containers(value: Any, depth: int) -> Iterator[tuple[Any, Any]]:
    """Dicts, lists and sets that are held, with a copy of what is in each."""
    if isinstance(value, dict | list | set | deque):
        yield value, value.copy()
    if depth and isinstance(value, dict | list | tuple | deque):
        for entry in list(value.values()) if isinstance(value, dict) else list(value):
            yield from _containers(entry, depth - 1)


def clone(model: nn.Module, memo: Mapping[int, object] | None = None) -> nn.Module:
    """Copy a model, tensors that it computed and keeps included, which `copy.deepcopy` by itself refuses.

    Args:
        model: is not touched.
        memo: id of a module or tensor -> what the copy has in its place; see `copy.deepcopy`.

    Raises:
        UserError: a module keeps something that cannot be copied; it is named.
    """
    replaced = dict(memo or {})
    for module in model.modules():
        for tensor in _tensors(vars(module), NESTING):
            if not tensor.is_leaf:  # a weight that pruning or weight norm computed, or an output that was kept
                replaced.setdefault(id(tensor), tensor.detach().clone())
    try:
        return copy.deepcopy(model, replaced)
    except Exception as error:  # whatever someone's own attribute raises
        raise UserError(_uncopyable(model, error)) from error


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict | list | tuple | set):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry, depth - 1)


def _uncopyable(model: nn.Module, error: Exception) -> str:
    remedy = "take it out while the network is factorized, or give it a __deepcopy__"
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

"""Export of a network as Python source code: stock torch modules and one forward method.

The file needs torch and nothing else. The forward method is traced by `torch.fx` in eval mode, so training-only
behavior is lost.
"""

import ast
import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ranksearch.errors import UserError, first_line

OTHERWISE = "use format=torch_export, which takes any network that torch.export can follow"
# Per-axis arguments, for which (3, 3) is equivalent to 3.
PER_AXIS = ("kernel_size", "stride", "padding", "dilation", "output_size")
# Packages that functions of a traced graph may come from.
STOCK = ("torch", "_operator", "math", "builtins")


def write_plain(network: nn.Module) -> tuple[str, dict[str, Tensor]]:
    """Return the source code of a network and its state dict.

    Args:
        network: the network in eval mode; maps one tensor to one tensor.

    Returns:
        Source code of a module with a class ``Network``, and a state dict for it.

    Raises:
        UserError: the network's control flow depends on its input, or it contains modules other than torch's own.
    """
    try:
        graph = _Tracer(network).trace(network)
    except Exception as error:  # a custom forward may raise anything on a proxy input
        raise UserError(f"the network cannot be traced ({first_line(error)}): {OTHERWISE}") from error
    lines: list[str] = []
    state: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for node in graph.nodes:
        target = str(node.target)
        if node.op not in ("call_module", "get_attr") or target in names:
            continue
        names[target] = name = _identifier(target, set(names.values()))
        if node.op == "call_module":
            module = network.get_submodule(target)
            lines.append(f"self.{name} = {_constructor(module, target)}")
            state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        else:
            value = _attribute(network, target)
            lines.append(f'self.register_buffer("{name}", torch.empty({tuple(value.shape)}, dtype={value.dtype}))')
            state[name] = value.detach()
    for node in graph.nodes:
        node.type = None  # annotations in custom code may name anything
        if node.op in ("call_module", "get_attr"):
            node.target = names[str(node.target)]
    code = graph.python_code("self")
    used = {name: value for name, value in code.globals.items() if re.search(rf"\b{re.escape(name)}\b", code.src)}
    return _source(lines, code.src, _imports(used)), {key: value.clone() for key, value in state.items()}


class _Tracer(fx.Tracer):
    """Tracer into all modules but torch's own and those that are the identity in eval mode, such as drop path."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.idle = {module for module in network.modules() if _does_nothing(module)}

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return module in self.idle or super().is_leaf_module(module, name)


@torch.no_grad()
def _does_nothing(module: nn.Module) -> bool:
    """Return whether a custom module without state or children returns the very tensor that it is given."""
    if _is_stock(module) or module.training or any(True for _ in module.children()) or module.state_dict():
        return False
    given = torch.linspace(-1, 1, 4).reshape(1, 1, 2, 2)
    before = given.clone()
    try:
        return module(given) is given and torch.equal(given, before)
    except Exception:  # it takes another kind of input
        return False


def _is_stock(module: nn.Module) -> bool:
    return getattr(nn, type(module).__name__, None) is type(module)


def _identifier(target: str, taken: set[str]) -> str:
    """Return an unused attribute name for a dotted name."""
    name = re.sub(r"\W", "_", target)
    if not name.isidentifier() or hasattr(nn.Module, name):
        name = f"layer_{name}"
    while name in taken:
        name += "_"
    return name


def _attribute(network: nn.Module, target: str) -> Tensor:
    owner, _, name = target.rpartition(".")
    value = getattr(network.get_submodule(owner), name)
    if not isinstance(value, Tensor):
        raise UserError(f"'{target}' of the network is a {type(value).__name__}, not a tensor: {OTHERWISE}")
    return value


def _constructor(module: nn.Module, target: str) -> str:
    """Return the call that rebuilds a module; torch keeps most arguments as attributes of the same names."""
    if _does_nothing(module):
        return "nn.Identity()"
    kind = type(module)
    if not _is_stock(module):
        raise UserError(f"'{target}' is a {kind.__module__}.{kind.__qualname__}, not of torch.nn: {OTHERWISE}")
    given = []
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in ("device", "dtype") or not hasattr(module, name):
            continue
        value = getattr(module, name)
        if name == "bias" or isinstance(value, Tensor):
            value = value is not None
        if name in PER_AXIS and isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if value == parameter.default:
            continue
        try:
            ast.literal_eval(repr(value))
        except (ValueError, SyntaxError):
            raise UserError(f"{name}={value!r} of '{target}' cannot be written as source code: {OTHERWISE}") from None
        given.append(repr(value) if parameter.default is inspect.Parameter.empty else f"{name}={value!r}")
    call = f"nn.{kind.__name__}({', '.join(given)})"
    if _shapes(module) != _shapes_of(call):
        raise UserError(f"'{target}' cannot be rebuilt by {call}: {OTHERWISE}")
    return call


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def _shapes_of(call: str) -> dict[str, torch.Size] | None:
    """Return the state shapes of the module that a call constructs, or None if the call fails."""
    try:
        with torch.device("meta"):
            return _shapes(eval(call, {"nn": nn}))
    except Exception:  # a constructor without a required argument may raise anything
        return None


def _imports(names: Mapping[str, Any]) -> list[str]:
    """Return import statements for the names that the traced code uses, besides torch."""
    lines = []
    for name, value in names.items():
        if name == "torch" or value is type(None):
            continue
        if isinstance(value, float):  # inf and nan are the only named numbers
            lines.append(f"from math import {name}")
            continue
        home = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", "builtins")
        line, origin = f"import {home} as {name}", home
        if not inspect.ismodule(value):
            line, origin = f"from {home} import {value.__qualname__} as {name}", f"{home}.{value.__qualname__}"
        if home.partition(".")[0] not in STOCK:
            raise UserError(f"the network calls {origin}, which is not part of torch: {OTHERWISE}")
        if home != "builtins":
            lines.append(line)
    return lines


def _source(modules: list[str], forward: str, imports: list[str]) -> str:
    body = "\n".join(f"        {line}" for line in modules)
    method = "\n".join(f"    {line}".rstrip() for line in forward.strip().splitlines())
    return f'''"""A network of torch's own modules, written by ranksearch. It needs torch and nothing else."""

from pathlib import Path

import torch
from torch import nn
{chr(10).join(imports)}


class Network(nn.Module):
    """Use `load` for the trained one."""

    def __init__(self):
        super().__init__()
{body}

{method}


def load():
    """The network with its weights, in eval mode."""
    network = Network()
    weights = Path(__file__).with_name("weights.pt")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()
'''

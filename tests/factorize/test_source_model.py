"""The library leaves the model that it is given exactly as it was, whatever its mode, type, wrapper or state."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

import ranksearch
from ranksearch import LayerChoice, RankPlan, UserError
from ranksearch.factorize import collect_sensitivities, record_activations, untouched
from ranksearch.factorize.source_model import clone, unwrap


class Net(nn.Module):
    """Three convolutions, of which the second is special in one way or another."""

    def __init__(self, special: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.special = nn.Conv2d(16, 16, 3, padding=1) if special is None else special
        self.plain, self.drop = nn.Conv2d(16, 16, 3, padding=1), nn.Dropout(0.5)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.special(self.norm(self.stem(x)).relu()).relu()
        return self.fc(self.drop(self.plain(x)).mean((2, 3)))


class Keeping(nn.Conv2d):
    """It keeps its last output, counts its calls in many ways, and writes to its tensors, even in eval mode."""

    def __init__(self) -> None:
        super().__init__(16, 16, 3, padding=1)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("unseen", torch.zeros(()))
        self.last: Any = None
        self.calls, self.each, self.by_name, self.plain = 0, [], {"inner": {}}, torch.zeros(2)

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        self.each.append(self.calls)
        self.by_name["inner"][self.calls] = 1
        self.plain += 1
        self.seen += 1
        self.unseen.data += 1
        self.bias.data += 1e-3
        self.last = super().forward(input)
        return self.last


class Merging(nn.Conv2d):
    """It merges an adapter into its weight whenever it is switched to eval mode, as LoRA layers do."""

    def __init__(self) -> None:
        super().__init__(16, 16, 3, padding=1)
        self.merged = False

    def train(self, mode: bool = True) -> nn.Module:
        if self.merged == mode:
            self.weight.data += -0.5 if mode else 0.5
            self.merged = not mode
        return super().train(mode)


def pruned() -> nn.Module:
    layer = nn.Conv2d(16, 16, 3, padding=1)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def frozen() -> nn.Module:
    model = Net()
    model.plain.requires_grad_(False)
    model.fc(torch.ones(1, 16)).sum().backward()
    return model


def hooked() -> nn.Module:
    model = Net()
    model.plain.register_forward_hook(lambda *_: None)
    model.special.register_forward_pre_hook(lambda *_: None)
    return model


def mixed() -> nn.Module:
    model = Net().train()
    model.norm.eval()
    model.drop.eval()
    return model


def normed() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):  # it is the old way, which many networks still have
        return Net(weight_norm(nn.Conv2d(16, 16, 3, padding=1)))


def compiled() -> nn.Module:
    model = Net()
    model.compile(backend="eager")
    return model


KINDS: dict[str, Callable[[], nn.Module]] = {
    "in training": lambda: Net().train(),
    "in eval": lambda: Net().eval(),
    "in mixed modes": mixed,
    "frozen in part, with gradients": frozen,
    "with hooks": hooked,
    "pruned": lambda: Net(pruned()),
    "with weight norm": normed,
    "with spectral norm": lambda: Net(parametrizations.spectral_norm(nn.Conv2d(16, 16, 3, padding=1))),
    "that keeps what it computes": lambda: Net(Keeping()),
    "that merges an adapter": lambda: Net(Merging()).train(),
    "float64": lambda: Net().double(),
    "bfloat16": lambda: Net().bfloat16(),
    "float16": lambda: Net().half(),
    "channels last": lambda: Net().to(memory_format=torch.channels_last),
    "DataParallel": lambda: nn.DataParallel(Net()),
    "torch.compile": lambda: torch.compile(Net(), backend="eager"),
    "compiled in place": compiled,
}
# Those that every call is tried on.
HARD = ("in mixed modes", "frozen in part, with gradients", "that keeps what it computes", "that merges an adapter")
PLAN = RankPlan({"plain": LayerChoice(4, "vertical")})
CALLS: dict[str, Callable[[nn.Module, list[Tensor]], object]] = {
    "find_plan": lambda model, batches: ranksearch.find_plan(model, batches, speedup=1.2),
    "apply_plan": lambda model, batches: ranksearch.apply_plan(PLAN, model, batches),
    "profile_layers": lambda model, batches: ranksearch.profile_layers(model, batches[0]),
    "collect_statistics": lambda model, batches: ranksearch.collect_statistics(model, batches, ["plain"]),
    "collect_sensitivities": lambda model, batches: collect_sensitivities(model, batches, ["plain"]),
    "record_activations": lambda model, batches: record_activations(model, batches[0], ["plain"]),
}


def snapshot(model: nn.Module) -> list[object]:
    found: list[object] = []
    for name, module in model.named_modules():
        tensors = {**module._parameters, **module._buffers}
        values = {
            key: copy.deepcopy(value) for key, value in vars(module).items() if isinstance(value, int | list | str)
        }
        values["by_name"] = copy.deepcopy(vars(module).get("by_name"))
        values["last"], values["plain"] = id(vars(module).get("last")), str(vars(module).get("plain"))
        hooks = {key: dict(value) for key, value in vars(module).items() if "hooks" in key and isinstance(value, dict)}
        found += [
            name,
            {key: None if value is None else (value.detach().clone(), value.requires_grad, value.grad, value.stride())
             for key, value in tensors.items()},
            {key: id(value) if isinstance(value, Tensor) else value for key, value in values.items()},
            hooks,
        ]  # fmt: skip
    return found


def same(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return isinstance(other, tuple | list) and len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize(
    ("kind", "call"),
    [(kind, call) for kind in KINDS for call in CALLS if kind in HARD or call in ("find_plan", "apply_plan")],
)
def test_the_model_is_as_it_was(kind: str, call: str) -> None:
    model = KINDS[kind]()
    dtype = next(model.parameters()).dtype
    torch.manual_seed(1)
    batches = [torch.randn(8, 3, 12, 12, dtype=dtype) for _ in range(2)]
    before, random = snapshot(model), torch.get_rng_state()
    CALLS[call](model, batches)
    assert same(snapshot(model), before)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_is_found_and_applied_with_a_network_of_the_same_type(kind: str) -> None:
    model = KINDS[kind]()
    dtype = next(model.parameters()).dtype
    torch.manual_seed(1)
    batches = [torch.randn(8, 3, 12, 12, dtype=dtype) for _ in range(2)]
    plan = ranksearch.find_plan(model, batches, speedup=1.2)
    network = ranksearch.apply_plan(plan, model, batches)
    output = network(batches[0])
    assert plan.layers.keys() <= {"special", "plain"}
    assert not network.training
    assert (output.dtype, output.shape) == (dtype, (8, 10))
    assert bool(torch.isfinite(output).all())


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("default", [torch.float64, torch.float16, torch.bfloat16])
def test_torch_s_default_type_changes_nothing(default: torch.dtype) -> None:
    torch.manual_seed(1)
    batches = [torch.randn(8, 3, 12, 12) for _ in range(2)]
    model = Net().eval()
    expected = ranksearch.find_plan(model, batches, speedup=1.5)
    with default_dtype(default):
        plan = ranksearch.find_plan(model, batches, speedup=1.5)
        network = ranksearch.apply_plan(plan, model, batches)
        assert torch.get_default_dtype() == default
    assert plan == expected
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: Net(nn.LazyConv2d(16, 3, padding=1)), r"'special' is lazy, its 'weight' has no shape yet: run"),
        (lambda: Net(torch.compile(nn.Conv2d(16, 16, 3, padding=1))), r"'special' is compiled separately"),
        (lambda: Net(torch.jit.trace(nn.ReLU(), torch.ones(1))), r"'special' is a TorchScript module"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*", "ignore:Lazy modules:UserWarning")
def test_what_cannot_be_looked_into_is_named_at_once(model: Callable[[], nn.Module], said: str) -> None:
    network, batches = model(), [torch.randn(8, 3, 12, 12)]
    for call in CALLS.values():
        with pytest.raises(UserError, match=said):
            call(network, batches)


def test_what_cannot_be_copied_is_named() -> None:
    model = Net()
    model.plain.handle = (line for line in ())  # a generator
    with pytest.raises(UserError, match=r"'handle' of 'plain' cannot be copied \(.*generator.*\): remove it"):
        clone(model)


def test_a_failure_inside_puts_everything_back() -> None:
    model = Net(Keeping()).train()
    before = snapshot(model)

    def fail() -> None:
        with untouched(model):
            model(torch.randn(2, 3, 8, 8))
            model.plain.weight.requires_grad_(False)
            model.plain.register_forward_hook(lambda *_: None)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert same(snapshot(model), before)


def test_wrappers_are_looked_through() -> None:
    model = Net()
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(model, backend="eager")) is model
    assert unwrap(torch.compile(nn.DataParallel(model), backend="eager")) is model
    assert unwrap(model) is model


class ByType(nn.Module):
    """Code that asks for types meets neither the dense layer nor its twin while layers are solved in turn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.ReLU()
        )
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.ReLU):
                x = layer(x)
        return self.fc(x.mean((2, 3)))


class Scaled(nn.BatchNorm2d):
    """A norm that is called with more than its input."""

    def forward(self, input: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(input) * scale


def scaled() -> nn.Module:
    model = Net()
    model.norm = Scaled(16)
    return model


def test_layers_that_cannot_be_solved_in_turn_are_solved_by_themselves() -> None:
    batches = [torch.randn(20, 3, 12, 12) for _ in range(2)]
    for model in (ByType().eval(), scaled().eval()):
        plan = ranksearch.find_plan(model, batches, 1.2)
        network = ranksearch.apply_plan(plan, model, batches)
        with torch.no_grad():
            error = float((network(batches[0]) - model(batches[0])).norm() / model(batches[0]).norm())
        assert len(plan) > 0
        assert error < 0.5


def test_what_was_done_to_a_layer_itself_stays_or_leaves_it_dense() -> None:
    batches = [torch.randn(20, 3, 12, 12)]
    model = Net().eval()
    model.plain.gain = 2.0
    network = ranksearch.apply_plan(PLAN, model, batches)
    assert network.plain.gain == 2.0
    patched, biased, owner = Net().eval(), Net().eval(), Net().eval()
    patched.plain.forward = lambda x: torch.tanh(type(patched.plain).forward(patched.plain, x))
    prune.random_unstructured(biased.plain, "bias", 0.3)
    owner.plain.register_buffer("own", torch.ones(3))
    for model, said in (
        (patched, "one of its methods was replaced on the instance"),
        (biased, "its bias is not a parameter but computed by a hook"),
        (owner, "it holds more than a weight and a bias"),
    ):
        assert said in ranksearch.profile_layers(model, batches[0]).skipped["plain"].reason
        with pytest.raises(UserError, match=said):
            ranksearch.apply_plan(PLAN, model, batches)


def test_inside_inference_mode_the_network_can_be_trained_all_the_same() -> None:
    model, batches = Net().eval(), [torch.randn(20, 3, 12, 12)]
    with torch.inference_mode():
        network = ranksearch.apply_plan(PLAN, model, batches)
    network.train()(batches[0]).sum().backward()
    assert network.plain.module0.weight.grad is not None


@pytest.mark.parametrize(
    ("model", "images", "said"),
    [
        (lambda: Net().double(), torch.randn(16, 3, 12, 12), r"cannot run on a tensor \[1, 3, 12, 12\] of float32"),
        (Net, torch.randn(16, 1, 12, 12), "the model cannot run on a tensor"),
        (Net, torch.zeros(16, 3, 12, 12, dtype=torch.uint8), "the model cannot run on a tensor .* of uint8"),
        (lambda: Net().to("meta"), torch.randn(16, 3, 12, 12), "tensors on the meta device have no data"),
        (Net, torch.full((16, 3, 12, 12), float("inf")), "values that are not finite: remove them"),
    ],
)
def test_images_that_the_model_cannot_take_are_named(model: Callable[[], nn.Module], images: Tensor, said: str) -> None:
    network = model().eval()
    for call in ("find_plan", "apply_plan"):
        with pytest.raises(UserError, match=said):
            CALLS[call](network, [images])


def test_a_copy_that_still_runs_the_source_is_refused() -> None:
    class Closing(Net):
        def __init__(self) -> None:
            super().__init__()
            self.post = lambda x: self.fc(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.post(self.plain(self.stem(x).relu()).mean((2, 3)))

    with pytest.raises(UserError, match=r"a copy of the model still runs 'fc' of the original"):
        ranksearch.apply_plan(PLAN, Closing().eval(), [torch.randn(20, 3, 12, 12)])

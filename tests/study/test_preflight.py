"""What a search ends with is tried before it begins: it loads, or the search is refused."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

import ranksearch
from ranksearch import LayerChoice, PlanError, RankPlan, UserError
from ranksearch.study.preflight import check_round_trip
from ranksearch.tensor_files import checksum, read_weights, write_weights

PLAN = RankPlan({"last": LayerChoice(4)})
EXAMPLE = torch.empty(1, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(channels, 16, 3, padding=1) for channels in (3, 16, 16))
        self.last, self.fc = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, self.one, self.two, self.last):
            x = layer(x).relu()
        return self.fc(x.mean((2, 3)))


def one_layer() -> nn.Module:
    model = Net()
    model.two = model.one
    return model


def one_weight() -> nn.Module:
    model = Net()
    model.two.weight = model.one.weight
    return model


def views() -> nn.Module:
    model = Net()
    both = torch.randn(2, 16)
    model.one.bias, model.two.bias = nn.Parameter(both[0]), nn.Parameter(both[1])
    return model


def pruned() -> nn.Module:
    model = Net()
    prune.l1_unstructured(model.one, "weight", 0.5)
    return model


def normed() -> nn.Module:
    model = Net()
    with warnings.catch_warnings(action="ignore"):  # it is the old way, which many networks still have
        weight_norm(model.one)
    parametrizations.weight_norm(model.two)
    return model


class Changing(Net):
    """Of another shape each time it is built."""

    built = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).built += 1
        self.fc = nn.Linear(16, 4 + type(self).built)


class Foreign(Net):
    """With a layer that code around it picks by its very type."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, self.one, self.two, self.last):
            if type(layer) is nn.Conv2d:
                x = layer(x).relu()
        return self.fc(x.mean((2, 3)))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "one layer in two places": one_layer,
    "two layers of one weight": one_weight,
    "views of one tensor": views,
    "pruned": pruned,
    "weight norm": normed,
    "channels last": lambda: one_weight().to(memory_format=torch.channels_last),
    "float16": lambda: Net().half(),
    "float64, one weight": lambda: one_weight().double(),
}


def build(kind: str) -> nn.Module:
    return KINDS[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_what_loads_in_the_end_is_let_through_and_does_load(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    dtype = next(model.parameters()).dtype
    before, random = checksum(model), torch.get_rng_state()
    builder = {"_target_": f"{__name__}.build", "kind": kind}
    sys.modules.setdefault(__name__, sys.modules[build.__module__])
    check_round_trip(model, PLAN, builder, EXAMPLE.to(dtype))
    assert checksum(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    network = ranksearch.apply_plan(PLAN, model, [torch.randn(16, 3, 8, 8).to(dtype)])
    write_weights(tmp_path / "weights", network)
    again = ranksearch.factorize.factorized_like(build(kind), PLAN)
    read_weights(tmp_path / "weights", again)
    images = torch.randn(2, 3, 8, 8).to(dtype)
    assert torch.equal(again.eval()(images), network(images))


def test_what_would_not_load_is_refused() -> None:
    builder = {"_target_": f"{__name__}.Changing"}
    with pytest.raises(UserError, match=r"cannot be saved and loaded again \(.*\): let model build the same"):
        check_round_trip(Changing(), PLAN, builder, EXAMPLE)


def test_a_layer_that_would_not_run_is_named() -> None:
    with pytest.raises(PlanError, match="'last' no longer runs once it is factorized"):
        check_round_trip(Foreign(), PLAN, {"_target_": f"{__name__}.Foreign"}, EXAMPLE)
    with pytest.raises(PlanError, match="'last' no longer runs"):
        ranksearch.apply_plan(PLAN, Foreign(), [torch.randn(16, 3, 8, 8)])


def test_a_file_of_other_names_or_shapes_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights", Net())
    for other in (nn.Sequential(nn.Linear(2, 2)), Changing()):
        before = checksum(other)
        with pytest.raises(PlanError, match="does not fit the network"):
            read_weights(tmp_path / "weights", other)
        assert checksum(other) == before

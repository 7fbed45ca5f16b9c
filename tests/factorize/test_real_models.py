"""Surgery on the networks that people have, at the size that they have them."""

from __future__ import annotations

import copy
import io
import pickle
from functools import cache

import pytest
import torch
import torch.nn.utils.prune
import torchvision
from torch import nn

from ranksearch.cost.base import NetworkCost
from ranksearch.cost.macs import MacsCost, count_macs
from ranksearch.factorize import (
    FactorizedConv2d,
    FactorizedLinear,
    LayerProfile,
    collect_statistics,
    decompose,
    factorize_model,
    profile_layers,
)
from ranksearch.factorize.pca import decompose_pca
from ranksearch.factorize.solution import truncation_error
from ranksearch.plan import LayerChoice, RankPlan

NAMES = [
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "vgg16_bn",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "densenet121",
    "regnet_y_400mf",
    "vit_b_16",
    "swin_t",
]
SHAPE = (3, 224, 224)
# Whose plans take half a minute to build and to run.
LARGE = ("vit_b_16", "vgg16_bn", "resnext50_32x4d")


@cache
def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name)
    assert isinstance(network, nn.Module)
    return network.eval()


@cache
def profiled(name: str) -> LayerProfile:
    return profile_layers(built(name), torch.empty(1, *SHAPE))


def some_layers(name: str) -> RankPlan:
    """A plan of eight layers all over the network, at half their break-even ranks."""
    specs = [spec for spec in profiled(name).layers if spec.out_size <= 1024]
    chosen = specs[:: max(1, len(specs) // 8)][:8]
    return RankPlan({spec.name: LayerChoice(spec.whole_groups(spec.break_even_rank() // 2)) for spec in chosen})


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_factorized_or_skipped_for_a_reason(name: str) -> None:
    profile = profiled(name)
    found = {name for name, module in built(name).named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {spec.name for spec in profile.layers} | set(profile.skipped) >= found
    assert all(layer.reason for layer in profile.skipped.values())
    for layer, left in profile.skipped.items():
        module = built(name).get_submodule(layer)
        if isinstance(module, nn.Conv2d) and 1 < module.groups < module.out_channels:
            pytest.fail(f"grouped {layer} is skipped: {left.reason}")


@pytest.mark.parametrize("name", NAMES)
def test_shares_of_what_is_factorized_and_skipped_add_up(name: str) -> None:
    profile = profiled(name)
    reached = sum(spec.dense_macs for spec in profile.layers) / profile.macs
    left = sum(layer.share for layer in profile.skipped.values())
    # Products of two activations, as in attention, belong to no layer with weights.
    assert 0.9 < reached + left < 1.0001
    assert profile.macs == count_macs(built(name), SHAPE)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else []) for name in NAMES]
)
def test_a_plan_builds_a_network_that_runs_at_its_cost(name: str) -> None:
    model, plan = built(name), some_layers(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    images = torch.randn(2, *SHAPE)
    layers = {layer: model.get_submodule(layer) for layer, _ in plan}
    statistics = collect_statistics(model, [images], layers)
    decompositions = {layer: {"full": decompose(layers[layer], statistics[layer])} for layer in layers}
    result = factorize_model(model, plan, decompositions)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    with torch.no_grad():
        assert bool(torch.isfinite(result(images)).all())
    cost = NetworkCost(MacsCost(), count_macs(model, SHAPE), {spec.name: spec for spec in profiled(name).layers})
    assert count_macs(result, SHAPE) == cost.total(plan) < cost.dense
    replaced = {
        layer for layer, module in result.named_modules() if isinstance(module, FactorizedConv2d | FactorizedLinear)
    }
    assert replaced == set(layers)


def test_packed_attention_is_within_reach() -> None:
    profile = profiled("vit_b_16")
    assert sum("out_proj" in spec.name for spec in profile.layers) == 12
    assert sum(spec.dense_macs for spec in profile.layers) / profile.macs > 0.95


def small() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 12),
    ).eval()
    images = torch.randn(8, 3, 10, 10)
    plan = RankPlan({"0": LayerChoice(6), "3": LayerChoice(4), "6": LayerChoice(3)})
    statistics = collect_statistics(model, [images], [name for name, _ in plan])
    decompositions = {name: {"full": decompose(model.get_submodule(name), statistics[name])} for name, _ in plan}
    return factorize_model(model, plan, decompositions).eval(), images


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # people export by it all the same
def test_the_result_exports_traces_scripts_and_copies() -> None:
    model, images = small()
    with torch.no_grad():
        expected = model(images)
        batch = torch.export.Dim("batch", min=2, max=64)
        exported = torch.export.export(model, (images,), dynamic_shapes=({0: batch},)).module()
        others = {
            "export": exported,
            "fx": torch.fx.symbolic_trace(model),
            "script": torch.jit.script(model),
            "deepcopy": copy.deepcopy(model),
            "pickle": pickle.loads(pickle.dumps(model)),
        }
        for name, other in others.items():
            assert torch.allclose(other(images), expected, atol=1e-5), name
            assert other(images[:3]).shape == (3, 12), name


def test_a_saved_state_holds_its_own_numbers_only() -> None:
    model, _ = small()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert file.tell() < numbers + 12_000
    assert all(
        tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        for tensor in model.state_dict().values()
    )


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-6), (torch.bfloat16, 0.05)])
def test_other_dtypes_are_kept(dtype: torch.dtype, precision: float) -> None:
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(8, 12, 3)).to(dtype), torch.randn(4, 8, 9, 9).to(dtype)
    decomposition = decompose_pca(model[0], collect_statistics(model, [images], ["0"])["0"])
    result = factorize_model(model, RankPlan({"0": LayerChoice(8)}), {"0": {"full": decomposition}})
    assert {tensor.dtype for tensor in result.state_dict().values()} == {dtype}
    with torch.no_grad():
        measured = truncation_error(model(images), result(images), axis=1)
    assert measured == pytest.approx(decomposition.truncation_errors()[8], rel=precision)


def test_hooks_of_a_layer_run_for_its_replacement() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    shapes: list[torch.Size] = []
    model[0].register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    result = factorize_model(model, RankPlan({"0": LayerChoice(4)}), {"0": {"full": decompose(model[0])}})
    result(torch.randn(5, 16))
    assert shapes == [(5, 16)]


def test_layers_that_are_not_plain_or_share_weights_are_named() -> None:
    class Special(nn.Linear):
        """Someone's own."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).relu()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.special = Special(16, 16)
            with torch.no_grad():
                self.pruned = torch.nn.utils.prune.l1_unstructured(nn.Linear(16, 16), "weight", 0.5)
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(self.pruned(self.special(x))))

    profile = profile_layers(Model(), torch.empty(2, 16))
    assert profile.layers == ()
    assert "not a plain" in profile.skipped["special"].reason
    assert "computed by a hook" in profile.skipped["pruned"].reason
    assert profile.skipped["first"].reason == "shares its weights with 'second'"

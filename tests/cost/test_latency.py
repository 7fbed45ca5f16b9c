"""Times as costs: what is measured, between what is interpolated, and what a search makes of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import ranksearch.cost.latency
from ranksearch.allocation.lagrangian import allocate
from ranksearch.cost.base import CostModel, MeasuredCost, NetworkCost
from ranksearch.cost.latency import (
    LEAST_GAINED,
    MOST_GAINED,
    Latency,
    LatencyTable,
    fit_gains,
    ranks_to_time,
    time_side_by_side,
)
from ranksearch.cost.macs import MacsCost
from ranksearch.errors import SettingError, UserError
from ranksearch.factorize import profile_layers
from ranksearch.factorize.trace import layer_inputs
from ranksearch.models.cifar import cifar_resnet
from ranksearch.plan import LayerSpec
from ranksearch.runtimes.benchmark import Timing, time_calls
from ranksearch.runtimes.eager import Eager
from ranksearch.search_space.rules import Rule, SpaceSettings, build_space

SHAPE = (3, 8, 8)
seconds = st.floats(1e-6, 10)


@given(st.lists(seconds, min_size=2, max_size=9), st.floats(0.1, 10))
def test_a_timing_is_the_samples_middle_and_scales_with_them(samples: list[float], factor: float) -> None:
    timing, scaled = Timing.from_samples(samples), Timing.from_samples([factor * sample for sample in samples])
    assert min(samples) <= timing.median <= max(samples)
    assert timing.spread >= 0
    assert scaled.median == pytest.approx(factor * timing.median)
    assert scaled.spread == pytest.approx(timing.spread, abs=1e-9)


def test_calls_are_timed_by_turns() -> None:
    seen: list[str] = []
    samples = time_calls([lambda: seen.append("a"), lambda: seen.append("b")], CPU, repeats=4)
    assert [len(found) for found in samples] == [4, 4]
    assert all(sample > 0 for found in samples for sample in found)
    turns = [name for name, before in zip(seen, [None, *seen], strict=False) if name != before]
    assert turns == ["a", "b"] * 5  # warm-up, then four rounds
    with pytest.raises(SettingError, match="repeats=1 is too few for a spread: use 2 or more"):
        time_calls([], CPU, repeats=1)


@given(st.lists(st.tuples(st.integers(1, 99), st.floats(1, 1e9)), min_size=1, max_size=6), st.integers(1, 120))
def test_a_time_lies_between_its_measured_neighbours(points: list[tuple[int, float]], rank: int) -> None:
    known = dict(sorted(points))
    table = LatencyTable(1e9, {"0": 1e9}, {"0": {"full": (list(known), list(known.values()))}}, 0.0)
    spec = LayerSpec("0", "linear", 128, 128, 1)
    for at, time in known.items():
        assert table.at_rank(spec, at, "full") == round(time)
    around = [
        max((at for at in known if at <= rank), default=min(known)),
        min((at for at in known if at >= rank), default=max(known)),
    ]
    times = [known[at] for at in around]
    assert round(min(times)) <= table.at_rank(spec, rank, "full") <= round(max(times))


shares = st.lists(st.tuples(st.floats(-0.5, 0.9), st.floats(0.2, 1)), min_size=4, max_size=12)


@given(shares, st.floats(0.2, 2), st.floats(-0.3, 0.3))
def test_gains_are_fitted_where_they_are_what_they_should_be(
    known: list[tuple[float, float]], gained: float, overhead: float
) -> None:
    assume(np.linalg.cond(np.array(known)) < 50)
    found, cost = fit_gains(known, [gained * saved - overhead * share for saved, share in known])
    assert LEAST_GAINED <= found <= MOST_GAINED
    assert cost >= 0
    if overhead >= 1e-6 and LEAST_GAINED <= gained <= MOST_GAINED:
        assert (found, cost) == (pytest.approx(gained, abs=1e-6), pytest.approx(overhead, abs=1e-6))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x)[:, :, ::2])
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("build", [Twice, lambda: cifar_resnet(8, 10)])
def test_layers_are_timed_on_the_inputs_that_they_have_in_the_network(build: Callable[[], nn.Module]) -> None:
    model = build().eval()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    expected = layer_inputs(model, names, 5, SHAPE)
    seen: dict[str, list[torch.Size]] = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: seen[name].append(given[0].shape)
        )
    model(torch.zeros(5, *SHAPE))
    assert expected == seen


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, list[LayerSpec]]:
    model = cifar_resnet(8, 10).eval()
    return model, list(profile_layers(model, torch.empty(1, *SHAPE)).layers)


def test_the_table_holds_every_layer_and_measuring_changes_nothing(network: tuple[nn.Module, list[LayerSpec]]) -> None:
    model, layers = network
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    table = Latency(repeats=2).measure(model, layers, SHAPE, CPU)
    assert isinstance(table, CostModel)
    assert isinstance(Latency(), MeasuredCost)
    assert not isinstance(MacsCost(), MeasuredCost)
    for spec in layers:
        assert 0 < table.dense(spec) < table.network(model, SHAPE)
        assert set(table.factorized[spec.name]) == set(spec.schemes)
        for scheme in spec.schemes:
            assert table.at_rank(spec, spec.break_even_rank(scheme), scheme) > 0
    alike = [spec for spec in layers if spec.name in ("layer1.0.conv1", "layer1.0.conv2")]
    assert len({table.dense(spec) for spec in alike}) == 1  # one shape is timed once
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from([1, 3]), st.sampled_from([1, 2, 4]))
def test_ranks_to_time_span_a_scheme_s_ranks(width: int, out: int, kernel: int, groups: int) -> None:
    spec = LayerSpec("0", "conv2d", width * groups, out * groups, 49, (kernel, kernel), groups)
    for scheme in spec.schemes:
        ranks, limit = ranks_to_time(spec, scheme), spec.break_even_rank(scheme)
        assert ranks == sorted(set(ranks))
        assert all(rank % groups == 0 and 0 < rank <= limit for rank in ranks)
        assert limit - ranks[-1] < max(8 * groups, groups + 1)  # but for a block


def test_a_table_is_read_again_and_a_damaged_one_is_measured_anew(
    network: tuple[nn.Module, list[LayerSpec]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    model, layers = network
    settings = Latency(repeats=2, cache=str(tmp_path))
    table = settings.measure(model, layers, SHAPE, CPU)
    [path] = tmp_path.iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(ranksearch.cost.latency, "time_calls", None)  # nothing may be timed
        assert settings.measure(model, layers, SHAPE, CPU) == table
        for other in (replace(settings, batch_size=2), replace(settings, runtime=Eager(channels_last=False))):
            with pytest.raises(TypeError):
                other.measure(model, layers, SHAPE, CPU)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    settings.measure(model, layers, SHAPE, CPU)
    assert "is damaged, its checksum does not match; measuring again" in caplog.text
    monkeypatch.setattr(ranksearch.cost.latency, "time_calls", None)
    settings.measure(model, layers, SHAPE, CPU)  # the new one is whole


@dataclass(frozen=True)
class Overhead(MacsCost):
    """Every factorized layer costs so much more."""

    more: int = 0

    def at_rank(self, spec: LayerSpec, rank: int, scheme: str) -> int:
        return spec.macs_at(rank, scheme) + self.more


@given(st.integers(0, 700_000), st.integers(0, 10**6))
def test_a_layer_that_would_get_slower_stays_dense(more: int, spare: int) -> None:
    model = cifar_resnet(8, 10)
    profile = profile_layers(model, torch.empty(1, *SHAPE))
    layers = {spec.name: spec for spec in profile.layers}
    cost = NetworkCost(Overhead(more=more), MacsCost().network(model, SHAPE), layers)
    settings = SpaceSettings(rules=[Rule(match="layer3.*", low=1, step=1)], multiple_of=1)
    free = [spec for name, spec in layers.items() if name.startswith("layer")]
    if not any(cost.break_even_rank(spec, scheme) for spec in free for scheme in spec.schemes):
        with pytest.raises(UserError, match="no latent size saves MACs"):
            build_space(settings, profile, cost)
        return
    space = build_space(settings, profile, cost)
    for layer in space.layers:
        for choice in layer.choices:
            if choice is not None:
                assert cost.model.at_rank(layer.spec, choice.latent_size, choice.scheme) < cost.model.dense(layer.spec)
    for name, left in space.left.items():
        assert left.reason in ("space.stem=dense", "space.classifier=dense", "no latent size saves MACs")
        assert name not in {layer.spec.name for layer in space.layers}
    errors = {
        layer.spec.name: {scheme: [1 / (1 + rank) for rank in range(high + 1)] for scheme, high in layer.highs.items()}
        for layer in space.layers
    }
    budget = space.lowest_budget(cost.dense) + spare
    assume(budget <= cost.dense)
    assert cost.total(allocate(space, errors, budget)) <= budget


def test_the_speedup_by_the_clock_is_that_of_bursts_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[Callable[[], object]]] = []

    def timed(calls: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[list[float]]:
        seen.append(calls)
        assert [call().shape for call in calls] == [(4, 10), (4, 10)]
        return [[4.0, 8.0, 2.0], [2.0, 4.0, 1.0]]  # a machine that slows both down at times

    monkeypatch.setattr(ranksearch.cost.latency, "time_calls", timed)
    model = cifar_resnet(8, 10)
    found = time_side_by_side(model, model, SHAPE, CPU, Latency(batch_size=4))
    assert (found.speedup, found.spread) == (2.0, 0.0)
    assert (found.dense_seconds, found.factorized_seconds) == (4.0, 2.0)
    assert found.format() == "batch 4: 4000.00 ms dense, 2000.00 ms factorized, 2.00x +- 0 %"
    assert len(seen) == 1

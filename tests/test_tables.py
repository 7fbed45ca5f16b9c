"""Plans and profiles print as tables, and show as tables in a notebook."""

from __future__ import annotations

import copy
import pickle
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

import ranksearch
from ranksearch import LayerChoice, RankPlan
from ranksearch.cost.macs import count_macs


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    depthwise = nn.Conv2d(32, 32, 3, groups=32)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), depthwise, nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32, 10)).eval()


@pytest.fixture(scope="module")
def plan(model: nn.Module) -> RankPlan:
    return ranksearch.find_plan(model, torch.randn(64, 3, 16, 16), 1.4, progress=False)


def test_a_plan_that_was_found_shows_what_it_costs(model: nn.Module, plan: RankPlan) -> None:
    assert plan.details is not None
    network = ranksearch.apply_plan(plan, model, torch.randn(32, 3, 16, 16), progress=False)
    assert plan.details.dense_macs == count_macs(model, (3, 16, 16))
    assert plan.details.macs == count_macs(network, (3, 16, 16))
    text = str(plan)
    for name, choice in plan:
        [row] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        assert choice.scheme in row
        assert f"{plan.details.layers[name].macs / 1e6:.2f}" in row
        assert f"{plan.details.layers[name].error:.2%}" in row
    assert f"{plan.details.dense_macs / plan.details.macs:.2f}x fewer" in text
    assert "<table>" in plan._repr_html_()


def test_what_a_plan_costs_is_kept_but_makes_no_other_plan(plan: RankPlan) -> None:
    same = RankPlan(plan.layers)
    assert same == plan
    assert hash(same) == hash(plan)
    assert same.details is None
    assert "latent size" in str(same)
    for copied in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert copied == plan
        assert copied.details == plan.details


def test_a_profile_shows_every_layer_and_why_others_stay_dense(model: nn.Module) -> None:
    profile = ranksearch.profile_layers(model, torch.zeros(1, 3, 16, 16))
    text = str(profile)
    assert "dense: a depthwise convolution" in text
    assert f"{profile.skipped['3'].share:.1%}" in text
    assert f"{profile.macs / 1e6:.2f}" in text
    output = StringIO()
    Console(file=output, width=120).print(profile)
    assert "whole network" in output.getvalue()
    assert profile._repr_html_().count("<tr>") == 2 + len(profile.layers) + len(profile.skipped)


def test_names_are_escaped_in_a_notebook() -> None:
    assert "&lt;b&gt;" in RankPlan({"<b>": LayerChoice(2)})._repr_html_()

"""One call for a plan and its network; efforts; progress; Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ranksearch
from ranksearch.allocation import decomposed_model
from ranksearch.allocation.effort import EFFORTS
from ranksearch.cost.macs import count_macs
from ranksearch.errors import UserError
from ranksearch.study.context import SearchContext


def test_it_is_what_finding_and_applying_a_plan_gives(context: SearchContext) -> None:
    model, batches = context.model, context.calibration
    both = ranksearch.compress(model, batches, 2)
    assert both.plan == ranksearch.find_plan(model, batches, 2)
    applied = ranksearch.apply_plan(both.plan, model, batches).state_dict()
    for name, value in both.network.state_dict().items():
        assert torch.allclose(applied[name], value, rtol=1e-3, atol=1e-4), name  # sums in another order
    assert not both.network.training


def test_statistics_are_computed_once(context: SearchContext, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    collect = decomposed_model.collect_statistics
    monkeypatch.setattr(decomposed_model, "collect_statistics", lambda *a, **k: calls.append(a) or collect(*a, **k))
    ranksearch.compress(context.model, context.calibration, 2)
    assert len(calls) == 1


@pytest.mark.parametrize("effort", EFFORTS)
def test_every_effort_reaches_the_speedup(effort: str, context: SearchContext) -> None:
    model, batches = context.model, context.calibration
    both = ranksearch.compress(model, batches, 2, effort=effort)  # type: ignore[arg-type]  # a str
    shape = tuple(batches[0].value.shape[1:])
    assert count_macs(model, shape) >= 2 * count_macs(both.network, shape)
    assert {choice.scheme for _, choice in both.plan} <= set(EFFORTS[effort].schemes)


def test_an_unknown_effort_is_refused(context: SearchContext) -> None:
    for call in (
        lambda: ranksearch.find_plan(context.model, context.calibration, 2, effort="heroic"),  # type: ignore[arg-type]
        lambda: ranksearch.compress(context.model, context.calibration, 2, effort="heroic"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match="effort 'heroic' is unknown: choose fast, default, thorough"):
            call()


def test_a_line_is_logged_for_every_stage_unless_progress_is_off(
    context: SearchContext, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ranksearch.allocation.progress_bar"):
        ranksearch.compress(context.model, context.calibration, 2)
        stages = [record.getMessage().split(",")[0] for record in caplog.records]
        caplog.clear()
        ranksearch.compress(context.model, context.calibration, 2, progress=False)
    expected = ("statistics", "error curves", "comparing plans", "solving layers", "BatchNorm")
    assert stages == [f"compress: {stage}" for stage in expected]
    assert not [record for record in caplog.records if record.name == "ranksearch.allocation.progress_bar"]


SCRIPT = """
import torch, ranksearch
from ranksearch.models import cifar_resnet
def tell(stage, done, total):
    print(stage, done, flush=True)
from contextlib import contextmanager
import ranksearch.allocation.api as api
@contextmanager
def shown(call, progress=True):
    yield tell
api.shown = shown
model = cifar_resnet(depth=56, num_classes=10).eval()
ranksearch.compress(model, torch.randn(512, 3, 32, 32).split(64), 2)
"""


def test_an_interrupt_ends_the_call_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("error curves 3"):
            break
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    # At most the layer at hand is finished.
    assert len(rest.splitlines()) <= 2

"""The picked plan's end: measured over seeds, taken up again after an interruption, and read when it is there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from statistics import mean, pstdev

import pytest
import torch

from ranksearch.checkpoint import Checkpoint
from ranksearch.finalize import Finalized, FinalizeSettings, finalize
from ranksearch.latency import MeasuredLatency
from ranksearch.loading import load
from ranksearch.problem import Problem
from ranksearch.records import FrontPoint
from ranksearch.training import evaluate
from ranksearch.trial import evaluate_plan

RECIPE = {"_target_": "ranksearch.models.cifar_resnet", "depth": 8, "num_classes": 10}


def finished(problem: Problem, folder: Path, settings: FinalizeSettings) -> Finalized:
    plan = problem.space.allocate(problem.harms, problem.budget)
    _, result = evaluate_plan(problem, plan, dataclasses.replace(problem.fine_tuning, steps=0))
    picked = FrontPoint(3, True, result)
    return finalize(problem, "study", picked, settings, MeasuredLatency(repeats=2), RECIPE, {}, folder)


def figures(end: Finalized) -> dict[str, object]:
    """All but what holds seconds."""
    return {name: value for name, value in vars(end).items() if name not in ("point", "timed")}


def test_several_seeds_give_a_mean_and_a_spread_and_the_best_is_kept(problem: Problem, tmp_path: Path) -> None:
    end = finished(problem, tmp_path, FinalizeSettings(steps=4, seeds=3))
    accuracies = [fine_tuned.test.accuracy for fine_tuned in end.fine_tuned]
    assert [fine_tuned.seed for fine_tuned in end.fine_tuned] == [problem.seed, problem.seed + 1, problem.seed + 2]
    assert len({fine_tuned.test.loss for fine_tuned in end.fine_tuned}) == 3
    assert (end.accuracy, end.spread) == (mean(accuracies), pstdev(accuracies))
    assert end.saved.validation.accuracy == max(fine_tuned.validation.accuracy for fine_tuned in end.fine_tuned)
    network = load(tmp_path)
    assert evaluate(network, problem.test()) == end.saved.test
    assert evaluate(problem.build(end.point.result.plan), problem.test()) == end.before
    entries = json.loads((tmp_path / "plan.json").read_text())
    assert entries["seed"] == end.saved.seed
    assert [entry["test"]["accuracy"] for entry in entries["seeds"]] == accuracies
    # The same pick is read, not made again; another length is another pick.
    stamp = (tmp_path / "plan.json").stat().st_mtime_ns
    again = finished(problem, tmp_path, FinalizeSettings(steps=4, seeds=3))
    assert (figures(again), again.timed) == (figures(end), end.timed)
    assert [timed.batch_size for timed in end.timed] == [1, 64]
    assert (tmp_path / "plan.json").stat().st_mtime_ns == stamp
    (tmp_path / "export").mkdir()
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert figures(finished(problem, tmp_path, FinalizeSettings(steps=4, seeds=3))) == figures(end)
    assert evaluate(load(tmp_path), problem.test()) == end.saved.test  # made anew
    assert not (tmp_path / "export").exists()  # it was of the damaged one
    assert len(finished(problem, tmp_path, FinalizeSettings(steps=4, seeds=1)).fine_tuned) == 1


@pytest.mark.parametrize("last", [1, 2, 4])
def test_an_interrupted_fine_tuning_goes_on_and_ends_the_same(
    last: int, problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FinalizeSettings(steps=4, seeds=2, checkpoint_every=2)
    whole = finished(problem, tmp_path / "whole", settings)
    written, write = [], Checkpoint.write

    def interrupted(self: Checkpoint, state: dict[str, object]) -> None:
        write(self, state)
        written.append(state["step"])
        if len(written) == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finished(problem, tmp_path / "again", settings)
    assert not (tmp_path / "again" / "plan.json").exists()
    again = finished(problem, tmp_path / "again", settings)
    assert written == [2, 4, 2, 4]  # nothing was done twice
    assert figures(again) == figures(whole)
    ours, theirs = (load(tmp_path / name).state_dict() for name in ("again", "whole"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"plan.json", "model.safetensors"}

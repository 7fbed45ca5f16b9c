"""The picked plan's end: measured over seeds, taken up again after an interruption, and read when it is there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from ranksearch.allocation.lagrangian import allocate
from ranksearch.formats.serialization import load
from ranksearch.results.trials import FeasibleTrial
from ranksearch.runtimes.eager import Eager
from ranksearch.study.context import SearchContext
from ranksearch.study.evaluate import evaluate_plan
from ranksearch.study.finalize import FinalResult, finalize
from ranksearch.study.settings import FinalizeSettings
from ranksearch.training.checkpoint import Checkpoint
from ranksearch.training.loop import evaluate

SEVERAL = FinalizeSettings(steps=4, seeds=3, repeats=2)
BUILDER = {"_target_": "ranksearch.models.cifar_resnet", "depth": 8, "num_classes": 10}


def finished(context: SearchContext, folder: Path, settings: FinalizeSettings) -> FinalResult:
    plan = allocate(context.space, context.weighted_errors, context.budget)
    _, result = evaluate_plan(context, plan, dataclasses.replace(context.fine_tuner, steps=0))
    picked = FeasibleTrial(3, "COMPLETE", True, result, "", 1.0)
    return finalize(context, picked, settings, folder, study="study", runtime=Eager(), builder=BUILDER, compared={})


def figures(end: FinalResult) -> dict[str, object]:
    """All but what holds seconds."""
    return {name: value for name, value in vars(end).items() if name not in ("trial", "timed")}


@pytest.fixture(scope="module")
def seeded(base_context: SearchContext, tmp_path_factory: pytest.TempPathFactory) -> tuple[FinalResult, Path]:
    """A pick that was fine-tuned from three seeds, and its folder; tests must not change it."""
    folder = tmp_path_factory.mktemp("seeded")
    return finished(base_context, folder, SEVERAL), folder


def test_seeds_have_batches_of_their_own_and_the_best_by_validation_is_kept(
    seeded: tuple[FinalResult, Path], context: SearchContext
) -> None:
    end, folder = seeded
    assert [one.seed for one in end.fine_tuned] == [context.seed, context.seed + 1, context.seed + 2]
    assert len({one.test.loss for one in end.fine_tuned}) == 3
    assert all(one.validation.accuracy <= end.saved.validation.accuracy for one in end.fine_tuned)
    assert min(one.test.accuracy for one in end.fine_tuned) <= end.accuracy
    assert end.accuracy <= max(one.test.accuracy for one in end.fine_tuned)
    entries = json.loads((folder / "plan.json").read_text())
    assert entries["seed"] == end.saved.seed
    assert [entry["test"]["accuracy"] for entry in entries["seeds"]] == [one.test.accuracy for one in end.fine_tuned]


def test_what_is_loaded_measures_as_the_plan_file_says(
    seeded: tuple[FinalResult, Path], context: SearchContext
) -> None:
    end, folder = seeded
    assert evaluate(load(folder), context.test()) == end.saved.test
    assert evaluate(context.build(end.trial.result.plan), context.test()) == end.before
    assert [timed.batch_size for timed in end.timed] == [1, 64]


def test_the_same_pick_is_read_and_another_length_is_another_pick(
    seeded: tuple[FinalResult, Path], context: SearchContext, tmp_path: Path
) -> None:
    end, folder = seeded
    shutil.copytree(folder, tmp_path / "best")
    stamp = (tmp_path / "best" / "plan.json").stat().st_mtime_ns
    again = finished(context, tmp_path / "best", SEVERAL)
    assert (figures(again), again.timed) == (figures(end), end.timed)
    assert (tmp_path / "best" / "plan.json").stat().st_mtime_ns == stamp
    other = finished(context, tmp_path / "best", dataclasses.replace(SEVERAL, seeds=1))
    assert len(other.fine_tuned) == 1


def test_a_damaged_network_is_made_anew_and_its_exports_go(
    seeded: tuple[FinalResult, Path], context: SearchContext, tmp_path: Path
) -> None:
    end, folder = seeded
    shutil.copytree(folder, tmp_path / "best")
    (tmp_path / "best" / "export").mkdir()
    weights = tmp_path / "best" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert figures(finished(context, tmp_path / "best", SEVERAL)) == figures(end)
    assert weights.read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not (tmp_path / "best" / "export").exists()


@pytest.mark.parametrize("last", [1, 2, 4])
def test_an_interrupted_fine_tuning_goes_on_and_ends_the_same(
    last: int, context: SearchContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FinalizeSettings(steps=4, seeds=2, checkpoint_every=2, repeats=2)
    whole = finished(context, tmp_path / "whole", settings)
    written, write = [], Checkpoint.write

    def interrupted(self: Checkpoint, state: dict[str, object]) -> None:
        write(self, state)
        written.append(state["step"])
        if len(written) == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finished(context, tmp_path / "again", settings)
    assert not (tmp_path / "again" / "plan.json").exists()
    again = finished(context, tmp_path / "again", settings)
    assert written == [2, 4, 2, 4]  # nothing was done twice
    assert figures(again) == figures(whole)
    ours, theirs = (load(tmp_path / name).state_dict() for name in ("again", "whole"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"plan.json", "model.safetensors"}

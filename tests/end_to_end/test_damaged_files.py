"""Every file that ranksearch reads, with flipped bytes and with poison: it loads, or is refused in one line."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from runs import SMALL, STUDY, Ran, call
from torch import nn

import ranksearch
from ranksearch.errors import DamagedError, UserError
from ranksearch.models.checkpoint import read_checkpoint
from ranksearch.report.sweep import read_front
from ranksearch.results.study_files import read_plan_file, read_run
from ranksearch.tensor_files import read_state, write_state
from ranksearch.training.checkpoint import Checkpoint

FLIPS = {
    "plan.json": 220,
    "model.safetensors": 220,
    "run.json": 120,
    "front.json": 120,
    "cache": 220,
    "checkpoint": 120,
}
JOURNAL_FLIPS, DATABASE_FLIPS = 40, 20


def flipped(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """The content with one to three bits flipped, again and again."""
    draw = random.Random(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 3))):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        yield bytes(changed)


def refused(error: BaseException) -> bool:
    """Whether an error is one line that a person can act upon."""
    return isinstance(error, UserError) and len(str(error).splitlines()) == 1 and len(str(error)) < 1200


def read_or_refused(read: Callable[[], object]) -> bool:
    """Whether something is read, or refused as it should be; any other error is a fault of ours."""
    try:
        read()
    except UserError as error:
        return refused(error)
    return True


def poisons(good: Any) -> Iterator[Any]:
    """JSON values like a good one, each wrong in one place."""
    yield from ([], {}, None, 5, "text", [good], {"format": 3})
    wrong = (None, "abc", -1, 0, 1e308, [], {}, [[[]]], True, "x" * 5000, {"_target_": "os.abort"}, 10**30)
    for key in good if isinstance(good, dict) else ():
        yield {name: value for name, value in good.items() if name != key}
        for value in wrong:
            yield {**good, key: value}
        if isinstance(good[key], dict):
            for inner in list(good[key])[:3]:
                yield {**good, key: {**good[key], inner: "abc"}}


@pytest.fixture(scope="module")
def best(ran: Ran) -> Path:
    return ran[0] / "outputs" / STUDY / "best"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plan.json", "model.safetensors"])
def test_a_network_loads_or_is_refused(name: str, best: Path, tmp_path: Path) -> None:
    folder = tmp_path / "best"
    shutil.copytree(best, folder)
    content = (best / name).read_bytes()
    contents = list(flipped(content, FLIPS[name], 1))
    if name == "plan.json":
        contents += [json.dumps(value).encode() for value in poisons(json.loads(content))]
        contents += [b"[" * 100_000, b"", b"\xff\xfe", b'{"format": "ranksearch.plan/1", "model": {"a": ' + b"[" * 900]
    for changed in contents:
        (folder / name).write_bytes(changed)
        assert read_or_refused(lambda: ranksearch.load(folder)), changed[:2000]


def test_a_stranger_s_plan_reaches_for_no_network_and_builds_nothing_endless(best: Path, tmp_path: Path) -> None:
    folder = tmp_path / "best"
    shutil.copytree(best, folder)
    entries = read_plan_file(best)
    strange = [
        {"_target_": "ranksearch.models.torchvision_classifier", "architecture": "resnet18", "weights": "DEFAULT"},
        {"_target_": "ranksearch.models.timm_classifier", "architecture": "hf_hub:someone/thing", "num_classes": 10},
        {"_target_": "ranksearch.models.cifar_resnet", "depth": 6 * 10**12 + 2, "num_classes": 10},
        {"_target_": "ranksearch.models.cifar_resnet", "depth": 8, "num_classes": 10**12},
        {"_target_": "ranksearch.models.cifar_resnet", "depth": {"_target_": "os.abort"}, "num_classes": 10},
        {"_target_": "ranksearch.models.cifar_resnet", "depth": [[[[[]]]]], "num_classes": 10},
        json.loads("[" * 300 + "]" * 300),
    ]
    for model in strange:
        builder = model if isinstance(model, dict) else {**entries["model"], "depth": model}
        (folder / "plan.json").write_text(json.dumps({**entries, "model": builder}))
        with pytest.raises(UserError) as caught:
            ranksearch.load(folder)
        assert refused(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "read"), [("run.json", read_run), ("front.json", read_front)])
def test_records_are_read_or_taken_for_none(
    name: str, read: Callable[[Path], object], ran: Ran, tmp_path: Path
) -> None:
    content = (ran[0] / "outputs" / STUDY / name).read_bytes()
    contents = [*flipped(content, FLIPS[name], 2), b"[" * 100_000, b""]
    for changed in [*contents, *(json.dumps(value).encode() for value in poisons(json.loads(content)))]:
        (tmp_path / name).write_bytes(changed)
        assert read(tmp_path) is None or isinstance(read(tmp_path), dict)


@pytest.mark.slow
def test_caches_and_checkpoints_are_read_or_made_anew(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    path = tmp_path / "kept"
    write_state(path, {"made_from": "this", "step": 3, "model": model.state_dict()})
    for changed in flipped(path.read_bytes(), FLIPS["cache"], 3):
        (tmp_path / "flipped").write_bytes(changed)
        with pytest.raises(DamagedError):
            read_state(tmp_path / "flipped")
    # Of a right checksum, with something else inside.
    for state in ({"made_from": "this"}, {"made_from": "this", "step": "x", "model": {}, "random": 3}, {"a": 1}, {}):
        write_state(path, state)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert Checkpoint(path, "this").restore({"model": model}) == 0
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.slow
def test_files_of_weights_are_read_or_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"weights{suffix}"
        if suffix == ".pt":
            torch.save({"model": model.state_dict(), "epoch": 3}, path)
        else:
            ranksearch.tensor_files.write_weights(path, model)
        for changed in flipped(path.read_bytes(), FLIPS["checkpoint"], 4):
            (tmp_path / f"flipped{suffix}").write_bytes(changed)
            file = str(tmp_path / f"flipped{suffix}")
            assert read_or_refused(lambda file=file: read_checkpoint(file, model))


def reported(folder: Path, *words: str) -> str | None:
    """What is wrong with a report on the study of a folder; None where it was written, or refused in one line."""
    done = call(folder, "mode=report", *words)
    lines = done.stderr.splitlines()
    good = done.returncode == 0 or (done.returncode == 2 and len(lines) == 1)
    return None if good and "Traceback" not in done.stdout + done.stderr else f"exit {done.returncode} {lines[-1:]}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_study_s_storage_is_reported_on_or_refused(ran: Ran, tmp_path: Path) -> None:
    database = ran[0] / "outputs" / "ranksearch.db"
    for changed in flipped(database.read_bytes(), DATABASE_FLIPS, 5):
        (tmp_path / "study.db").write_bytes(changed)
        assert reported(tmp_path, "storage.path=study.db") is None
        for left in tmp_path.glob("study.db-*"):
            left.unlink()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_journal_is_reported_on_or_refused(tmp_path: Path) -> None:
    assert call(tmp_path, "storage=journal", "study.n_trials=2", small=[*SMALL, "study.name=s"]).returncode == 0
    content = (tmp_path / "outputs" / "ranksearch.journal").read_bytes()
    for changed in flipped(content, JOURNAL_FLIPS, 6):
        (tmp_path / "study.journal").write_bytes(changed)
        assert reported(tmp_path, "storage=journal", "storage.path=study.journal", "study.name=s") is None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_poisoned_attributes_of_a_study_are_reported_on_or_refused(ran: Ran, tmp_path: Path) -> None:
    database = ran[0] / "outputs" / "ranksearch.db"
    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{database}")
    storage = study._storage
    known = storage.get_study_system_attrs(study._study_id)
    [(metadata, good)] = [(key, value) for key, value in known.items() if isinstance(value, dict) and "layers" in value]
    trial = next(trial for trial in study.trials if trial.state.name == "COMPLETE")
    result = next(key for key in trial.system_attrs if key.endswith("result"))
    draw = random.Random(7)
    wanted = [(metadata, value) for value in draw.sample(list(poisons(good)), 30)]
    wanted += [(result, value) for value in draw.sample(list(poisons(trial.system_attrs[result])), 30)]
    for key, value in wanted:
        copied = tmp_path / "study.db"
        shutil.copy(database, copied)
        poisoned = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{copied}")
        if key == metadata:
            poisoned._storage.set_study_system_attr(poisoned._study_id, key, value)
        else:
            # Optuna lets nobody write to a trial that has ended; a stranger's program would.
            with poisoned._storage._backend.engine.begin() as connection:  # type: ignore[attr-defined]
                connection.exec_driver_sql(
                    "UPDATE trial_system_attributes SET value_json = ? WHERE key = ? AND trial_id = ?",
                    (json.dumps(value), key, trial._trial_id),
                )
        assert reported(tmp_path, "storage.path=study.db") is None, (key, value)

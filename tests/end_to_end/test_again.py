"""The same command again: what finished is kept, whatever ended the run before."""

from __future__ import annotations

import errno
import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import jsonschema
import pytest
from conftest import ROOT
from runs import STUDY, Ran, call, command, environment, scores

import ranksearch
import ranksearch.report.artifacts
from ranksearch.study.context import SearchContext


def test_another_trial_can_be_finalized(ran: Ran, tmp_path: Path) -> None:
    shutil.copytree(ran[0] / "outputs", tmp_path / "outputs")
    done = call(tmp_path, "mode=finalize", "pick.trial=1", "finalize.seeds=2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^picked: trial 1 .* +\d+\.\d+% \+- \d+\.\d+ over 2 seeds$", done.stdout, re.M)
    entries = json.loads((tmp_path / "outputs" / STUDY / "best" / "plan.json").read_text())
    jsonschema.validate(entries, json.loads((ROOT / "docs" / "schemas" / "plan-1.json").read_text()))
    assert (entries["trial"], entries["fine_tune_seeds"]) == (1, [0, 1])
    assert scores(tmp_path) == scores(ran[0])  # no trial was added
    done = call(tmp_path, "mode=finalize", "pick.speedup=99")
    assert done.returncode == 2
    assert re.search(r"^ranksearch: pick.speedup=99 exceeds \d.*: lower it", done.stderr, re.M)


def test_running_again_continues_and_ends_as_one_run_without_a_stop(ran: Ran, tmp_path: Path) -> None:
    first, more = call(tmp_path, "study.n_trials=2"), call(tmp_path, "study.n_trials=3")
    assert (first.returncode, more.returncode) == (0, 0)
    assert "2 of 3 trials finished" in more.stdout
    assert "baseline: read from" in more.stdout
    assert re.findall(r"^trial (\d) \(", more.stdout, re.M) == ["2"]
    assert scores(tmp_path) == scores(ran[0])
    for name in ("front.json", "best/model.safetensors"):  # from the same seed, to the last bit
        assert (tmp_path / "outputs" / STUDY / name).read_bytes() == (ran[0] / "outputs" / STUDY / name).read_bytes()


def test_a_finished_search_reads_no_test_image_again(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ran[0] / "outputs", tmp_path / "outputs")
    monkeypatch.setattr(SearchContext, "test", lambda self: pytest.fail("the test split was read"))
    done = call(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 trials finished" in done.stdout


def test_ctrl_c_keeps_what_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("study.n_trials=500"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C, these tests perhaps among them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("trial 2 "):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait() == 130
    assert "run the same command again to continue" in rest
    assert "Traceback" not in rest
    kept = [row for row in scores(tmp_path) if row[1] == "COMPLETE"]
    assert len(kept) >= 3
    assert (tmp_path / "outputs" / STUDY / "front.json").exists()
    done = call(tmp_path, f"study.n_trials={len(kept) + 1}")
    assert done.returncode == 0
    assert [row for row in scores(tmp_path) if row[1] == "COMPLETE"][: len(kept)] == kept


@pytest.mark.parametrize("where", ["write_report", pytest.param("write_trials", marks=pytest.mark.slow)])
def test_a_full_disk_loses_nothing_that_finished(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ranksearch.report.artifacts, where, full)
    done = call(tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "ranksearch: the disk of outputs is full, finished trials are kept: free some space and run this again"
    )
    monkeypatch.undo()
    done = call(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 trials finished" in done.stdout
    assert "already holds trial" in done.stdout


def test_a_network_that_is_not_whole_is_made_again(ran: Ran, tmp_path: Path) -> None:
    shutil.copytree(ran[0] / "outputs", tmp_path / "outputs")
    weights = tmp_path / "outputs" / STUDY / "best" / "model.safetensors"
    weights.unlink()
    assert call(tmp_path).returncode == 0
    assert weights.exists()


def test_a_network_of_other_settings_is_not_taken_for_this_one(ran: Ran, tmp_path: Path) -> None:
    shutil.copytree(ran[0] / "outputs", tmp_path / "outputs")
    (tmp_path / "outputs" / "ranksearch.db").unlink()
    done = call(tmp_path, "study.n_trials=1", "fine_tune.learning_rate=0.03")
    assert "finalize: fine-tuning trial 0" in done.stdout

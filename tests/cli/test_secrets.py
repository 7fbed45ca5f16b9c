"""No password reaches a file or a message, whichever way it comes."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import FAKE, call

SECRET = "hunter2-not-real"
URL = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/db"
QUICK = [*FAKE, "storage=rdb"]

WRITTEN = [
    [f"storage.url={URL}"],
    [f"storage.url='${{oc.env:NO_SUCH_NAME,\"{URL}\"}}'"],
    [f"storage.url='postgresql://me:${{oc.env:NO_SUCH_NAME,{SECRET}}}@127.0.0.1:1/db'"],
    [f"+model.note={SECRET}", "storage.url='postgresql://me:${model.note}@127.0.0.1:1/db'"],
    [f"+storage.password={SECRET}", "storage.url=null"],
    [f"+dataset.api_key={SECRET}"],
    [f"hydra.job.env_set.A={URL}"],
    [f"outputs={URL}"],
    ["-m", f"storage.url={URL}", "seed=0,1"],
    ["-m", f"storage.url='{URL}','{URL}2'"],
    ["-m", f"+hydra.sweeper.params={{storage.url: '{URL}'}}"],
    ["modle=x", f"storage.url={URL}"],
    [f"storage.url={URL}["],
]
ENVIRONMENT = [
    ["study.name='${storage.url}'"],
    ["+model.note='${storage.url}'"],
    ["hydra.run.dir='x${storage.url}'"],
    ["+dataset.note='${oc.env:RANKSEARCH_STORAGE}'"],
    ["-m", "hydra.sweep.dir='x${storage.url}'", "seed=0,1"],
]


def found_in(folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*") if SECRET in path.name or (path.is_file() and SECRET in path.read_text())
    ]


@pytest.mark.parametrize("words", WRITTEN)
def test_a_password_in_the_configuration_is_refused_before_anything_is_written(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANKSEARCH_STORAGE", raising=False)
    done = call(tmp_path, *QUICK, *words, small=[])
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ENVIRONMENT)
def test_a_password_of_the_environment_reaches_no_other_key(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKSEARCH_STORAGE", URL)
    done = call(tmp_path, *QUICK, *words, small=[])
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
    assert "holds a password" in done.stderr
    assert found_in(tmp_path) == []


@pytest.mark.parametrize("words", [[], ["-m", "seed=0,1"], ["--cfg=job", "--resolve"]])
def test_a_server_that_cannot_be_reached_is_told_without_the_password(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKSEARCH_STORAGE", URL)
    done = call(tmp_path, *words, *QUICK, small=[])
    assert done.returncode == (0 if "--resolve" in words else 2)
    assert SECRET not in done.stdout + done.stderr
    assert found_in(tmp_path) == []


def test_a_traceback_is_told_without_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_STORAGE", URL)
    (tmp_path / "mine.py").write_text("import os\ndef storage(url):\n    raise ValueError(f'cannot open {url}')\n")
    done = call(tmp_path, *QUICK, "storage._target_=mine.storage", small=[])
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
    assert found_in(tmp_path) == []


def test_a_sweep_over_a_group_is_searched_job_by_job(tmp_path: Path) -> None:
    (tmp_path / "conf" / "storage").mkdir(parents=True)
    (tmp_path / "conf" / "storage" / "mine.yaml").write_text(f"_target_: ranksearch.storage.rdb\nurl: {URL}\n")
    words = ["-m", "--config-dir=conf", "storage=sqlite,mine"]
    done = call(tmp_path, *words, small=[word for word in QUICK if word != "storage=rdb"])
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_a_folder_that_only_a_job_can_name_holds_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_STORAGE", URL)
    monkeypatch.setenv("ALSO", SECRET)
    done = call(tmp_path, "-m", "hydra.sweep.subdir='${oc.env:ALSO}-${hydra.job.num}'", "seed=0", small=QUICK)
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_quote_in_a_password_ends_nothing(tmp_path: Path) -> None:
    word = "storage.url=\"postgresql://u:hu'" + SECRET + '@localhost/db"'
    done = call(tmp_path, word, small=QUICK)
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []

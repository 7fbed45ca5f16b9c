"""The process itself: Ctrl-C from its first moment, and output that nobody reads to its end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import environment

COMMAND = [sys.executable, "-m", "ranksearch"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_ctrl_c_while_torch_is_imported_ends_with_130_and_no_traceback(tmp_path: Path) -> None:
    started = subprocess.Popen(
        COMMAND, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "libtorch" not in Path(f"/proc/{started.pid}/maps").read_text() and started.poll() is None:
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    _, told = started.communicate(timeout=60)
    assert started.returncode == 130
    assert told == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [pytest.param(["--help"], marks=pytest.mark.slow), ["--cfg", "job"]])
def test_a_reader_that_has_had_enough_is_no_fault(words: list[str], tmp_path: Path) -> None:
    started = subprocess.Popen(
        [*COMMAND, *words], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.close()
    told = started.stderr.read()
    started.stderr.close()
    assert started.wait(timeout=60) == 0
    assert told == ""

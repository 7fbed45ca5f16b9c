"""Progress of a long call."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.console import Console

from ranksearch.allocation import progress_bar
from ranksearch.allocation.progress_bar import shown


def test_a_terminal_shows_stage_steps_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        progress_bar, "Console", lambda **_: Console(file=screen, force_terminal=True, width=100, color_system=None)
    )
    with shown("find_plan") as tick:
        tick("error curves", 0, 4)
        for done in range(1, 4):
            tick("error curves", done, 4)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "find_plan: error curves" in text
    assert "3/4" in text
    assert re.search(r"\d:\d\d:\d\d|-:--:--", text)


def test_elsewhere_each_stage_is_one_line(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO), shown("find_plan") as tick:
        for stage in ("statistics", "error curves"):
            for done in range(3):
                tick(stage, done, 2)
    lines = [record.getMessage() for record in caplog.records]
    assert [re.sub(r"\d+\.\d s", "t", line) for line in lines] == [
        "find_plan: statistics, 2 of 2 in t",
        "find_plan: error curves, 2 of 2 in t",
    ]
    assert capsys.readouterr().err == ""

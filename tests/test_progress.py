"""What a person is told while it runs."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from studies import invented_facts

from ranksearch.plan import RankPlan
from ranksearch.progress import Progress, RunState
from ranksearch.records import TrialRecord
from ranksearch.terminal import render, watched
from ranksearch.trial import TrialResult

FACTS = invented_facts("abc", fine_tune_steps=30, trials=40)


class Seen:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.last = RunState()

    def show(self, state: RunState) -> None:
        self.last = state


def record(number: int, cost: int = 40, accuracy: float = 0.8, fine_tuning: float = 3.0) -> TrialRecord:
    result = TrialResult(RankPlan(), cost, 100 / cost, cost, 5, 0.5, accuracy, 1.0, {"fine_tune": fine_tuning})
    return TrialRecord(number, "COMPLETE", True, False, result, "", 4.0)


@given(st.integers(1, 8), st.floats(0.5, 60), st.data())
def test_the_time_left_is_right_from_the_third_trial_on(workers: int, seconds: float, data: st.DataObject) -> None:
    """Several processes share the trials, which take half as long again or two thirds; then comes the finalizing."""
    with pytest.MonkeyPatch.context() as patch:
        clock = [0.0]
        patch.setattr("ranksearch.progress.time.perf_counter", lambda: clock[0])
        seen, known = Seen(), [record(number, fine_tuning=seconds * 0.6) for number in range(4)]
        progress = Progress(seen)
        lengths = [seconds * data.draw(st.floats(0.7, 1.4)) for _ in range(36)]
        rounds = [lengths[start : start + workers] for start in range(0, 36, workers)]
        finalize_steps = 200 * seconds * 0.6 / 30
        ends = [max(lengths) for lengths in rounds]
        progress.trials(FACTS, known, batch_size=64, finalize_steps=200)
        for index, together in enumerate(rounds):
            clock[0] += ends[index]
            known = known + [record(len(known) + n, fine_tuning=seconds * 0.6) for n in range(len(together))]
            progress.trial(known[-1], known)
            left = sum(ends[index + 1 :]) + finalize_steps
            if len(known) >= 4 + 3:
                assert seen.last.seconds_left is not None
                assert left / 2 <= seen.last.seconds_left <= left * 2


def test_a_line_a_trial_says_how_it_went(caplog: pytest.LogCaptureFixture) -> None:
    progress, trials = Progress(), [record(0), record(1, cost=20, accuracy=0.7)]
    failed = TrialRecord(2, "PRUNED", False, False, None, "well behind trial 0", 1.0)
    progress.trials(FACTS, [], 64, 0)
    with caplog.at_level(logging.INFO):
        progress.trial(trials[0], trials[:1])
        progress.trial(trials[1], trials)
        progress.trial(failed, [*trials, failed])
    first, second, third = (line.getMessage() for line in caplog.records)
    assert re.match(
        r"trial 0 \(1 of 40\): 80.00% at 2.50x in 4.0 s; best 80.00% at 2.50x \(trial 0\); \d+ s left", first
    )
    assert re.match(r"trial 1 \(2 of 40\): 70.00% at 5.00x .* best 80.00% at 2.50x \(trial 0\)", second)
    assert re.match(r"trial 2 \(3 of 40\): pruned: well behind trial 0 in 1.0 s; best 80.00%", third)


def shown(state: RunState, monkeypatch: pytest.MonkeyPatch, no_color: bool = False, height: int = 40) -> str:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, height=height)
    console.print(render(state, console))
    return text.getvalue()


def state() -> RunState:
    trials = [record(0), record(1, cost=20, accuracy=0.7), TrialRecord(2, "FAIL", False, False, None, "diverged", 1.0)]
    return RunState("search", 3, 40, "trials", "", 1234.5, 200.0, FACTS, trials)


def test_the_live_view_says_all_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown(state(), monkeypatch))
    for said in (
        "search", "3 of 40 trials", "3:20 left", "dense 90.00%", "best at 2x 80.00%", "best at 4x 70.00%", "0 pruned",
        "1 failed", "1,234 images/s", "validation accuracy, %, over speedup",
    ):  # fmt: skip
        assert said in plain
    assert max(map(len, plain.splitlines())) <= 100


def test_colours_are_left_out_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38;[0-9;]*)m")
    assert colours.search(shown(state(), monkeypatch))
    assert not colours.search(shown(state(), monkeypatch, no_color=True))


def test_a_low_terminal_gets_no_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(shown(state(), monkeypatch, height=12).splitlines()) < 6


def test_a_stage_without_steps_says_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "calibration" in shown(RunState("calibration"), monkeypatch)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("live", "term", "level", "view", "line"),
    [
        (True, "xterm", logging.INFO, True, False),
        (True, "xterm", logging.DEBUG, True, True),  # as hydra.verbose=true sets it
        (True, "dumb", logging.INFO, False, True),
        (False, "xterm", logging.INFO, False, True),
    ],
)
def test_in_a_terminal_the_view_takes_the_place_of_lines_about_trials(
    live: bool, term: str, level: int, view: bool, line: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "100")
    root = logging.getLogger()
    handlers = [logging.StreamHandler(terminal), logging.StreamHandler(file)]
    monkeypatch.setattr(root, "handlers", handlers)
    monkeypatch.setattr(root, "level", level)
    root.manager._clear_cache()
    with watched(live) as progress:
        progress.trials(FACTS, [], 64, 0)
        progress.trial(record(0), [record(0)])
        logging.getLogger("ranksearch.tasks").info("something else")
    root.manager._clear_cache()
    shown = terminal.getvalue()
    assert ("best at 2x 80.00%" in shown) == view
    assert ("trial 0 (1 of 40)" in shown) == line
    assert "something else" in shown
    assert "trial 0 (1 of 40)" in file.getvalue()
    assert handlers[0].stream is terminal

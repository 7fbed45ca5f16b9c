"""The progress that a run shows, in a terminal and by log lines."""

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

from ranksearch.cli.progress import Progress, watched
from ranksearch.plan import RankPlan
from ranksearch.results.trials import FeasibleTrial, TrialRecord, TrialResult

METADATA = invented_facts("abc", fine_tune_steps=30, trials=40)


def record(number: int, cost: int = 40, accuracy: float = 0.8, fine_tuning: float = 3.0) -> TrialRecord:
    result = TrialResult(RankPlan(), cost, 100 / cost, cost, 5, 0.5, accuracy, 1.0, {"fine_tune": fine_tuning})
    return FeasibleTrial(number, "COMPLETE", False, result, "", 4.0)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def shown(progress: Progress, height: int = 40) -> str:
    """What a terminal of 100 columns shows."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=height)
    progress._console = console
    with console.capture() as capture:
        console.print(progress)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capture.get())


def seconds_left(progress: Progress) -> float:
    found = re.search(r"(\d+):(\d\d):(\d\d) left", shown(progress))
    assert found is not None
    hours, minutes, seconds = map(int, found.groups())
    return 3600 * hours + 60 * minutes + seconds


@given(st.integers(1, 8), st.floats(2, 60), st.data())
def test_the_time_left_is_right_from_the_third_trial_on(workers: int, seconds: float, data: st.DataObject) -> None:
    """Several processes share the trials, which take half as long again or two thirds; then comes the finalizing."""
    clock, trials = Clock(), [record(number, fine_tuning=seconds * 0.6) for number in range(4)]
    progress = Progress(get_time=clock)
    lengths = [seconds * data.draw(st.floats(0.7, 1.4)) for _ in range(36)]
    rounds = [lengths[start : start + workers] for start in range(0, 36, workers)]
    finalize_steps = 200 * seconds * 0.6 / 30
    ends = [max(lengths) for lengths in rounds]
    progress.trials(METADATA, trials, batch_size=64, finalize_steps=200)
    for index, together in enumerate(rounds):
        clock.seconds += ends[index]
        trials = trials + [record(len(trials) + n, fine_tuning=seconds * 0.6) for n in range(len(together))]
        progress.trial(trials[-1], trials)
        left = sum(ends[index + 1 :]) + finalize_steps
        if len(trials) >= 4 + 3:
            assert left / 2 - 1 <= seconds_left(progress) <= left * 2 + 1


def test_a_line_a_trial_says_how_it_went(caplog: pytest.LogCaptureFixture) -> None:
    progress, trials = Progress(), [record(0), record(1, cost=20, accuracy=0.7)]
    failed = TrialRecord(2, "PRUNED", False, None, "well behind trial 0", 1.0)
    progress.trials(METADATA, [], 64, 0)
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


def searching() -> Progress:
    trials = [record(0), record(1, cost=20, accuracy=0.7), TrialRecord(2, "FAIL", False, None, "diverged", 1.0)]
    progress = Progress()
    progress.trials(METADATA, trials[:1], 64, 0)
    progress.trial(trials[1], trials)
    return progress


def test_the_live_view_shows_all_that_matters() -> None:
    text = shown(searching())
    for part in (
        "search", "3 of 40 trials", "left", "dense 90.00%", "best at 2x 80.00%", "best at 4x 70.00%", "0 pruned",
        "1 failed", "640 images/s", "validation accuracy", "5.00x",
    ):  # fmt: skip
        assert part in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_low_terminal_gets_no_front() -> None:
    assert len(shown(searching(), height=12).splitlines()) < 6


def test_a_stage_without_steps_shows_its_name() -> None:
    progress = Progress()
    progress.stage("calibration")
    assert "calibration" in shown(progress)


def test_a_training_that_continues_counts_its_own_steps_only() -> None:
    clock = Clock()
    progress = Progress(get_time=clock)
    progress.stage("finalize", 200, batch_size=64)
    progress.step(151, 0.5)
    clock.seconds = 10.0
    progress.step(161, 0.5)
    assert "161 of 200 steps" in shown(progress)
    assert 30 <= seconds_left(progress) <= 45


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
        progress.trials(METADATA, [], 64, 0)
        progress.trial(record(0), [record(0)])
        logging.getLogger("ranksearch.cli.modes.search").info("something else")
    root.manager._clear_cache()
    shown = terminal.getvalue()
    assert ("best at 2x 80.00%" in shown) == view
    assert ("trial 0 (1 of 40)" in shown) == line
    assert "something else" in shown
    assert "trial 0 (1 of 40)" in file.getvalue()
    assert handlers[0].stream is terminal

"""Overrides of every key, with values that no one means: a run is prepared, or refused and leaves nothing."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from runs import FAKE, call

import ranksearch.cli.main
from ranksearch.cli.compose import CONF, register_schemas
from ranksearch.redaction import leaves

QUICK = [*FAKE, "baseline.steps=2"]
VALUES = (
    "null", "true", "false", "-1", "0", "1", "2", "3", "0.5", "-0.5", "1.5", "1e9", "nan", "inf", "-inf", "1e400",
    "2147483648", "1000000000000000000000", "''", "' '", "abc", "ümlaut", "'a b'", "'a/b'", "'a\\nb'", "???", "..", ".",
    "[]", "[1]", "[abc]", "[[1]]", "[null]", "{}", "{a: 1}", "{_target_: os.getcwd}", "${nothing.here}", "${seed}",
    "${oc.env:NO_SUCH_NAME}", "${oc.env:NO_SUCH_NAME,7}", "os.getcwd", "a-file", "a-file/below", "x" * 300, "9" * 500,
)  # fmt: skip
# Whose values name where to write.
PATHS = ("outputs", "storage.path", "cache", "dir", "name", "output_subdir", "filename")
COUNT, CHUNKS = 560, 14


def keys() -> list[str]:
    """Every key of the composed configuration, groups included, and Hydra's that people set."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", QUICK)
    values = [key for key, _ in leaves(OmegaConf.to_container(cfg, resolve=False)) if not key[-1].isdigit()]
    groups = sorted({key.rpartition(".")[0] for key in values if "." in key})
    own = ["hydra.run.dir", "hydra.job.name", "hydra.verbose", "hydra.output_subdir", "hydra.job.chdir", "hydra.mode"]
    added = ["+model.rules", "+model.num_classes", "+model.smallest_input", "+sampler.seed", "+sampler.layer_spread"]
    return [*values, *groups, *own, *added, "+dataset.unknown", "+unknown", "modle"]


def overrides() -> list[list[str]]:
    """The commands, the same each time: every key at least twice, one key or two at once."""
    draw, names = random.Random(0), keys()
    words = [f"{name}={draw.choice(VALUES)}" for name in names * 5]
    draw.shuffle(words)
    chosen = [[word] for word in words[:COUNT]]
    return [[*one, draw.choice(words)] if index % 4 == 0 else one for index, one in enumerate(chosen)]


def places(words: list[str]) -> set[str]:
    """The first parts of paths that a command itself names to write to."""
    named = {"outputs"}
    for word in words:
        key, _, value = word.partition("=")
        if key.rpartition(".")[2] in PATHS or key in PATHS:
            found = re.search(r",(.*)}", value)  # of an interpolation, its default
            named.add((found[1] if found else value).strip("'\"").split("/")[0].strip())
    return named


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_override_ends_in_a_traceback_or_leaves_a_file_behind(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = ranksearch.cli.main._prepare

    def prepared(*arguments: Any, **options: Any) -> Callable[[], None]:
        prepare(*arguments, **options)
        return lambda: None  # which is far enough

    monkeypatch.setattr(ranksearch.cli.main, "_prepare", prepared)
    commands = overrides()
    assert len(commands) >= 500
    wrong = []
    for number, words in enumerate(commands[chunk::CHUNKS]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a-file").write_text("mine")
        try:
            done = call(folder, *words, small=QUICK)
        except BaseException as error:
            wrong.append(f"{words}: {type(error).__name__}: {error}"[:300])
            continue
        left = {path.name for path in folder.iterdir()} - {"a-file"}
        lines = done.stderr.splitlines()
        if done.returncode not in (0, 2) or "Traceback" in done.stderr + done.stdout:
            wrong.append(f"{words}: exit {done.returncode} {lines[-1:]}"[:300])
        elif done.returncode == 2 and (len(lines) != 1 or left or len(lines[0]) > 1100):
            wrong.append(f"{words}: refused in {len(lines)} lines, leaving {left}"[:300])
        elif done.returncode == 0 and not left <= places(words):
            wrong.append(f"{words}: wrote {left - places(words)}"[:300])
        if (folder / "a-file").read_text() != "mine":
            wrong.append(f"{words}: a file was changed"[:300])
    assert not wrong, "\n".join(wrong)

"""Files of one's own configurations that are damaged are named, and what a word needs to be read is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import call

from ranksearch.cli.compose import compose, read_words, register_schemas
from ranksearch.errors import UserError

FILES = {
    "key twice": b"_target_: mine.build\nname: a\nname: b\n",
    "list left open": b"_target_: mine.build\nname: [1,\n",
    "another encoding": "_target_: mine.build\nname: größe\n".encode("latin-1"),
    "two bytes a letter": "_target_: mine.build\nname: mine\n".encode("utf-16"),
    "Python tag": b'_target_: mine.build\nname: !!python/object/apply:os.mkdir ["ran"]\n',
    "tab": b"_target_: mine.build\n\tname: mine\n",
    "unknown alias": b"_target_: *nowhere\n",
    "control character": b"_target_: mine.build\nname: \x07\n",
    "quote left open": b"_target_: 'mine.build\n",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_of_one_s_own_is_named_and_nothing_in_it_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "slip.yaml").write_bytes(FILES[kind])
    monkeypatch.chdir(tmp_path)
    register_schemas()
    with pytest.raises(UserError, match=r"slip\.yaml cannot be read.*: make it valid YAML in UTF-8"):
        compose(read_words(["--config-dir", "conf", "model=slip"]))
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_so_does_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "slip.yaml").write_bytes(FILES["another encoding"])
    done = call(tmp_path, "--config-dir=conf", "model=slip", small=[])
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    done = call(tmp_path, "--config-dir=nowhere", small=[])
    assert done.returncode == 2
    assert "--config-dir nowhere is not a folder: name one with configurations" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


@settings(max_examples=12)
@given(st.text("abc=().- ü,:'+!?&@", min_size=1, max_size=12))
def test_a_path_is_read_or_refused_with_the_quotes_that_it_needs(name: str) -> None:
    parser = OverridesParser.create()
    register_schemas()
    try:
        compose(read_words([f"model.checkpoint={name}"]))
    except UserError as error:
        said = str(error)
        if "quote it inside the shell's quotes, '" in said:
            word = said.partition("quote it inside the shell's quotes, '")[2].removesuffix("'")
            assert parser.parse_override(word).value() == name


def test_words_that_are_no_command_are_one_line(tmp_path: Path) -> None:
    for words in (["--nonsense"], ["--cfg=nothing"], ["--experimental-rerun=x.pickle"]):
        done = call(tmp_path, *words, small=[])
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []

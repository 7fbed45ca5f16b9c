"""One word for a thing: what `docs/glossary.md` says not to say is said nowhere."""

from __future__ import annotations

import re
import subprocess

import pytest
from conftest import ROOT

# Synonyms that must stand where they do: (file, what the line says) and why.
SPARED = [
    (
        "docs/results.md",
        r"Many papers call twice that number FLOPs",
    ),  # which is how readers from elsewhere find the word
    ("tests/test_cost.py", r"GFLOPS"),  # torchvision's key
    ("docs/search.md", r"ALDS|BALF"),  # their own terms
    ("benchmarks/search_rivals.py", r"ALDS|BALF"),
    ("docs/glossary.md", r"^\|"),
    ("ranksearch/storage/", r"given[ _]up"),  # of processes and of connections
    ("tests/test_storage.py", r"given[ _]up"),
    ("ranksearch/cost.py", r"get_total_flops"),  # torch's
    ("CITATION.cff", r"^  - "),  # what people search for
    ("tests/test_glossary.py", r""),
]
BINARY = re.compile(r"\.(png|svg|csv|jsonl)$|^constraints\.txt$|^LICENSE$")


def banned() -> dict[str, str]:
    """Synonym -> the word to say instead."""
    found = {}
    for line in (ROOT / "docs" / "glossary.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3:
            found.update({synonym: cells[0] for synonym in re.findall(r"`([^`]+)`", cells[2])})
    return found


def texts() -> dict[str, str]:
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return {name: (ROOT / name).read_text() for name in known if not BINARY.search(name) and (ROOT / name).exists()}


TEXTS = texts()


@pytest.mark.parametrize(("synonym", "word"), banned().items(), ids=list(banned()))
def test_synonyms_are_not_used(synonym: str, word: str) -> None:
    pattern = re.compile(rf"(?<![a-z]){'[ _-]'.join(re.split('[ -]', synonym))}(s|ed|ing)?(?![a-z])", re.IGNORECASE)
    hits = [
        f"{name}:{number}: {line.strip()}"
        for name, text in TEXTS.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line) and not any(name.startswith(file) and re.search(at, line) for file, at in SPARED)
    ]
    assert not hits, f"say {word!r} instead of {synonym!r}:\n" + "\n".join(hits)


def test_the_glossary_bans_synonyms_of_its_words_only() -> None:
    assert len(banned()) > 60
    assert not set(banned()) & set(banned().values())

"""The README's pictures, made from a study that was really searched.

    python -m ranksearch
    python benchmarks/readme_pictures.py --outputs outputs --study resnet20-digits-1.5x-s0

writes docs/front.svg (the front), docs/report.png (the top of the report in Chromium) and docs/live.svg (the live view
as it stands after the last trial). Needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
from pathlib import Path

import optuna
from playwright.sync_api import sync_playwright
from rich.console import Console

from ranksearch.cli.progress import Progress
from ranksearch.results.metadata import StudyMetadata, read_metadata
from ranksearch.results.trials import read_trials
from ranksearch.storage import sqlite

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main() -> None:
    """Read the command line, and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--study", default="resnet20-digits-1.5x-s0")
    options = parser.parse_args()
    folder = options.outputs / options.study
    shutil.copy(folder / "pictures" / "front.svg", DOCS / "front.svg")
    screenshot(folder / "report.html", DOCS / "report.png")
    storage = sqlite(str(options.outputs / "ranksearch.db"))
    study = optuna.load_study(study_name=options.study, storage=storage)
    view = live_view(study, read_metadata(storage, options.study))
    (DOCS / "live.svg").write_text(view, encoding="utf-8")


def screenshot(report: Path, picture: Path) -> None:
    """The report's top, as wide as a README shows it."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 1180})
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("html[data-ready]")
        page.screenshot(path=picture)
        browser.close()


def live_view(study: optuna.Study, metadata: StudyMetadata) -> str:
    """The live view after the study's last trial."""
    records = read_trials(study)
    console = Console(record=True, width=100, height=40, file=io.StringIO(), force_terminal=True)
    progress = Progress(console)
    progress.trials(metadata, records[:-1], 64, 0)
    progress.trial(records[-1], records)
    console.print(progress)
    drawn = console.export_svg(title="python -m ranksearch")
    return re.sub(r"@font-face \{.*?\}|<!--.*?-->", "", drawn, flags=re.DOTALL)  # which name places elsewhere


if __name__ == "__main__":
    main()

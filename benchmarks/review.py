"""What a study's report and its page in the dashboard cost, beside what the study took.

    python -m ranksearch model=resnet56 fine_tune=none study.n_trials=200 study.name=wide
    python benchmarks/review.py --study wide

draws everything of a finished study anew, says what share of the study's time that is, how large the report is,
and, where Chromium is installed, how soon it can be used.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import optuna
from playwright.sync_api import sync_playwright

from ranksearch.report.artifacts import write_artifacts
from ranksearch.report.dashboard import DashboardPage
from ranksearch.report.html_report import write_report
from ranksearch.report.static_figures import draw_latent_sizes
from ranksearch.results.metadata import read_metadata
from ranksearch.results.trials import read_trials
from ranksearch.storage import sqlite


def main() -> None:
    """Read the command line, and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--study", required=True)
    options = parser.parse_args()
    storage = sqlite(str(options.outputs / "ranksearch.db"))
    study = optuna.load_study(study_name=options.study, storage=storage)
    facts, records = read_metadata(storage, options.study), read_trials(study)
    trials = [trial for trial in study.trials if trial.datetime_start and trial.datetime_complete]
    begun, ended = min(t.datetime_start for t in trials), max(t.datetime_complete for t in trials)
    took = (ended - begun).total_seconds()
    print(f"{len(facts.layers)} layers, {len(trials)} trials in {took:.0f} s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        done = [record.result for record in records if record.result is not None]
        start = time.perf_counter()
        for result in done:
            draw_latent_sizes(facts, 0, result).savefig(folder / "plan.png", dpi=90)
        pictures = time.perf_counter() - start
        print(f"pictures of {len(done)} trials: {pictures:.2f} s, {1e3 * pictures / max(len(done), 1):.0f} ms each")
        start = time.perf_counter()
        DashboardPage(study, facts, folder, folder).refresh()
        page = time.perf_counter() - start
        print(f"one refresh of the dashboard's page: {page:.2f} s; all of them take 1 % of the time at the most")
        start = time.perf_counter()
        write_report(folder / "report.html", options.study, facts, records, None, None, None)
        report = time.perf_counter() - start
        start = time.perf_counter()
        write_artifacts(folder, options.study, facts, records)
        everything = time.perf_counter() - start
        print(
            f"report.html: {report:.2f} s; with the tables and the still pictures, once at the end: {everything:.2f} s"
        )
        share = (pictures + everything) / took + min(0.01, page / took)
        print(f"of the study's time: {share:.2%}")
        print(f"report.html: {(folder / 'report.html').stat().st_size / 1e6:.2f} MB")
        if program := shutil.which("chromium") or shutil.which("google-chrome"):
            print(f"opened in {open_in(program, folder / 'report.html'):.2f} s")


def open_in(program: str, report: Path) -> float:
    """Seconds until the page can be used, the median of five, in a browser that runs already."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        found = []
        for _ in range(5):
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            page.goto(report.as_uri())
            page.wait_for_selector("html[data-ready]")
            found.append(int(page.evaluate("document.documentElement.dataset.ready")) / 1e3)
            page.close()
        browser.close()
    return sorted(found)[2]


if __name__ == "__main__":
    main()

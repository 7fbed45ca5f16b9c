"""The report, the comparison and the dashboard as people meet them: in a real browser."""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright
from studies import Searched

from ranksearch.report.artifacts import front_content, write_artifacts
from ranksearch.report.comparison import write_comparison
from ranksearch.report.dashboard_server import DashboardSettings, dashboard
from ranksearch.results.pareto import pareto_front

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = ROOT / "outputs" / "screenshots"
LOCAL = ("file:", "data:", "blob:", "http://127.0.0.1:")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Watched:
    """A page that must not ask for anything beyond this machine, nor complain."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("request", lambda request: self._note(not request.url.startswith(LOCAL), f"asked for {request.url}"))
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self._note(True, f"threw {error}"))

    def _heard(self, message: ConsoleMessage) -> None:
        self._note(message.type in ("error", "warning"), f"said {message.text}")

    def _note(self, wrong: bool, what: str) -> None:
        if wrong:
            self.complaints.append(what)

    def open_file(self, path: Path) -> Page:
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_selector("html[data-ready]", timeout=30_000)
        return self.page

    def keep(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        for plot in self.page.query_selector_all(".plot"):  # which are drawn once they are in sight
            plot.scroll_into_view_if_needed()
            self.page.wait_for_timeout(100)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def watched(browser: Browser, width: int = 1200, scheme: str = "light") -> Watched:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(30_000)
    return Watched(page)


@pytest.fixture(scope="module")
def report(searched: Searched) -> Path:
    write_artifacts(searched.folder, searched.name, searched.metadata, searched.records)
    return searched.folder / "report.html"


def click_point(page: Page, figure: str, x: float, y: float) -> None:
    """Click where a figure with a logarithmic horizontal axis has a point."""
    place = page.evaluate(
        """([id, x, y]) => {
            const figure = document.getElementById(id), { xaxis, yaxis } = figure._fullLayout;
            figure.scrollIntoView();
            const box = figure.getBoundingClientRect();
            return [box.left + xaxis._offset + xaxis.l2p(x), box.top + yaxis._offset + yaxis.l2p(y)];
        }""",
        [figure, math.log10(x), y],
    )
    page.mouse.move(*place)
    page.wait_for_timeout(200)
    page.mouse.click(*place)


def table_of(page: Page) -> dict[str, tuple[str, str]]:
    """Layer -> scheme and latent size, as the page shows them."""
    rows = page.eval_on_selector_all(
        "#layers tbody tr", "rows => rows.map(row => [...row.cells].map(c => c.textContent))"
    )
    return {name: (scheme, size) for name, scheme, size, *_ in rows}


def test_a_click_on_a_point_shows_its_plan(browser: Browser, searched: Searched, report: Path) -> None:
    seen = watched(browser)
    page = seen.open_file(report)
    metadata, points = searched.metadata, pareto_front(searched.records)
    for point in points:
        click_point(page, "front", metadata.cost / point.result.cost, 100 * point.result.accuracy)
        page.wait_for_function(f"document.getElementById('summary').textContent.startsWith('Trial {point.number} ')")
        shown = table_of(page)
        for layer in metadata.layers:
            choice = point.result.plan.layers.get(layer.name)
            expected = ("dense", "-") if choice is None else (choice.scheme, str(choice.latent_size))
            assert shown[layer.name] == expected
        bars = page.evaluate("document.getElementById('sizes').data[1].x")
        assert bars == [
            layer.out_size if choice is None else choice.latent_size
            for layer in metadata.layers
            for choice in [point.result.plan.layers.get(layer.name)]
        ]
    seen.keep("report-1200-light")
    assert seen.complaints == []


def test_pointing_at_a_trial_shows_its_plan_by_stages(browser: Browser, searched: Searched, report: Path) -> None:
    seen = watched(browser)
    page = seen.open_file(report)
    point = pareto_front(searched.records)[0]
    click_point(page, "front", searched.metadata.cost / point.result.cost, 100 * point.result.accuracy)
    hover = page.wait_for_selector("#front .hoverlayer .hovertext")
    assert hover is not None
    said = hover.text_content() or ""
    assert f"trial {point.number}" in said
    assert all(f"{stage}:" in said for stage in set(searched.metadata.stages().values()))


def test_the_keyboard_alone_chooses_a_trial(browser: Browser, searched: Searched, report: Path) -> None:
    seen = watched(browser)
    page = seen.open_file(report)
    options = page.eval_on_selector_all("#trial option", "options => options.map(option => option.value)")
    assert sorted(map(int, options)) == [record.number for record in searched.records if record.result]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#trial")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert (page.text_content("#summary") or "").startswith(f"Trial {options[1]} ")
    assert seen.complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1200, "dark")])
def test_any_width_and_theme_will_do(browser: Browser, report: Path, width: int, scheme: str) -> None:
    seen = watched(browser, width, scheme)
    page = seen.open_file(report)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()")
    assert page.evaluate("document.getElementById('front')._fullLayout.font.color") == ink
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in ground.removeprefix("rgb(").removesuffix(")").split(","))
    assert (brightness > 600) == (scheme == "light")
    seen.keep(f"report-{width}-{scheme}")
    assert seen.complaints == []


def test_it_prints_dark_on_white(browser: Browser, report: Path, tmp_path: Path) -> None:
    seen = watched(browser, scheme="dark")
    page = seen.open_file(report)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.getElementById('front')._fullLayout.font.color") == "#000"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_several_studies_lie_over_one_another(browser: Browser, searched: Searched, tmp_path: Path) -> None:
    content = front_content(searched.name, searched.metadata, pareto_front(searched.records))
    half = {**content, "points": content["points"][:1]}
    write_comparison(tmp_path / "comparison.html", "two studies", {"whole": content, "<b>part</b>": half})
    seen = watched(browser)
    page = seen.open_file(tmp_path / "comparison.html")
    assert page.evaluate("document.getElementById('fronts').data.map(trace => trace.name)") == ["whole", "<b>part</b>"]
    names = page.eval_on_selector_all("tbody tr", "rows => rows.map(row => row.cells[0].textContent)")
    assert names == ["whole", "<b>part</b>"]
    seen.keep("comparison")
    assert seen.complaints == []


def test_the_dashboard_shows_the_note_the_figures_and_the_pictures(browser: Browser, searched: Searched) -> None:
    with dashboard(searched.storage, searched.outputs, DashboardSettings(port=0)) as (address, server):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            seen = watched(browser, width=1300)
            page = seen.page
            page.goto(address)
            page.get_by_text(searched.name).first.click()
            page.wait_for_selector(".js-plotly-plot")
            for title in ("Front", "Share of its MACs that each layer keeps", "Share of the expected loss by layer"):
                page.get_by_text(title, exact=True).first.wait_for()
            seen.keep("dashboard-study")
            study = f"{address}dashboard/studies/{searched.study._study_id}"
            page.goto(f"{study}/note")
            page.get_by_text("The closed form").first.wait_for()
            assert page.get_by_text("python -m ranksearch").count()
            seen.keep("dashboard-note")
            page.goto(f"{study}/trials?numbers=0")
            page.get_by_text("speedup").first.wait_for()
            picture = page.wait_for_selector("img[src*='artifacts']")
            assert picture is not None
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
            seen.keep("dashboard-trial")
            assert seen.complaints == []
        finally:
            server.shutdown()
            thread.join()

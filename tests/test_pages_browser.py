"""The other pages that are written, in a real browser with the network off: reports, and the page of tuning."""

from __future__ import annotations

import numpy as np
import pytest

from tests import browser
from tests.analysis.test_tune_units import plant, roam, world
from tests.test_result import made
from torchmem.analysis.tune_units import tune_units
from torchmem.report import write_report
from torchmem.result import Result

pytestmark = browser.needs_browser


@pytest.fixture(scope="module")
def chromium():
    with browser.started() as one:
        yield one


class Long(type(made())):
    """A sentence as long as those of real results, and a table wider than the page."""

    def summary(self) -> str:
        return f"{'a sentence that goes on, ' * 12}\nname{'  1.234' * 40}"


def test_a_report_shows_its_figures_and_stays_in_the_window(chromium, tmp_path):
    plain = made(curve=np.arange(4.0))
    wide: Result = Long(**{f: getattr(plain, f) for f in ("score", "curve", "parts", "file", "provenance")})
    both = {"one": plain, "two": wide}
    path = write_report(tmp_path / "report.html", "Memory", both, "What it is.", {"two": "Note."})
    for width in (browser.WIDTH, 500):
        with browser.opened(path, chromium, width=width) as page:
            assert browser.faults_of_layout(page) == []
            assert page.evaluate("document.images.length") == 2
            lines = page.inner_text("pre >> nth=2").splitlines()
            assert max(map(len, lines[:-1])) <= 104, "sentences are folded"
            assert lines[-1].startswith("name  1.234") and len(lines[-1]) > 200, "tables are not"
            assert page.locator("details pre").nth(0).is_hidden()
            page.click("summary >> nth=0")
            assert '"torchmem"' in page.locator("details pre").nth(0).inner_text()


@pytest.fixture(scope="module")
def tuning(tmp_path_factory):
    rng = np.random.default_rng(0)
    home = tmp_path_factory.mktemp("tuning")
    episode = np.repeat(np.arange(8), 100)
    pos, turn = roam(rng, episode)
    rates = plant(rng, episode, pos, turn)[:, ::10]
    return tune_units(world(home / "rec", rates, pos, turn, episode), shifts=39).save_page(home / "page.html")


def test_a_click_in_the_tuning_page_picks_the_unit_under_it(chromium, tuning):
    with browser.opened(tuning, chromium) as page:
        assert browser.faults_of_layout(page) == []
        assert browser.ink(page, "#scatter") > 3 and browser.ink(page, "#map") > 3
        shape = page.evaluate("['clientWidth', 'clientHeight', 'width', 'height'].map(n => $('scatter')[n])")
        assert shape[:2] == shape[2:], "a stretched canvas puts clicks elsewhere"
        for n in (0, 7, 15):
            x, y, unit = page.evaluate("n => points[n]", n)
            page.click("#scatter", position={"x": x + 1, "y": y + 1})
            at = page.evaluate("points.find(p => p[2] === picked)")
            assert abs(at[0] - x) < 4 and abs(at[1] - y) < 4, f"{unit} was clicked, {at[2]} is far from it"
        before = browser.drawn(page, "#map")
        page.evaluate("document.activeElement.blur()")
        picked = page.evaluate("picked")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("picked") == picked + 1 and browser.drawn(page, "#map") != before
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("picked") == picked and browser.drawn(page, "#map") == before
        whole = page.inner_text("#count")
        page.uncheck("#kinds input >> nth=0")
        assert page.inner_text("#count") != whole
        page.check("#kinds input >> nth=0")
        for name in ("x", "y"):
            before = browser.drawn(page, "#scatter")
            page.select_option(f"#{name}", "hd")
            assert browser.drawn(page, "#scatter") != before
        page.fill("#number", "3")
        page.keyboard.press("Enter")
        assert "unit 3" in page.inner_text("#title") and "rate" in page.inner_text("#numbers")

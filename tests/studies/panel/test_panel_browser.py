"""Every control of the panel, in a real browser, from file:// with the network off. Pictures: TORCHMEM_SHOTS=FOLDER."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import browser
from tests.models.simulator import tiny
from tests.studies.panel.conftest import AT, SAMPLES, STEPS, K
from torchmem.analysis.find_directions import find_directions
from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import save_agent
from torchmem.studies.panel.build import make_panel
from torchmem.surgery.model import load
from torchmem.surgery.record import record

pytestmark = browser.needs_browser
REAL = 6
CANVASES = ("frame", "overlay", "edited", "value_plot", "lines_plot", "scatter", "bar_plot", "histogram", "matrix",
            "effects")  # fmt: skip


@pytest.fixture(scope="module")
def page(made):
    with browser.opened(made.page) as shown:
        ready(shown)
        yield shown


@pytest.fixture(autouse=True)
def anew(page):
    """Each test begins with simulated sample 2 at step 1, and leaves the page standing."""
    page.evaluate("play(false)")
    page.click("#f_reset")
    page.evaluate(f"go({REAL + 2}, 1)")
    at(page, REAL + 2, 1)
    yield
    assert page.evaluate("document.body.dataset.ready") == "1"


def ready(page):
    page.wait_for_selector("body[data-ready]", state="attached")


def at(page, sample: int, step: int) -> None:
    """Wait until that is drawn."""
    page.wait_for_function("want => document.body.dataset.shown === want", arg=f"{sample}:{step}")


def wait(page, script: str, **given) -> None:
    page.wait_for_function(script, **given)


def redrawn(page, selector: str, act) -> None:
    """`act` changes the picture on a canvas."""
    before = browser.drawn(page, selector)
    act()
    wait(page, "([s, old]) => document.querySelector(s).toDataURL() !== old", arg=[selector, before])


def shoot(page, name: str) -> None:
    if folder := os.environ.get("TORCHMEM_SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def count(page) -> int:
    return int(page.inner_text("#count").split(" of ")[0])


def test_every_view_shows_something_and_nothing_sticks_out(page):
    for name in CANVASES:
        assert browser.ink(page, f"#{name}") > 2, name
    assert browser.faults_of_layout(page) == []
    assert page.inner_text("#count") == f"{REAL + SAMPLES} of {REAL + SAMPLES} samples"
    assert "simulated" in page.inner_text("#caveats")
    shoot(page, "panel")
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_timeout(200)
    assert browser.faults_of_layout(page) == []
    shoot(page, "panel_narrow")
    page.set_viewport_size({"width": browser.WIDTH, "height": browser.HEIGHT})


def test_steps_by_buttons_slider_and_keys(page):
    end = STEPS - 1
    for selector, step in (("#on", 2), ("#on", 3), ("#back", 2), ("#last", end), ("#on", end), ("#first", 0)):
        page.click(selector)
        at(page, REAL + 2, step)
        assert page.inner_text("#now") == f"step {step} of {STEPS - 1}"
    page.evaluate("document.activeElement.blur()")
    for key, step in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", STEPS - 1), ("Home", 0)):
        page.keyboard.press(key)
        at(page, REAL + 2, step)
    redrawn(page, "#frame", lambda: page.fill("#time", "4"))
    at(page, REAL + 2, 4)


def test_samples_by_list_and_keys(page):
    page.select_option("#sample", "3")
    at(page, 3, 1)
    assert page.is_hidden("#overlay") and page.is_hidden("#edited"), "a real one has neither"
    page.evaluate("document.activeElement.blur()")
    for key, sample in (("j", 4), ("ArrowDown", 5), ("k", 4), ("ArrowUp", 3)):
        page.keyboard.press(key)
        at(page, sample, 1)
    page.evaluate("go(0, 0)")
    at(page, 0, 0)
    page.keyboard.press("k")
    at(page, REAL + SAMPLES - 1, 0)
    assert page.is_visible("#overlay") and page.is_visible("#edited")


def test_playing(page):
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    assert page.get_attribute("#play", "aria-pressed") == "true"
    at(page, REAL + 2, 2)
    at(page, REAL + 2, 3)
    at(page, REAL + 2, STEPS - 1)
    at(page, REAL + 2, 0)  # after the end, from the start
    page.keyboard.press("Space")
    assert page.inner_text("#play") == "play"
    page.wait_for_timeout(400)
    step = page.evaluate("state.step")
    page.wait_for_timeout(400)
    assert page.evaluate("state.step") == step
    page.click("#play")
    wait(page, "was => state.step !== was", arg=step)
    page.click("#play")


def test_saliency_controls(page):
    redrawn(page, "#overlay", lambda: page.select_option("#scalar", "1"))
    assert "prob:1" in page.inner_text("#overlay_note") and f"at step {AT}" in page.inner_text("#overlay_note")
    redrawn(page, "#overlay", lambda: page.click("[data-way=internal]"))
    assert page.get_attribute("[data-way=internal]", "aria-pressed") == "true"
    assert page.get_attribute("[data-way=total]", "aria-pressed") == "false"
    page.evaluate("document.activeElement.blur()")
    for way in ("external", "total"):
        page.keyboard.press("w")
        wait(page, "way => state.way === way", arg=way)
    page.keyboard.press("s")
    wait(page, "state.scalar === 2")
    page.keyboard.press("S")
    wait(page, "state.scalar === 1")
    redrawn(page, "#overlay", lambda: page.fill("#intensity", "3"))
    redrawn(page, "#overlay", lambda: page.keyboard.press("-"))
    redrawn(page, "#overlay", lambda: page.keyboard.press("+"))
    redrawn(page, "#overlay", lambda: page.select_option("#blur", "4"))
    redrawn(page, "#overlay", lambda: page.select_option("#scale", "one"))
    redrawn(page, "#overlay", lambda: page.fill("#intensity", "0"))
    page.evaluate(f"go({REAL + 2}, {AT + 1})")
    at(page, REAL + 2, AT + 1)
    assert "after it: none" in page.inner_text("#overlay_note")
    page.fill("#intensity", "1")
    page.select_option("#blur", "1")
    page.select_option("#scale", "all")


def test_the_scatter_and_what_is_clicked_in_it(page):
    redrawn(page, "#scatter", lambda: page.select_option("#x", "2"))
    redrawn(page, "#scatter", lambda: page.select_option("#y", "3"))
    for colour in ("reward", "action", "cluster", "source", "value"):
        page.select_option("#colour", colour)
        wait(page, "c => state.colour === c", arg=colour)
        assert page.locator("#key span").count() >= 3
    page.evaluate("document.activeElement.blur()")
    for key, name, value in (("x", "x", K - 1), ("X", "x", 2), ("y", "y", 0), ("Y", "y", K - 1)):
        page.keyboard.press(key)
        wait(page, "([n, v]) => state[n] === v", arg=[name, value])
    page.keyboard.press("c")
    wait(page, "state.colour === 'reward'")
    at_x, at_y, row = page.evaluate("scatterPoints[scatterPoints.length - 5]")
    page.click("#scatter", position={"x": at_x, "y": at_y})
    near = page.evaluate(
        """([x, y]) => { const d = scatterPoints.map(p => [(p[0] - x) ** 2 + (p[1] - y) ** 2, p[2]]);
        const low = Math.min(...d.map(e => e[0])); return d.filter(e => e[0] <= low + 4).map(e => e[1]); }""",
        [at_x, at_y],
    )
    wait(page, "rows => rows.includes(START[state.sample] + state.step)", arg=near)
    assert row in near
    shoot(page, "scatter")


def test_bars_and_traces_follow(page):
    before = browser.drawn(page, "#bar_plot")
    redrawn(page, "#value_plot", lambda: page.click("#on"))
    assert browser.drawn(page, "#bar_plot") != before
    assert "raises" in page.inner_text("#bar_note")
    box = page.locator("#lines_plot").bounding_box()
    page.click("#lines_plot", position={"x": box["width"] - 12, "y": 60})
    at(page, REAL + 2, STEPS - 1)
    page.click("#value_plot", position={"x": 50, "y": 60})
    at(page, REAL + 2, 0)
    page.evaluate("go(0, 0)")
    at(page, 0, 0)
    assert "no gradients" in page.inner_text("#bar_note")
    assert page.locator("#legend span").count() == 3


def test_filters_hold_together_at_one_step(page):
    page.select_option("#f_source", "real")
    wait(page, f"passing.length === {REAL}")
    assert page.evaluate("META.samples[state.sample].source") == "real", "what is shown passes"
    page.select_option("#f_source", "any")
    wait(page, f"passing.length === {REAL + SAMPLES}")
    page.select_option("#f_action", "2")
    want = page.evaluate("META.samples.filter((s, i) => T.action.subarray(START[i], START[i + 1]).includes(2)).length")
    wait(page, "n => passing.length === n", arg=want)
    page.select_option("#f_step", "1")
    want = page.evaluate("META.samples.filter((s, i) => s.steps > 1 && T.action[START[i] + 1] === 2).length")
    wait(page, "n => passing.length === n", arg=want)
    page.click("#f_reset")
    wait(page, f"passing.length === {REAL + SAMPLES}")
    page.select_option("#f_cluster", "1")
    want = page.evaluate("META.samples.filter((s, i) => T.cluster.subarray(START[i], START[i + 1]).includes(1)).length")
    wait(page, "n => passing.length === n", arg=want)
    page.click("#f_reset")
    page.select_option("#f_reward", "plus")
    some = "META.samples.filter((s, i) => T.reward.subarray(START[i], START[i + 1]).some(v => v > 1e-3)).length"
    want = page.evaluate(some)
    wait(page, "n => passing.length === n", arg=want)
    page.click("#f_reset")
    page.fill("#f_low", "1e9")
    wait(page, "passing.length === 0")
    assert page.inner_text("#count").startswith("0 of") and page.is_disabled("#sample")
    page.fill("#f_low", "")
    page.fill("#f_high", "1e9")
    wait(page, f"passing.length === {REAL + SAMPLES}")


def test_ranges_of_directions_and_their_gradients(page):
    page.click("#f_add")
    page.click("#f_add")
    rows = page.locator("#f_ranges .row")
    assert rows.count() == 2
    rows.nth(0).locator("select").select_option("score 1")
    low = page.evaluate("[...T.score[1]].sort((a, b) => b - a)[2]")
    rows.nth(0).locator("input").nth(0).fill(str(low - 1e-6))
    wait(page, "passing.length <= 3")
    first = count(page)
    rows.nth(1).locator("select").select_option(f"score {K - 1}")
    rows.nth(1).locator("input").nth(1).fill("-1e9")
    wait(page, "passing.length === 0")
    rows.nth(1).locator("button").click()
    wait(page, "n => passing.length === n", arg=first)
    rows.nth(0).locator("select").select_option("grad 1")
    rows.nth(0).locator("input").nth(0).fill("-1e9")
    wait(page, f"passing.length === {SAMPLES}")  # only the simulated ones have gradients
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("r")
    wait(page, f"passing.length === {REAL + SAMPLES}")
    assert rows.count() == 0


def test_extremes_lead_to_their_steps(page):
    page.select_option("#e_direction", "2")
    wait(page, "document.querySelectorAll('#e_high button').length === 6")
    best = page.evaluate("T.score[2].indexOf(Math.max(...T.score[2]))")
    sample, step = page.evaluate("r => [OF[r], r - START[OF[r]]]", best)
    wait(page, "to => document.querySelector('#e_high button').dataset.to === to", arg=f"{sample}:{step}")
    page.click("#e_high button >> nth=0")
    at(page, sample, step)
    for name in ("e_middle", "e_low"):
        to = page.get_attribute(f"#{name} button >> nth=1", "data-to")
        page.click(f"#{name} button >> nth=1")
        at(page, *map(int, to.split(":")))
    page.select_option("#e_step", "1")
    wait(page, "[...document.querySelectorAll('#extrema .thumbs button')].every(b => b.dataset.to.endsWith(':1'))")
    page.select_option("#e_step", "any")


def test_clusters_show_examples_and_filter(page):
    assert page.locator("#c_list [data-cluster]").count() == 3
    assert "clusters of" in page.inner_text("#c_summary")
    to = page.get_attribute("#c_list [data-to] >> nth=0", "data-to")
    page.click("#c_list [data-to] >> nth=0")
    at(page, *map(int, to.split(":")))
    assert page.evaluate("T.cluster[row()]") == 0
    page.click("[data-cluster='2']")
    wait(page, "state.filter.cluster === '2' && document.querySelector('#f_cluster').value === '2'")
    page.click("[data-cluster='2']")
    wait(page, "state.filter.cluster === 'any'")


def test_dynamics_and_effects(page):
    redrawn(page, "#matrix", lambda: page.select_option("#d_what", "correlation"))
    redrawn(page, "#matrix", lambda: page.select_option("#d_lag", "1" if page.evaluate("state.lag") != 1 else "0"))
    box = page.locator("#matrix").bounding_box()
    cell = (box["width"] - 24) / K
    page.click("#matrix", position={"x": 24 + 3.5 * cell, "y": 24 + 1.5 * cell})
    wait(page, "state.x === 1 && state.y === 3")
    assert page.input_value("#x") == "1" and "→" in page.inner_text("#d_note")
    edge = page.evaluate("META.dynamics.edges[0]")
    page.click("#d_edges tr.pick >> nth=0")
    wait(page, "e => state.x === e[2] && state.y === e[3] && state.lag === e[1]", arg=edge)
    page.select_option("#i_place", "world")
    wait(page, "state.place === 'world'")
    page.select_option("#i_dose", "0")
    wait(page, "state.dose === 0")
    assert "random directions" in page.inner_text("#i_summary")


def test_help_lists_keys_and_origin_is_told(page):
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    assert page.is_visible("#keys") and "next sample" in page.inner_text("#keys")
    shoot(page, "keys")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(100)
    assert page.evaluate("state.step") == 1, "keys do nothing behind the help"
    page.keyboard.press("?")
    assert page.is_hidden("#keys")
    page.click("#help")
    page.click("#keys button")
    assert page.is_hidden("#keys")
    page.click("summary")
    assert '"weights"' in page.inner_text("#origin")
    page.click("summary")


def test_typing_a_number_is_no_command(page):
    page.click("#f_low")
    for key in ("j", "ArrowRight", "r"):
        page.keyboard.press(key)
    page.wait_for_timeout(100)
    assert page.evaluate("[state.sample, state.step]") == [REAL + 2, 1]


def test_a_page_without_options_has_no_empty_boxes(made, tmp_path, page):
    how = {"recording": made.rec.path, "episodes": 3, "samples": 2, "horizon": 3, "allow": True}
    plain = make_panel(made.agent, tmp_path / "p.html", **how)
    with browser.opened(plain, page.context.browser) as page:
        ready(page)
        assert page.locator("section").count() == 3 and browser.faults_of_layout(page) == []
        for key in ("j", "k", "ArrowRight", "s", "w", "x", "y", "c", "r", "+"):
            page.keyboard.press(key)
        assert browser.ink(page, "#frame") > 2
        shoot(page, "plain")


def test_numbers_and_continuous_actions(tmp_path, page):
    agent = save_agent(tiny.ppo(env_spec("dummy", continuous=True, image=0, length=8)), tmp_path / "agent")
    rec = record(load(agent), episodes=4, envs=2, out=tmp_path / "rec", seed=1)
    directions = find_directions(rec, "memory", count=2, draws=0)
    made = make_panel(agent, tmp_path / "n.html", recording=rec.path, directions=directions)
    with browser.opened(made, page.context.browser) as one:
        ready(one)
        assert one.locator("#f_action").count() == 0 and one.locator("#f_source").count() == 0
        for name in ("frame", "lines_plot", "value_plot", "scatter", "bar_plot"):
            assert browser.ink(one, f"#{name}") > 2, name
        before = browser.drawn(one, "#frame")
        one.keyboard.press("ArrowRight")
        at(one, 0, 1)
        assert browser.drawn(one, "#frame") != before
        assert "action" not in one.inner_text("#frame_note") and one.locator("#legend span").count() == len(
            one.evaluate("META.lines"))  # fmt: skip
        shoot(one, "numbers")

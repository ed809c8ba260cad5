"""Pages in a real browser: Chromium without a window, the network off, every complaint of the page kept."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WIDTH, HEIGHT = 1200, 900
NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The program, where there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def missing() -> str:
    """Why no page can be opened here; "" where one can."""
    if importlib.util.find_spec("playwright") is None:
        return "the package playwright is not installed (pip install -c constraints.txt -e .[browser])"
    return "" if chromium() else f"there is no {' or '.join(NAMES)} on the PATH (apt-get install chromium)"


needs_browser = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@contextlib.contextmanager
def started() -> Iterator[Any]:
    """The browser. Not twice at once in a process; stopped before others run, whom its event loop could disturb."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(file: Path, browser: Any = None, width: int = WIDTH, height: int = HEIGHT) -> Iterator[Any]:
    """The page of a file, in a browser of its own or in a given one. On leaving: nothing in the console, nothing asked
    of any network."""
    faults: list[str] = []
    with contextlib.ExitStack() as stack:
        browser = browser or stack.enter_context(started())
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
        stack.callback(context.close)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("request", lambda r: faults.append(f"request: {r.url[:80]}")
                if not r.url.startswith(("file:", "data:", "blob:")) else None)  # fmt: skip
        page.goto(file.resolve().as_uri())
        yield page
    assert not faults, "\n".join(faults)


def faults_of_layout(page: Any) -> list[str]:
    """Pictures that did not load, and what is wider than the window."""
    return page.evaluate(
        """() => {
          const found = [...document.images].filter(i => !i.complete || !i.naturalWidth)
            .map(i => `picture ${i.alt || i.src.slice(0, 60)} is not loaded`);
          const {clientWidth, scrollWidth} = document.documentElement;
          if (scrollWidth > clientWidth) found.push(`the page is ${scrollWidth} pixels wide`);
          return found;
        }"""
    )


def ink(page: Any, selector: str) -> int:
    """How many different colours a canvas shows: 1 for an empty one."""
    return page.evaluate(
        """s => { const c = document.querySelector(s), image = c.getContext('2d').getImageData(0, 0, c.width, c.height);
          return new Set(new Uint32Array(image.data.buffer)).size; }""",
        selector,
    )


def drawn(page: Any, selector: str) -> str:
    """The picture on a canvas, to compare."""
    return page.evaluate("s => document.querySelector(s).toDataURL()", selector)

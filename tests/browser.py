"""A headless Chromium for tests of pages, which are skipped where there is none."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright browser, closed afterwards: the one of `playwright install chromium`, or one on the PATH."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the extra dev brings playwright")
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = own if Path(own).exists() else next((path for name in _NAMES if (path := shutil.which(name))), None)
        if found is None:
            pytest.skip("there is no Chromium: `playwright install chromium` fetches one")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, url: str, *, width: int = 1280, height: int = 800, scheme: str = "light") -> Iterator[Any]:
    """A page at `url`; fails afterwards on console errors or requests to other origins."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith((url, "data:", "blob:")) else wrong.append(asked.url))
    page.goto(url)
    yield page
    context.close()
    assert wrong == []


def until(holds: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait for an effect of the page's script. (Playwright's own wait violates these pages' security policy.)"""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.05)

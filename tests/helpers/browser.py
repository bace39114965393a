"""Chromium for tests of pages; tests are skipped if it is not installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""


@contextmanager
def new_page(*, width: int = 1200, dark: bool = False) -> Iterator[tuple[Any, list[str]]]:
    """Open an empty page.

    Args:
        width: of the window.
        dark: prefer dark colors.

    Yields:
        The page, and the errors of its console so far.
    """
    if not CHROMIUM:
        pytest.skip("chromium is not installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            scheme = "dark" if dark else "light"
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on(
                "console",
                lambda message: errors.append(message.text) if message.type == "error" else None,
            )
            yield page, errors
        finally:
            browser.close()


def draw_figures(page: Any) -> None:
    """Scroll through a report page, and wait until every figure is drawn."""
    for figure in page.locator(".plot").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".svg-container").wait_for(timeout=60_000)
    page.wait_for_selector("html[data-drawn=true]", timeout=60_000)
    page.evaluate("window.scrollTo(0, 0)")

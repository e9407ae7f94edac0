"""A browser for the tests, and a page with every kind of cell in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "unit" / "report")]

from chromium import fetch_chromium  # noqa: E402
from report_pages import sample  # noqa: E402

from harness.report.html import write_html  # noqa: E402


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = fetch_chromium()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_html(sample(), tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained of; empty at the end."""
    return []


@pytest.fixture
def open_page(browser: Browser, report: Path, complaints: list[str]) -> Iterator:
    """Opens the page in a context of its own, and sees that nothing but the file itself is asked for."""
    contexts = []

    def opened(hash_: str = "", **options) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(report.as_uri()) or complaints.append(request.url))
        page.goto(report.as_uri() + hash_)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures are kept: HARNESS_SCREENSHOTS, else the test run's own folder."""
    named = os.environ.get("HARNESS_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder

"""A headless Chromium for tests, the machine's own. Knows pages; knows nothing of ours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream",  # a camera and a microphone that every machine has
    "--use-fake-ui-for-media-stream",
)


class Visit:
    """A page and what went wrong on it: requests to other machines, errors of its scripts."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        page.route("**/*", self._let_through)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", self._ask)
        self.asked: list[str] = []

    def _let_through(self, route: Any) -> None:
        url = urlsplit(route.request.url)
        if url.scheme in ("data", "blob") or url.hostname in ("127.0.0.1", "localhost"):
            route.continue_()
        else:
            self.elsewhere.append(route.request.url)
            route.abort()

    def _ask(self, dialog: Any) -> None:
        self.asked.append(dialog.message)
        dialog.accept()


@contextmanager
def chromium(*, microphone: Path | None = None, **context: Any) -> Iterator[Visit]:
    """A fresh page; skips the test, and says so, where there is no browser to drive.

    microphone: a 16-bit wav that is heard once, from when a page first listens."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser here ({', '.join(NAMES)}): apt-get install chromium")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with sync_api.sync_playwright() as driver:
        flags = list(FLAGS)
        if microphone is not None:
            flags.append(f"--use-file-for-fake-audio-capture={microphone}%noloop")
        browser = driver.chromium.launch(executable_path=program, args=flags)
        try:
            page = browser.new_context(
                viewport={"width": 1440, "height": 900}, **context
            ).new_page()
            page.set_default_timeout(30_000)
            yield Visit(page)
        finally:
            browser.close()

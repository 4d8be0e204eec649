"""Debian's chromium, driven by Playwright, and the example that it looks at."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from support import warm
from support.nodes import ENVIRONMENT, PATIENCE_S, poll

# Nothing is asked of the world outside: neither updates nor anybody's servers.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--force-color-profile=srgb"]
# The last list counts, so Playwright's own is here again. New is the address bar's popup: nobody sees it, and it is a
# page of its own for each window, which costs as much as all that the tests look at.
NOT_USED = ["DestroyProfileOnBrowserClose", "HttpsUpgrades", "HttpsFirstBalancedModeAutoEnable", "LensOverlay"]
NOT_USED += ["MediaRouter", "PaintHolding", "OptimizationHints", "NetworkTimeServiceQuerying", "AimEnabled"]
NOT_USED += ["WebUIOmniboxPopup", "WebUIOmniboxAimPopup", "WebUIOmniboxFullPopup"]
QUIET += [f"--disable-features={','.join(NOT_USED)}"]
TIMEOUT_MS = 15_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """Without a window. Where there is none the test is left out, but in CI it fails."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium: `make browser` installs it")
        pytest.skip("no chromium: `make browser` installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Regions:
    """The example, running: where each region answers."""

    urls: dict[str, str]
    folder: Path

    @property
    def home(self) -> str:
        return next(iter(self.urls.values()))

    @property
    def edges(self) -> list[str]:
        return list(self.urls.values())[1:]


@contextmanager
def regions(folder: Path) -> Iterator[Regions]:
    """`python -m examples.flask_app`, until it is ended as by Ctrl-C."""
    log = folder / "runner.err"
    with log.open("wb") as err:
        process = warm.WarmPopen(
            [sys.executable, "-m", "examples.flask_app", "--json", "--folder", str(folder / "site")],
            stdout=subprocess.PIPE,
            stderr=err,
            env=ENVIRONMENT | {"PRELOADED": warm.SITE},
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        facts: dict[str, Any] = json.loads(line)
        yield Regions(facts["regions"], Path(facts["folder"]))
    finally:
        process.send_signal(signal.SIGINT)
        assert poll(lambda: process.poll() is not None, PATIENCE_S), "the runner does not end"
        assert process.stdout is not None
        process.stdout.close()
        print(log.read_text()[-4000:])


@dataclass
class Visitor:
    """A page of a browser context of its own, and what went wrong in it."""

    page: Page
    complaints: list[str]

    def go(self, url: str) -> Page:
        self.page.goto(url)
        return self.page


@contextmanager
def visitor(browser: Browser, *, complaints: bool = True, **context: Any) -> Iterator[Visitor]:
    """Somebody with cookies of their own. At the end nothing may stand in the console that is a warning or worse."""
    made = browser.new_context(**context)
    made.set_default_timeout(TIMEOUT_MS)
    found: list[str] = []
    page = made.new_page()

    def told(kind: str, text: str, where: str) -> None:
        if kind in ("error", "warning"):
            found.append(f"{kind}: {text} ({where})")

    page.on("console", lambda message: told(message.type, message.text, message.location.get("url", "")))
    page.on("pageerror", lambda error: told("error", str(error), page.url))
    page.on("response", lambda answer: answer.status >= 400 and told("error", str(answer.status), answer.url))
    try:
        yield Visitor(page, found)
        if complaints:
            assert found == []
    finally:
        made.close()

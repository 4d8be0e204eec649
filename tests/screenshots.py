"""Make the screenshots of the documentation from the example, running: `make screenshots`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect
from support.browser import chromium, regions, visitor

DOCS = Path(__file__).parent.parent / "docs"
DESK = {"viewport": {"width": 1120, "height": 760}}
PHONE = {"viewport": {"width": 375, "height": 760}, "device_scale_factor": 2}


def main() -> None:
    """Three pictures: the list at an edge, the same on a phone in the dark, and a failover behind the page."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser, regions(Path(folder)) as site:
        edge = site.edges[0]
        with visitor(browser, **DESK) as it:
            page = it.go(f"{edge}/add")
            page.get_by_label("Title").fill("Read Your Writes")
            page.get_by_label("Author").fill("A visitor of Tokyo")
            page.get_by_label("Note in the margin").fill("Written at the primary, read here a moment later.")
            page.get_by_role("button", name="Add it to the list").click()
            expect(page.get_by_role("status")).to_be_visible()
            picture(page, "example")
        with visitor(browser, color_scheme="dark", **PHONE) as it:
            picture(it.go(edge), "example-phone")
        with visitor(browser, complaints=False, **DESK) as it:
            page = it.go(f"{site.edges[1]}/lab")
            page.get_by_role("button", name="Kill the primary's region").click()
            roles = page.locator("[data-part=regions]")
            expect(roles.get_by_text("killed")).to_have_count(1)
            expect(roles.get_by_text("primary", exact=True)).to_have_count(1, timeout=30_000)
            back = page.get_by_role("button", name="Bring")
            expect(back).to_be_enabled(timeout=30_000)
            back.click()
            expect(roles.get_by_text("primary", exact=True)).to_have_count(1, timeout=30_000)
            expect(roles.get_by_text("replica, streaming")).to_have_count(2, timeout=30_000)
            page.locator("section[aria-labelledby=drill]").screenshot(path=DOCS / "example-failover.png")


def picture(page: Page, name: str) -> None:
    """Once the live parts are there."""
    expect(page.locator("body.is-cut")).to_have_count(0)
    page.screenshot(path=DOCS / f"{name}.png")


if __name__ == "__main__":
    main()

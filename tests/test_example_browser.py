"""The example in a real browser: three regions, visitors who write at an edge, and the loss of the primary."""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from support.browser import Regions, chromium, regions, visitor

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
PAGES = ["/", "/add", "/lab", "/?q=time", "/entries/1"]
titles = (f"Book {number}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Regions]:
    with regions(tmp_path_factory.mktemp("example")) as site:
        yield site


def add(page: Page, title: str, *, picture: bytes | None = None) -> None:
    """Fill in the form, by its labels, and send it."""
    page.get_by_label("Title").fill(title)
    page.get_by_label("Author").fill("An Author")
    page.get_by_label("Note in the margin").fill("Said in passing")
    if picture is not None:
        page.get_by_label("Picture of the cover").set_input_files(
            {"name": "cover.png", "mimeType": "image/png", "buffer": picture}
        )
    page.get_by_role("button", name="Add it to the list").click()


def entry(page: Page, title: str) -> object:
    return page.get_by_role("link", name=title, exact=True)


def png(side: int = 8) -> bytes:
    """A red square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\xff\0\0" * side for _ in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_what_was_posted_at_an_edge_is_read_there_at_once_and_soon_at_the_other(
    browser: Browser, site: Regions
) -> None:
    with visitor(browser) as mine, visitor(browser) as other:
        for edge, elsewhere in (site.edges, reversed(site.edges)):
            title = next(titles)
            add(mine.go(f"{edge}/add"), title, picture=png())
            expect(mine.page).to_have_url(re.compile(re.escape(edge) + r"/\?added=\d+"))
            expect(mine.page.get_by_role("status")).to_contain_text("is on the list")
            expect(entry(mine.page, title)).to_be_visible()
            assert mine.page.locator("article", has_text=title).locator("img").evaluate("it => it.naturalWidth") == 8
            # Somebody else, who has no token, at the other edge.
            other.go(elsewhere)
            for _ in range(50):
                if entry(other.page, title).count():
                    break
                other.page.reload()
            expect(entry(other.page, title)).to_be_visible()


def test_the_bar_follows_what_others_write_without_a_reload(browser: Browser, site: Regions) -> None:
    with visitor(browser) as reader, visitor(browser) as writer:
        position = reader.go(site.edges[0]).locator("dl[data-part=bar] div", has_text="Position").locator("dd")
        before = position.inner_text()
        add(writer.go(f"{site.edges[1]}/add"), next(titles))
        expect(position).not_to_have_text(before)
        expect(reader.page.locator("dl[data-part=bar]")).to_contain_text("replica, streaming")


def test_without_read_your_writes_the_own_entry_is_missing_and_with_it_it_is_not(
    browser: Browser, site: Regions
) -> None:
    edge, name = site.edges[0], list(site.urls)[1]
    with visitor(browser) as it:
        page = it.go(f"{edge}/lab")
        field = page.get_by_role("group", name=name).get_by_label("Stream held back, ms")
        field.fill("1500")
        page.get_by_role("button", name="Set the distances").click()
        expect(field).to_have_value("1500")
        page.get_by_role("button", name="Turn read-your-writes off").click()
        missing = next(titles)
        add(it.go(f"{edge}/add"), missing)
        expect(page.get_by_role("status")).to_contain_text("is not here")
        expect(entry(page, missing)).to_have_count(0)
        it.go(f"{edge}/lab").get_by_role("button", name="Turn read-your-writes on").click()
        there = next(titles)
        add(it.go(f"{edge}/add"), there)
        expect(page.get_by_role("status")).to_contain_text("is on the list")
        expect(entry(page, there)).to_be_visible()
        field = it.go(f"{edge}/lab").get_by_role("group", name=name).get_by_label("Stream held back, ms")
        field.fill("0")
        page.get_by_role("button", name="Set the distances").click()
        expect(field).to_have_value("0")


def test_everything_can_be_done_without_javascript(browser: Browser, site: Regions) -> None:
    with visitor(browser, java_script_enabled=False) as it:
        title = next(titles)
        add(it.go(f"{site.edges[1]}/add"), title)
        expect(entry(it.page, title)).to_be_visible()
        it.page.get_by_label("Search titles, authors and notes").fill(title)
        it.page.get_by_role("button", name="Search").click()
        expect(it.page.get_by_role("article")).not_to_have_count(0)
        expect(it.page.locator("dl[data-part=bar]")).to_contain_text("replica, streaming")
        it.go(f"{site.edges[1]}/lab").get_by_label("The line").fill("without a script")
        it.page.get_by_role("button", name="Write it at the primary").click()
        expect(it.page.get_by_role("table").filter(has_text="without a script")).to_be_visible()


def test_every_page_fits_a_phone(browser: Browser, site: Regions) -> None:
    with visitor(browser, **PHONE) as it:
        for path in PAGES:
            page = it.go(site.edges[0] + path)
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= 360, f"{path} is {width} pixels wide"
            small = page.evaluate(
                """() => [...document.querySelectorAll("button, main input:not([type=hidden]), aside a, header a")]
                    .filter((it) => it.getBoundingClientRect().height < 24).map((it) => it.outerHTML)"""
            )
            assert small == [], f"{path}: too small for a finger"


def test_a_form_can_be_filled_in_and_sent_with_the_keyboard_alone(browser: Browser, site: Regions) -> None:
    with visitor(browser) as it:
        page, title = it.go(f"{site.edges[0]}/add"), next(titles)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_label("Title")).to_be_focused()
        outline = page.get_by_label("Title").evaluate(
            "it => getComputedStyle(it).outlineStyle + getComputedStyle(it).boxShadow"
        )
        assert outline != "nonenone", "nobody sees where the keyboard is"
        page.keyboard.type(title)
        for _ in range(4):  # author, note, picture, button
            page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Add it to the list")).to_be_focused()
        page.keyboard.press("Enter")
        expect(entry(page, title)).to_be_visible()


def test_every_field_has_a_label_and_every_page_a_title_one_heading_and_a_language(
    browser: Browser, site: Regions
) -> None:
    with visitor(browser) as it:
        heads = set()
        for path in PAGES:
            page = it.go(site.edges[0] + path)
            nameless = page.evaluate(
                """() => [...document.querySelectorAll("input:not([type=hidden]), textarea, select, button, a, img")]
                    .filter((it) => !(it.labels?.length && it.labels[0].textContent.trim())
                        && !it.textContent.trim() && !it.getAttribute("alt") && !it.getAttribute("aria-label"))
                    .filter((it) => !(it.tagName === "IMG" && it.hasAttribute("alt")))
                    .filter((it) => !(it.tagName === "A" && it.querySelector("[alt]:not([alt=''])")))
                    .filter((it) => it.getAttribute("aria-hidden") !== "true" && it.tabIndex >= 0)
                    .map((it) => it.outerHTML)"""
            )
            assert nameless == [], path
            assert page.get_by_role("heading", level=1).count() == 1, path
            assert page.locator("html").get_attribute("lang") == "en"
            heads.add(page.title())
        assert len(heads) == len(PAGES)


def test_a_form_that_is_sent_twice_makes_one_entry(browser: Browser, site: Regions) -> None:
    """A second click while the first is under way: the browser gives up on the first answer, not on what it did."""
    with visitor(browser) as it:
        title = next(titles)
        page = it.go(f"{site.edges[0]}/add")
        page.get_by_label("Title").fill(title)
        page.get_by_role("button", name="Add it to the list").dblclick(no_wait_after=True)
        expect(page.get_by_role("status")).to_contain_text("is on the list")
        expect(entry(page, title)).to_have_count(1)


def test_the_primary_is_killed_and_nothing_is_lost_or_doubled(browser: Browser, site: Regions) -> None:
    with visitor(browser, complaints=False) as it:
        it.page.set_default_timeout(60_000)  # a form waits for the new primary, which on a busy machine takes its time
        edge, before = site.edges[0], next(titles)
        add(it.go(f"{edge}/add"), before)
        expect(entry(it.page, before)).to_be_visible()
        it.go(f"{edge}/add")
        with visitor(browser, complaints=False) as operator:
            page = operator.go(f"{site.edges[1]}/lab")
            page.get_by_role("button", name="Kill the primary's region").click()
            expect(page.get_by_role("button", name=re.compile("^Bring"))).to_be_visible()
            # Nobody is the primary: the form waits for the one to come.
            during = next(titles)
            add(it.page, during)
            while it.page.get_by_role("heading", name="Not now").count():
                # It was on its way when the region was killed, so nobody knows what became of it: the page says so.
                it.page.go_back()
                it.page.get_by_role("button", name="Add it to the list").click()
            expect(entry(it.page, during)).to_be_visible(timeout=30_000)
            roles = page.locator("[data-part=regions]")
            expect(roles.get_by_text("primary", exact=True)).to_have_count(1)
            after = next(titles)
            add(it.go(f"{site.edges[1]}/add"), after)
            expect(entry(it.page, after)).to_be_visible()
            expect(page.get_by_role("button", name=re.compile("^Bring"))).to_be_enabled(timeout=30_000)
            page.get_by_role("button", name=re.compile("^Bring")).click()
            expect(roles.get_by_text("replica, streaming")).to_have_count(2, timeout=30_000)
        for url in site.urls.values():  # the cookie is every region's: each waits until it has it all
            it.go(url)
            for title in (before, during, after):
                expect(entry(it.page, title)).to_have_count(1)


def test_no_page_complains_in_the_console(browser: Browser, site: Regions) -> None:
    with visitor(browser) as it:
        for path in PAGES:
            it.go(site.edges[0] + path)
        it.page.wait_for_timeout(300)  # what a stream would say

"""The example app, with a real primary beside its database, and the runner that starts it in three regions."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from support import warm
from support.leftovers import processes_in
from support.nodes import ENVIRONMENT, poll, primary
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse, encode_multipart

from examples.flask_app import store
from examples.flask_app.app import create_app
from examples.flask_app.bar import lag_words, role_words
from examples.flask_app.pictures import MOST_BYTES
from examples.flask_app.seeds import SEEDS, plant

ROOT = Path(__file__).parent.parent
WAIT_S = 20.0
SCRIPT = "<script>alert(1)</script>"
PICTURES = {
    "image/png": b"\x89PNG\r\n\x1a\n" + b"p" * 20,
    "image/jpeg": b"\xff\xd8\xff\xe0" + b"j" * 20,
    "image/gif": b"GIF89a" + b"g" * 20,
    "image/webp": b"RIFF" + struct.pack("<I", 24) + b"WEBP" + b"w" * 20,
}
ODD = [
    '"',
    "'",
    "NEAR(",
    "a AND",
    "OR",
    "NOT x",
    "*",
    "a*b",
    "-calvino",
    "title:x",
    "^calvino",
    "{a b}: c",
    "(",
    "_",
    "\0",
]
ODD += [
    "x" * 5000,
    "a " * 500,
    "😀",
    "'; DROP TABLE entry; --",
    "\ud800",
    "é" * 3,
    "col:col:col",
    '""',
    '"a" NEAR/2 "b"',
    "+",
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """On a database that a walcast process serves as the primary."""
    database = tmp_path_factory.mktemp("example") / "app.db"
    plant(database, "Here")
    with primary(database):
        config = {"WALCAST_DATABASE": str(database), "SECRET_KEY": "secret", "REGION": "Here", "STREAMS": 2}
        yield create_app(config | {"TRUSTED_HOSTS": ["localhost"]})


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def draft(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    """The fields of a fresh form."""
    key = re.search(r'name="key" value="([^"]+)"', client.get("/add").text)
    assert key is not None
    return {"key": key[1], "title": "A title", **fields}


def post(client: FlaskClient, **fields: Any) -> TestResponse:
    # Encoded here: werkzeug's client puts much of it into a file, which it leaves open.
    boundary, body = encode_multipart(draft(client, **fields))
    return client.post("/add", data=body, content_type=f"multipart/form-data; boundary={boundary}")


def added(response: TestResponse) -> int:
    """The id of the entry that it made."""
    assert response.status_code == 303, response.text
    return int(response.headers["Location"].partition("added=")[2])


# What is written


def test_what_people_write_is_text_and_not_html(client: FlaskClient) -> None:
    one = added(post(client, title=SCRIPT, author=SCRIPT, note=f"zzz {SCRIPT}", via=SCRIPT))
    for path in ("/", f"/entries/{one}", "/?q=zzz", f"/?q={SCRIPT}"):
        page = client.get(path).text
        assert SCRIPT not in page
        assert "&lt;script&gt;" in page
    wrong = client.post("/add", data={"key": SCRIPT, "title": "", "note": SCRIPT})
    assert wrong.status_code == 422
    assert SCRIPT not in wrong.text


def test_a_form_that_is_sent_twice_is_one_entry(client: FlaskClient) -> None:
    fields = draft(client, title="Twice", note="line\r\nline")
    first, second = client.post("/add", data=fields), client.post("/add", data=fields)
    assert added(first) == added(second)
    assert client.get("/?q=twice").text.count("<article") == 1


def test_a_form_that_is_sent_again_with_other_words_is_neither_lost_nor_an_entry_yet(client: FlaskClient) -> None:
    fields = draft(client, title="Before going back")
    one = added(client.post("/add", data=fields))
    answer = client.post("/add", data=fields | {"title": "After going back"})
    assert answer.status_code == 422
    assert "After going back" in answer.text
    assert fields["key"] not in answer.text  # it has a new number, so it can be sent now
    assert "Before going back" in client.get(f"/entries/{one}").text


@pytest.mark.parametrize(
    ("field", "value"),
    [("title", ""), ("title", "x" * 201), ("note", "x" * 2001), ("author", "a\x00b"), ("key", ""), ("key", "k" * 65)],
)
def test_what_cannot_be_kept_is_said_and_the_rest_stays_in_the_form(
    client: FlaskClient, field: str, value: str
) -> None:
    answer = post(client, **({"note": "still here"} | {field: value}))
    assert answer.status_code == 422
    assert ("still here" in answer.text) == (field != "note")


def test_an_entry_that_is_removed_is_gone_from_list_search_and_pictures(client: FlaskClient) -> None:
    data = PICTURES["image/gif"] + b"shared"
    one, two = (added(post(client, title="Perishable", picture=FileStorage(BytesIO(data), "a.gif"))) for _ in range(2))
    address = _picture(client, one)
    for gone, left in ((one, 200), (two, 404)):
        assert client.post(f"/entries/{gone}/remove").status_code == 303
        assert client.post(f"/entries/{gone}/remove").status_code == 303
        assert client.get(f"/entries/{gone}").status_code == 404
        assert client.get(address).status_code == left
    assert "Perishable" not in client.get("/?q=perishable").text.partition("<main")[2].partition("</h1>")[2]


@pytest.mark.parametrize("path", ["/entries/99999999999999999999", "/entries/0", "/nothing", "/pictures/x", "/lab"])
def test_what_is_not_there_is_a_page_that_says_so(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "To the reading list" in answer.text


@pytest.mark.parametrize("number", ["x", "-1", "1e3", "9" * 30, "9" * 5000, ""])
def test_a_number_that_is_none_is_left_out(client: FlaskClient, number: str) -> None:
    page = client.get(f"/?before={number}&added={number}")
    assert page.status_code == 200
    assert "<article" in page.text


# Search


@pytest.mark.parametrize("query", ODD)
def test_nothing_that_is_typed_is_an_error(client: FlaskClient, query: str) -> None:
    assert client.get("/", query_string={"q": query.encode("utf-8", "surrogatepass")}).status_code == 200


def test_a_search_finds_all_words_and_beginnings_whatever_their_accents(client: FlaskClient) -> None:
    def found(query: str) -> list[str]:
        page = client.get("/", query_string={"q": query}).text
        return re.findall(r'<h2><a href="/entries/\d+">([^<]+)</a>', page)

    assert found("calvino") == found("CALV") == found("invisible calvino") == ["Invisible Cities"]
    assert found("guimaraes rosa") == ["Grande Sertão: Veredas"]
    assert found("shōnagon") == found("shonagon") == ["The Pillow Book"]
    assert found("calvino sebald") == []
    assert found("title:calvino") == []  # words, not a query language
    assert "<mark>herrings</mark>" in client.get("/?q=herrings").text
    assert "None of the" in client.get("/?q=zzzzzz").text


def test_the_index_follows_what_is_removed(client: FlaskClient) -> None:
    one = added(post(client, title="Ephemera", note="quux"))
    assert "<article" in client.get("/?q=quux").text
    client.post(f"/entries/{one}/remove")
    assert "<article" not in client.get("/?q=quux").text
    with closing(sqlite3.connect(client.application.config["WALCAST_DATABASE"])) as db:
        db.execute("INSERT INTO entry_words (entry_words, rank) VALUES ('integrity-check', 1)")


def test_a_long_list_goes_on_where_the_page_ended(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAGE", 4)
    seen, path = [], "/"
    while path:
        page = client.get(path).text
        seen += re.findall(r'id="entry-(\d+)"', page)
        older = re.search(r'rel="next" href="([^"]+)"', page)
        path = older[1] if older else ""
    assert len(seen) == len(set(seen)) >= len(SEEDS)
    assert seen == sorted(seen, key=int, reverse=True)
    assert "Nothing is older" in client.get("/?before=1").text


# Pictures


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_served_as_what_its_first_bytes_say(client: FlaskClient, kind: str) -> None:
    one = added(post(client, picture=FileStorage(BytesIO(PICTURES[kind]), "liar.html", content_type="text/html")))
    answer = client.get(_picture(client, one))
    assert answer.data == PICTURES[kind]
    assert answer.mimetype == kind
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    again = client.get(_picture(client, one), headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize(
    "data",
    [b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", b"<html>", b"x", b"RIFF1234WAVE", b"GIF90a"],
)
def test_what_is_no_picture_is_refused_whatever_its_name(client: FlaskClient, data: bytes) -> None:
    answer = post(client, title="kept", picture=FileStorage(BytesIO(data), "cover.png", content_type="image/png"))
    assert answer.status_code == 422
    assert "no PNG, JPEG, WebP or GIF" in answer.text
    assert 'value="kept"' in answer.text


def test_a_picture_has_a_largest_size(client: FlaskClient) -> None:
    head = PICTURES["image/png"]
    most = head + bytes(MOST_BYTES - len(head))
    assert added(post(client, picture=FileStorage(BytesIO(most), "a.png")))
    assert post(client, picture=FileStorage(BytesIO(most + b"x"), "a.png")).status_code == 422
    much = post(client, picture=FileStorage(BytesIO(most + bytes(1 << 20)), "a.png"))
    assert much.status_code == 413
    assert "larger than 2 MiB" in much.text


def _picture(client: FlaskClient, entry_id: int) -> str:
    found = re.search(r'src="(/pictures/[0-9a-f]+)"', client.get(f"/entries/{entry_id}").text)
    assert found is not None
    return found[1]


# Other sites, and what a browser is told


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
    ],
)
def test_a_form_of_another_site_writes_nothing(client: FlaskClient, headers: dict[str, str]) -> None:
    fields = draft(client, title="Forged")
    assert client.post("/add", data=fields, headers=headers).status_code == 403
    assert client.post("/entries/1/remove", headers=headers).status_code == 403
    assert client.get("/entries/1").status_code == 200
    assert "<article" not in client.get("/?q=forged").text


def test_another_name_for_this_site_is_not_answered(client: FlaskClient) -> None:
    """As after a name of somebody else's was made to lead here: origin and host are the same then."""
    headers = {"Host": "elsewhere.example", "Origin": "http://elsewhere.example"}
    assert client.get("/", headers=headers).status_code == 400
    assert client.post("/entries/1/remove", headers=headers).status_code == 400
    assert client.get("/entries/1").status_code == 200


def test_a_form_of_this_site_writes(client: FlaskClient) -> None:
    for headers in ({"Origin": "http://localhost"}, {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}):
        assert added(client.post("/add", data=draft(client), headers=headers))


def test_pages_need_nothing_that_their_policy_forbids_and_all_that_they_name_is_there(client: FlaskClient) -> None:
    one = added(post(client, title="Looked at"))
    for path in ("/", "/?q=time", "/add", f"/entries/{one}", "/nothing"):
        answer = client.get(path)
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        page = Page(answer.text)
        assert page.inline == []
        assert page.unlabelled == []
        assert len(page.ids) == len(set(page.ids))
        for address in page.addresses | {"/favicon.ico"}:
            with client.get(address) as part:
                assert part.status_code == 200, address


class Page(HTMLParser):
    """What matters of it: `inline`, what a strict policy forbids; `unlabelled` fields; addresses of its own parts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.ids: list[str] = []
        self.addresses: set[str] = set()
        self._labels: set[str | None] = set()
        self._fields: list[str | None] = []
        self.feed(text)

    @property
    def unlabelled(self) -> list[str | None]:
        return [field for field in self._fields if field not in self._labels]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.inline += [name for name in found if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in found):
            self.inline.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag == "label":
            self._labels.add(found["for"])
        if tag in ("input", "textarea", "select") and found.get("type") != "hidden":
            self._fields.append(found.get("id"))
        if tag in ("img", "script"):
            self.addresses.add(found["src"] or "")
        if tag == "link" or (tag == "a" and (found["href"] or "").startswith("/")):
            self.addresses.add(found["href"] or "")


# The bar


def test_the_bar_says_where_the_page_is_from_and_goes_on_saying_it(client: FlaskClient) -> None:
    bar = r"<dd>Here</dd>.*</span>primary</dd>.*<dd>1-[0-9a-f]+</dd>.*<dd>none</dd>"
    assert re.search(bar, client.get("/").text, re.DOTALL)
    with client.get("/live") as answer:
        assert answer.mimetype == "text/event-stream"
        events = answer.iter_encoded()
        assert next(events) == b"retry: 2000\n\n"
        event = next(events).decode()
        assert event.startswith("event: bar\ndata: ")
        assert event.endswith("\n\n")
        assert event.count("\n") == 3
        assert re.search(bar, event)


def test_streams_leave_threads_for_pages(client: FlaskClient) -> None:
    streams = [client.get("/live") for _ in range(4)]  # the app is told that two are enough
    events = [stream.iter_encoded() for stream in streams]
    streams[1].close()  # before it has begun
    assert [next(event) for event in events] == [b"retry: 2000\n\n"] * 4
    assert list(events[0]) == []  # the oldest, of three
    assert next(events[2]).startswith(b"event: bar")
    assert next(events[3]).startswith(b"event: bar")
    for stream in (streams[0], *streams[2:]):
        stream.close()


def test_the_bar_has_words_for_every_state() -> None:
    assert role_words("catching-up") == "replica, catching-up"
    assert [lag_words(ms, "streaming") for ms in (0.84, 43.2, 1234.5, 61_000, None, float("inf"))] == [
        "0.8 ms",
        "43 ms",
        "1,234 ms",
        "61 s",
        "unknown",
        "unknown",
    ]
    assert lag_words(3.0, "primary") == "none"


# The runner


class Visitor:
    """A browser, as far as forms and cookies go; in all regions, which share a host."""

    def __init__(self) -> None:
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

    def get(self, url: str) -> str:
        with self._opener.open(url, timeout=WAIT_S) as answer:
            return str(answer.read().decode())

    def post(self, url: str, **fields: str) -> str:
        """The page that the answer leads to."""
        request = urllib.request.Request(
            url, urllib.parse.urlencode(fields).encode(), {"Origin": url[: url.index("/", 8)]}
        )
        with self._opener.open(request, timeout=WAIT_S) as answer:
            return str(answer.read().decode())

    def add(self, region: str, title: str, key: str) -> str:
        """An entry, by the form of a region."""
        return self.post(f"{region}/add", title=title, key=key, via="test")


class Site:
    """The runner, on a lease as short as can be."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "examples.flask_app", "--json", "--workers", "1", "--lease-time", "1"]
        self.process = warm.WarmPopen(
            [*command, "--folder", str(folder)],
            cwd=ROOT,
            env=ENVIRONMENT | {"PRELOADED": warm.SITE},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.facts: dict[str, Any] = {}

    def ready(self) -> list[str]:
        """The addresses of the regions, once they are up."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.end()
        self.facts = json.loads(line)
        return list(self.facts["regions"].values())

    def state(self) -> dict[str, Any]:
        """As the page behind the page is told."""
        request = urllib.request.Request(f"{self.facts['control']}/state", headers={"X-Lab-Key": self.facts["key"]})
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def until(self, what: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The state in which that is so."""
        assert poll(lambda: what(self.state()), WAIT_S, 0.05), self.state()
        return self.state()

    def end(self) -> str:
        """Ctrl-C; what it said on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=WAIT_S)
        return said


def test_three_regions_from_their_start_to_their_end(tmp_path: Path) -> None:
    site = Site(tmp_path)
    try:
        visitor = Visitor()
        centre, tokyo, other = site.ready()
        write_at_an_edge_and_read_there(visitor, tokyo)
        measure_distances(site, visitor, tokyo)
        forget_and_miss_an_entry(site, visitor, tokyo)
        lose_the_primary_and_go_on(site, visitor, centre, [tokyo, other])
        assert stranger(site) == 403
    finally:
        said = site.end()
    assert (site.process.returncode, said) == (0, "")
    for log in tmp_path.glob("*/app.log"):
        assert "Traceback" not in log.read_text(), log.read_text()
    assert processes_in(tmp_path) == []


def write_at_an_edge_and_read_there(visitor: Visitor, edge: str) -> None:
    page = visitor.add(edge, "Sent at an edge", "one")
    assert "Sent at an edge" in page
    assert "is on the list" in page
    assert "sent in test, written in Frankfurt" in page
    assert "This page was made in Tokyo" in page


def measure_distances(site: Site, visitor: Visitor, edge: str) -> None:
    visitor.post(f"{edge}/lab/distances", **{"tokyo-distance": "150", "sao-paulo-distance": "0"})
    visitor.post(f"{edge}/lab/line", text="<b>a line</b>")
    line = site.until(lambda state: not state["line"]["waiting"])["line"]
    assert line["arrived_ms"]["Frankfurt"] == 0
    assert line["arrived_ms"]["São Paulo"] < line["arrived_ms"]["Tokyo"]
    assert line["arrived_ms"]["Tokyo"] >= 150
    page = visitor.get(f"{edge}/lab")
    assert "&lt;b&gt;a line&lt;/b&gt;" in page
    assert Page(page).inline == Page(page).unlabelled == []
    with pytest.raises(urllib.error.HTTPError, match="409"):
        visitor.post(f"{edge}/lab/distances", **{"tokyo-distance": "-1"})


def forget_and_miss_an_entry(site: Site, visitor: Visitor, edge: str) -> None:
    """What the token is for: the same, with it and without it."""
    visitor.post(f"{edge}/lab/distances", **{"tokyo-distance": "20", "tokyo-hold": "700"})
    assert "Your entry № 9 is on the list" in visitor.add(edge, "Remembered", "two")
    visitor.post(f"{edge}/lab/reading", mine="off")
    page = visitor.add(edge, "Forgotten", "three")
    assert "Your entry № 10 is not here" in page
    assert "Forgotten" not in page
    visitor.post(f"{edge}/lab/reading", mine="on")
    assert "Forgotten" in visitor.get(f"{edge}/")
    visitor.post(f"{edge}/lab/distances", **{"tokyo-hold": "0"})


def lose_the_primary_and_go_on(site: Site, visitor: Visitor, centre: str, edges: list[str]) -> None:
    site.until(lambda state: state["drill"]["can_kill"])
    page = visitor.post(f"{centre}/lab/kill")  # which is answered by a region that lives on
    assert "This page was made in Tokyo" in page
    site.until(lambda state: state["primary"] is None)
    assert "Remembered" in visitor.get(f"{edges[0]}/")
    for edge in (*edges, edges[0]):  # as by somebody who has seen an error, or reloads
        assert "After the kill" in insist(lambda edge=edge: visitor.add(edge, "After the kill", "four"))
    state = site.until(lambda state: state["primary"] and state["drill"]["can_return"])
    assert state["primary"] in ("Tokyo", "São Paulo")
    assert any(f"{state['primary']} is the primary, in term 2" in event["text"] for event in state["drill"]["events"])
    visitor.post(f"{edges[0]}/lab/back")
    state = site.until(lambda state: state["drill"]["can_kill"])
    site.until(lambda state: f"Frankfurt follows {state['primary']}" in [e["text"] for e in state["drill"]["events"]])
    assert visitor.get(f"{centre}/").count("After the kill") == 1


def insist(send: Callable[[], str]) -> str:
    """Send a form again when nobody can tell whether it arrived: it was on its way to the region that was killed."""
    try:
        return send()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 502:
            raise
        return send()


def stranger(site: Site) -> int:
    """What somebody without the key is told."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{site.facts['control']}/state", timeout=WAIT_S)
    refused.value.close()
    return refused.value.code


def test_a_failed_start_says_why_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "frankfurt").mkdir()
    (tmp_path / "frankfurt" / "app.db").write_bytes(b"not a database" * 100)
    command = [sys.executable, "-m", "examples.flask_app", "--folder", str(tmp_path), "--workers", "1"]
    environment = ENVIRONMENT | {"PRELOADED": warm.SITE}
    done = warm.run(command, cwd=ROOT, env=environment, timeout=WAIT_S)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: walcast in Frankfurt ended: [^\n]*not a SQLite database[^\n]*\n", done.stderr), (
        done.stderr
    )

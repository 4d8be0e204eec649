"""The example app, with a real primary beside its database, and the runner that starts it in three regions."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from support.nodes import primary
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse, encode_multipart

from examples.flask_app import store
from examples.flask_app.app import create_app
from examples.flask_app.bar import lag_words, role_words
from examples.flask_app.pictures import MOST_BYTES
from examples.flask_app.seeds import SEEDS, plant

ROOT = Path(__file__).parent.parent
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
        yield create_app({"WALCAST_DATABASE": str(database), "SECRET_KEY": "secret", "REGION": "Here", "STREAMS": 2})


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
    one = added(post(client, title="Ephemera quux"))
    assert "<article" in client.get("/?q=quux").text
    client.post(f"/entries/{one}/remove")
    assert "<article" not in client.get("/?q=quux").text


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
    streams = [client.get("/live") for _ in range(3)]  # the app is told that two are enough
    assert [stream.status_code for stream in streams] == [200, 200, 503]
    streams[0].close()  # before it has begun
    again = client.get("/live")
    assert again.status_code == 200
    for stream in (*streams[1:], again):
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

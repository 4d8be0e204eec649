"""The ASGI middleware as a server and an app see it: messages in, messages out. The primary's socket is a fake; the
servers are in the other tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from support.web_place import Place, place
from support.web_primary import FakePrimary
from support.web_scripted import Scripted, scripted

from walcast.errors import Unavailable
from walcast.statusfile import State
from walcast.web import ASGIMiddleware
from walcast.web.answers import MAYBE, NO_WAY
from walcast.web.asgi import SCOPE_KEY
from walcast.web.options import Options
from walcast.web.proof import Origin, forwarded_text
from walcast.web.routing import Forward
from walcast.web.spool import EMPTY_SHA256

SECRET = "of all hosts"
COOKIE = "walcast=2-64; Path=/; Max-Age=60; HttpOnly; SameSite=Lax"
GONE = {"type": "http.disconnect"}


@dataclass
class Got:
    """What a server was given. `log`: what happened, in its order."""

    log: list[str] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    scope: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> int:
        status: int = next(m["status"] for m in self.sent if m["type"] == "http.response.start")
        return status

    @property
    def body(self) -> bytes:
        assert not self.sent[-1].get("more_body", False)
        return b"".join(m["body"] for m in self.sent if m["type"] == "http.response.body" and "body" in m)

    def all(self, name: str) -> list[str]:
        (start,) = [m for m in self.sent if m["type"] == "http.response.start"]
        return [value.decode("latin-1") for other, value in start["headers"] if other.decode().lower() == name]


App = Callable[[Got, Any, Any, Any], Awaitable[None]]


async def plain(got: Got, scope: Any, receive: Any, send: Any) -> None:
    got.log.append("app")
    got.scope = scope
    await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"a", "more_body": True})
    await send({"type": "http.response.body", "body": b"b"})


async def reading(got: Got, scope: Any, receive: Any, send: Any) -> None:
    """All of the body first."""
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": body})


def counting(app: App) -> App:
    """A read that turns out to write."""

    async def made(got: Got, scope: Any, receive: Any, send: Any) -> None:
        request = scope[SCOPE_KEY]
        request.writes, request.forward = request.primary, not request.primary
        await app(got, scope, receive, send)

    return made


Call = Callable[..., Got]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path / "here") as made:
        yield made


@pytest.fixture(scope="module")
def home() -> Iterator[Scripted]:
    with scripted() as made:
        yield made


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePrimary:
    made = FakePrimary()
    monkeypatch.setattr("walcast.web.core.Primary", lambda path: made)
    return made


@pytest.fixture
def call(here: Place, home: Scripted, fake: FakePrimary) -> Call:
    """One request, as a server with an event loop of its own sends it."""
    home.reset()

    def made(
        app: App = plain,
        method: str = "GET",
        path: str = "/",
        parts: tuple[bytes, ...] = (b"",),
        headers: dict[str, str] | None = None,
        scope: dict[str, Any] | None = None,
        messages: list[dict[str, Any]] | None = None,
        **options: Any,
    ) -> Got:
        got = fake.got = Got()
        told = {"primary_url": home.url} | options
        middleware = ASGIMiddleware(lambda *args: app(got, *args), here.database, **told)
        size = {"content-length": str(sum(map(len, parts)))} if method != "GET" and scope is None else {}
        given = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "query_string": b"",
            "client": ("10.0.0.9", 1234),
            "headers": [
                (name.encode(), value.encode("latin-1"))
                for name, value in ({"host": "edge"} | size | (headers or {})).items()
            ],
        } | (scope or {})
        if messages is None:
            messages = [
                {"type": "http.request", "body": part, "more_body": n < len(parts) - 1} for n, part in enumerate(parts)
            ]
        coming = iter(messages)

        async def receive() -> Any:
            for message in coming:
                return message
            await asyncio.Event().wait()  # the client stays

        async def send(message: Any) -> None:
            got.log.append(message["type"].removeprefix("http."))
            got.sent.append(message)

        async def run() -> None:
            try:
                await asyncio.wait_for(middleware(given, receive, send), 20)
            finally:
                await middleware._sender.close()

        asyncio.run(run())
        return got

    return made


@pytest.fixture
def primary_here(here: Place) -> Place:
    here.show(State.PRIMARY)
    return here


# Tokens


def test_the_answer_to_a_write_carries_a_token_of_after_it(call: Call, primary_here: Place) -> None:
    got = call(method="POST")
    assert (got.status, got.body) == (200, b"ab")
    assert got.all("set-cookie") == [COOKIE]
    assert got.all("walcast-token") == ["2-64"]
    assert got.log == ["app", "barrier 0", "response.start", "response.body", "response.body"]


def test_the_answer_to_a_read_carries_none(call: Call, primary_here: Place) -> None:
    got = call()
    assert got.sent[0]["headers"] == [(b"Content-Type", b"text/plain")]
    assert "barrier 0" not in got.log


def test_a_read_that_turns_out_to_write_carries_one(call: Call, primary_here: Place) -> None:
    assert call(counting(plain)).all("set-cookie") == [COOKIE]


def test_over_https_the_cookie_is_for_https_alone(call: Call, primary_here: Place) -> None:
    assert call(method="POST", scope={"scheme": "https"}).all("set-cookie") == [COOKIE + "; Secure"]


def test_what_was_done_is_done_without_a_token(call: Call, primary_here: Place, fake: FakePrimary) -> None:
    fake.error = Unavailable("not now")
    got = call(method="POST", followers=1, barrier_s=0)
    assert (got.status, got.all("set-cookie"), got.all("walcast-unconfirmed")) == (200, [], ["0/1"])


@pytest.mark.parametrize("state", [State.STREAMING, State.FENCED, State.STOPPED])
def test_what_was_done_where_the_primary_is_no_more_is_in_doubt(
    call: Call, here: Place, fake: FakePrimary, state: State
) -> None:
    async def losing(got: Got, scope: Any, receive: Any, send: Any) -> None:
        here.show(state)
        await plain(got, scope, receive, send)

    here.show(State.PRIMARY)
    fake.error = Unavailable("not now")
    got = call(losing, "POST", barrier_s=0)
    assert (got.status, got.body.decode().strip()) == (502, MAYBE)
    assert got.all("set-cookie") == []


def test_readers_may_carry_tokens_wherever_they_read(call: Call, here: Place) -> None:
    got = call(monotonic_reads=True)
    assert got.all("set-cookie") == [COOKIE.replace("walcast", "walcast-seen")]
    assert got.all("cache-control") == ["private"]


def test_a_private_path_carries_none(call: Call, primary_here: Place) -> None:
    got = call(method="POST", private=["/"])
    assert got.sent[0]["headers"] == [(b"Content-Type", b"text/plain")]
    assert SCOPE_KEY not in got.scope


def test_an_apps_error_is_the_servers(call: Call, primary_here: Place) -> None:
    async def failing(got: Got, scope: Any, receive: Any, send: Any) -> None:
        raise LookupError

    for method in ("GET", "POST"):
        with pytest.raises(LookupError):
            call(failing, method)


# Sent on


@pytest.mark.parametrize("app", [plain, reading])
@pytest.mark.parametrize("monotonic", [False, True])
def test_a_read_that_turns_out_to_write_is_sent_to_the_primary(
    call: Call, here: Place, home: Scripted, app: App, monotonic: bool
) -> None:
    """Also by an app that has received the end of a body that it does not have."""
    got = call(counting(app), path="/ok/visit", monotonic_reads=monotonic)
    assert got.status == 200
    assert b'"target": "/ok/visit"' in got.body
    assert got.log.count("response.start") == 1
    assert home.one.method == "GET"


@pytest.mark.parametrize("version", ["1.1", "2", "3"])
@pytest.mark.parametrize("parts", [(b"hello",), (b"hel", b"", b"lo"), (b"",), (b"", b"")])
def test_a_body_arrives_whole(call: Call, here: Place, home: Scripted, version: str, parts: tuple[bytes, ...]) -> None:
    """From HTTP/2 on it may come without a word of its length."""
    headers = {"transfer-encoding": "chunked"} if version == "1.1" else {}
    got = call(plain, "POST", "/ok", parts, headers, {"http_version": version})
    assert got.status == 200
    assert home.one.whole
    assert home.one.size == len(b"".join(parts))


@pytest.mark.parametrize("parts", [(b"hello!",), (b"hel",), (b"hel", b"lo!")])
def test_a_body_of_another_length_than_was_said_is_refused(
    call: Call, here: Place, home: Scripted, parts: tuple[bytes, ...]
) -> None:
    """A server that lets one pass."""
    got = call(plain, "POST", "/ok", parts, {"content-length": "5"}, {"http_version": "2"})
    assert got.status == 400
    assert home.seen == []


def test_two_hosts_are_one_too_many(call: Call, here: Place, home: Scripted) -> None:
    headers = [(b"host", b"edge"), (b"host", b"admin"), (b"content-length", b"0")]
    assert call(plain, "POST", "/ok", scope={"headers": headers}).status == 400
    assert home.seen == []


@pytest.mark.parametrize("second", ["chunked", "gzip"])
def test_a_coding_that_comes_twice_is_not_clear(call: Call, here: Place, home: Scripted, second: str) -> None:
    headers = [(b"host", b"edge"), (b"transfer-encoding", b"chunked"), (b"transfer-encoding", second.encode())]
    assert call(plain, "POST", "/ok", scope={"headers": headers}).status == 400
    assert home.seen == []


def test_a_client_that_goes_gets_no_answer(call: Call, here: Place, home: Scripted) -> None:
    got = call(plain, "POST", "/ok", messages=[GONE], headers={"content-length": "5"})
    assert got.sent == []
    assert home.seen == []


def test_a_host_that_becomes_the_primary_gives_its_app_the_whole_body(call: Call, here: Place, home: Scripted) -> None:
    """Of which it has sent something on already."""
    home.not_primary = 1
    shown = home.seen

    class Promoted(list[Any]):
        def append(self, seen: Any) -> None:
            here.show(State.PRIMARY)
            super().append(seen)

    home.seen = Promoted()
    try:
        got = call(reading, "POST", "/moving", (b"hel", b"lo"))
    finally:
        home.seen = shown
    assert got.body == b"hello"
    assert got.all("set-cookie") == [COOKIE]


# A primary whose place moves away under a request


def locked(moves: Callable[[], object]) -> App:
    """Finds its database locked, as the primary's place moves."""

    async def made(got: Got, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        got.log.append("read")
        moves()
        scope[SCOPE_KEY].forward = True
        await plain(got, scope, receive, send)

    return made


@pytest.mark.parametrize("parts", [(b"",), (b"hel", b"lo")])
def test_a_write_follows_the_primary_that_moves(
    call: Call, here: Place, home: Scripted, parts: tuple[bytes, ...]
) -> None:
    here.show(State.PRIMARY)
    got = call(locked(here.show), "POST", "/ok", parts)
    assert got.status == 200
    assert (home.one.size, home.one.whole) == (len(b"".join(parts)), True)
    assert got.log.count("response.start") == 1


def test_an_edge_is_told_to_follow_it(call: Call, here: Place, home: Scripted) -> None:
    here.show(State.PRIMARY)
    got = call(locked(here.show), "POST", "/ok", headers={"walcast-forwarded": "t=1"})
    assert (got.status, got.all("walcast-not-primary")) == (503, ["1"])
    assert home.seen == []


def test_a_long_body_does_not_follow(call: Call, here: Place, home: Scripted) -> None:
    here.show(State.PRIMARY)
    got = call(locked(here.show), "POST", "/ok", (bytes(60_000), bytes(10_000)))
    assert (got.status, got.all("retry-after")) == (503, ["1"])
    assert home.seen == []


def test_a_database_that_stays_locked_is_not_tried_for_ever(call: Call, primary_here: Place, home: Scripted) -> None:
    got = call(locked(lambda: None), "POST", "/ok", (b"hello",))
    assert got.status == 503
    assert got.log.count("read") == 2
    assert home.seen == []


# Where a request never goes


def test_a_name_that_leads_to_a_metadata_service_is_not_asked(
    call: Call, here: Place, home: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walcast.appurl._NEVER", (ip_network("127.0.0.0/8"),))
    here.show(app_url=home.url)
    monkeypatch.setattr("walcast.web.routing._where_told", lambda status, options: Forward(home.url))
    got = call(plain, "POST", "/ok", (b"hello",), primary_url=None, primary_wait_s=0.2)
    assert (got.status, home.seen) == (503, [])
    assert home.connections


def test_a_visitor_is_told_that_it_is_not_known_where_the_primarys_app_is(call: Call, here: Place) -> None:
    here.show(app_url="http://10.0.0.1:8000")
    got = call(plain, "POST", primary_url=None, primary_wait_s=0.1)
    assert (got.status, got.body.strip()) == (503, NO_WAY.encode())


# What the app sees


def test_a_forwarded_request_looks_as_it_did_at_the_edge(call: Call, primary_here: Place) -> None:
    origin = Origin("2001:db8::7", "shop.example", "https")
    proof = forwarded_text(origin, "", "POST", "/x%20y", EMPTY_SHA256, time.time(), Options.of(secret=SECRET).secrets)
    headers = {"walcast-forwarded": proof, "x-forwarded-for": "10.0.0.9", "x-forwarded-host": "x", "host": "home"}
    got = call(method="POST", path="/x y", headers=headers, secret=SECRET)
    assert (got.scope["client"], got.scope["scheme"]) == (("2001:db8::7", 0), "https")
    assert got.scope["headers"] == [(b"host", b"shop.example"), (b"content-length", b"0")]
    assert got.all("set-cookie")[0].endswith("; Secure")


@pytest.mark.parametrize("root", ["/mounted", "/mounted/"])
def test_what_is_mounted_is_private_by_its_own_path(call: Call, here: Place, home: Scripted, root: str) -> None:
    scope = {"root_path": root, "headers": [(b"content-length", b"0")]}
    assert call(method="POST", path="/mounted/admin", scope=scope, private=["/admin"]).body == b"ab"
    assert call(method="POST", path="/mounted/x", scope=scope, private=["/mounted"]).status == 200
    assert home.one.target == "/mounted/x"
    assert call(method="POST", path="/mountedx/admin", scope=scope, private=["/mountedx"]).body == b"ab"


# Other protocols


def websocket(call: Call, **scope: Any) -> Got:
    return call(plain, scope={"type": "websocket"} | scope, messages=[{"type": "websocket.connect"}])


def test_a_websocket_is_refused_with_an_answer_where_the_server_can(call: Call, here: Place) -> None:
    got = websocket(call, extensions={"websocket.http.response": {}})
    assert [m["type"] for m in got.sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert got.sent[0]["status"] == 501
    assert b"primary's host" in got.sent[1]["body"]


def test_and_closed_with_a_word_where_it_cannot(call: Call, here: Place) -> None:
    (message,) = websocket(call).sent
    assert (message["type"], message["code"]) == ("websocket.close", 1013)
    assert 0 < len(message["reason"].encode()) <= 123


def test_at_the_primary_it_is_the_apps(call: Call, primary_here: Place) -> None:
    assert websocket(call).log[0] == "app"


def test_the_lifespan_is_the_apps(call: Call, here: Place) -> None:
    got = call(plain, scope={"type": "lifespan"})
    assert got.log[0] == "app"

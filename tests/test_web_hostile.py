"""Clients that lie: requests that could be read in two ways, headers that only an edge may send, paths that only look
public, other protocols. Bytes are written by hand, at real servers."""

from __future__ import annotations

import base64
import hashlib
import itertools
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from support.web_place import Place, place
from support.web_scripted import Scripted, scripted
from support.web_servers import Answer, Server, answer_of, listening, served, split

from walcast.statusfile import State
from walcast.web.options import Options
from walcast.web.proof import Origin, forwarded_text

SECRET = "of all hosts"
HOME = "127.0.0.1"  # the name under which an edge asks for it
SHORT = {"primary_wait_s": 0.4, "connect_s": 5, "answer_s": 20}
BODY = hashlib.sha256(b"z").hexdigest()
NO_NODE = {"barrier_s": 0}  # there is nobody to be asked for a token


@dataclass
class Places:
    primary: Scripted
    edge: Place
    home: Place


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    folder = tmp_path_factory.mktemp("web")
    with ExitStack() as stack:
        enter = stack.enter_context
        made = Places(enter(scripted()), enter(place(folder / "edge")), enter(place(folder / "home")))
        made.home.show(State.PRIMARY)
        yield made


@pytest.fixture(scope="module", params=["gthread", "uvicorn"])
def server(
    request: pytest.FixtureRequest, places: Places, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Its sites: `edge` sends on to a script; `through` to the primary's app, which is on the same server, for once;
    `open`, too, without a secret, `alien` with another one, `careless` without private paths."""
    port = listening()
    there = SHORT | {"primary_url": f"http://127.0.0.1:{port.getsockname()[1]}"}
    aside = there["primary_url"].replace(HOME, "localhost")
    signed, private, trust = {"secret": SECRET}, {"private": ["/admin"]}, {"trust_forwarded": True}
    edge, home = str(places.edge.database), str(places.home.database)
    sites: dict[str, dict[str, Any]] = {
        "edge": {"database": edge, "options": SHORT | signed | {"primary_url": places.primary.url}},
        "through": {"database": edge, "options": there | signed | private},
        "open": {"database": edge, "options": there | private},
        "alien": {"database": edge, "options": there | {"secret": "of somebody else"}},
        "careless": {"database": edge, "options": there | signed},
        "trusting": {"database": edge, "options": there | signed | trust | {"primary_url": aside}},
        "localhost": {"database": home, "options": NO_NODE | signed | trust},
        HOME: {"database": home, "options": NO_NODE | signed | private},
    }
    with served(request.param, sites, tmp_path_factory.mktemp(request.param), port) as made:
        yield made


@pytest.fixture(autouse=True)
def primary(places: Places) -> Iterator[Scripted]:
    places.primary.reset()
    yield places.primary
    assert not places.primary.errors


# Requests that could be read in two ways

INSIDE = b"POST /smuggled HTTP/1.1\r\nHost: edge\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
NUMBERS = itertools.count()

TWO_WAYS: dict[str, tuple[list[bytes], bytes]] = {
    "a length and chunks": ([b"Content-Length: 6", CHUNKED], b"0\r\n\r\n" + INSIDE),
    "chunks and a length": ([CHUNKED, b"Content-Length: 4"], b"%x\r\n" % len(INSIDE) + INSIDE + b"\r\n0\r\n\r\n"),
    "two lengths": ([b"Content-Length: 0", b"Content-Length: %d" % len(INSIDE)], INSIDE),
    "two lengths in one": ([b"Content-Length: 0, %d" % len(INSIDE)], INSIDE),
    "a length with a sign": ([b"Content-Length: +0"], INSIDE),
    "a negative length": ([b"Content-Length: -1"], INSIDE),
    "a length in hex": ([b"Content-Length: 0x0"], INSIDE),
    "a length with an underscore": ([b"Content-Length: 0_0"], INSIDE),
    "a length that is text": ([b"Content-Length: none"], INSIDE),
    "a length with a space before its colon": ([b"Content-Length : 5"], INSIDE),
    "an unknown coding": ([b"Transfer-Encoding: xchunked"], b"0\r\n\r\n" + INSIDE),
    "chunked and identity": ([b"Transfer-Encoding: chunked, identity"], b"0\r\n\r\n" + INSIDE),
    "identity and chunked": ([b"Transfer-Encoding: identity, chunked"], b"0\r\n\r\n" + INSIDE),
    "chunked twice": ([CHUNKED, CHUNKED], b"0\r\n\r\n" + INSIDE),
    "chunked with a vertical tab": ([b"Transfer-Encoding: \x0bchunked"], b"0\r\n\r\n" + INSIDE),
    "chunked with a space before its colon": ([b"Transfer-Encoding : chunked"], b"0\r\n\r\n" + INSIDE),
    "chunked on a line of its own": ([b"Transfer-Encoding:\r\n chunked"], b"0\r\n\r\n" + INSIDE),
    "a chunk with a sign": ([CHUNKED], b"+0\r\n\r\n" + INSIDE),
    "a chunk in hex": ([CHUNKED], b"0x0\r\n\r\n" + INSIDE),
    "a chunk that is too long": ([CHUNKED], b"f" * 40 + b"\r\n" + INSIDE),
    "a chunk of no size": ([CHUNKED], b"\r\n\r\n" + INSIDE),
    "a chunk that does not end": ([CHUNKED], b"1\r\nxyz\r\n0\r\n\r\n" + INSIDE),
    "a NUL": ([b"Content-Length: 0", b"X-A: b\0c"], INSIDE),
    "a bare CR": ([b"Content-Length: 0", b"X-A: b\rContent-Length: 60"], INSIDE),
    "a name with a space": ([b"Content-Length: 0", b"X A: b"], INSIDE),
    "a line without a colon": ([b"Content-Length: 0", b"nonsense"], INSIDE),
    "an empty name": ([b"Content-Length: 0", b": b"], INSIDE),
}


@pytest.mark.parametrize(("headers", "body"), TWO_WAYS.values(), ids=TWO_WAYS.keys())
def test_what_could_be_read_in_two_ways_is_not_sent_on(
    server: Server, primary: Scripted, headers: list[bytes], body: bytes
) -> None:
    """Or as what this server read; nothing of the body of a request is a request at the primary."""
    mine = f"/ok/{next(NUMBERS)}"
    head = b"\r\n".join([b"POST %b HTTP/1.1" % mine.encode(), b"Host: edge", b"Connection: close", *headers, b"", b""])
    answers = split(server.raw(head + body))
    assert [answer.status for answer in answers] in ([], [200], [400], [501])
    # One that was given up in the midst of its body may still come, of the test before.
    assert {seen.target for seen in primary.seen if seen.whole} <= {mine}
    assert all(seen.whole for seen in primary.seen if seen.target == mine) or answers[0].status == 400


@pytest.mark.parametrize(
    "lines",
    [[b"X-A: b\r\n Walcast-Forwarded: c"], [b"X-A: b\n Walcast-Forwarded: c"], [b"X-A: b\nWalcast-Forwarded: c"]],
)
def test_a_folded_line_brings_no_header_in(server: Server, primary: Scripted, lines: list[bytes]) -> None:
    head = b"\r\n".join([b"POST /ok HTTP/1.1", b"Host: edge", b"Content-Length: 0", *lines, b"", b""])
    server.raw(head)
    for seen in primary.seen:
        assert seen["walcast-forwarded"].startswith("t=")
        assert seen.raw.count(b"alcast-") == 1 or b"walcast-forwarded: c" not in seen.raw.lower().split(b"x-a:")[0]


def test_what_comes_after_the_chunks_is_no_header(server: Server, primary: Scripted) -> None:
    trailers = b"X-Forwarded-For: 198.51.100.7\r\nCookie: a=b\r\nX-Trailer: c\r\n"
    server.raw(
        b"POST /ok HTTP/1.1\r\nHost: edge\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + trailers + b"\r\n"
    )
    for seen in primary.seen:
        assert (seen.size, seen["x-forwarded-for"], seen["cookie"], seen["x-trailer"]) == (1, HOME, "", "")


def test_requests_in_a_row_stay_apart(server: Server, primary: Scripted) -> None:
    one = b"POST /ok/%d HTTP/1.1\r\nHost: edge\r\nContent-Length: 5\r\n\r\nGET /"
    answers = split(server.raw(b"".join(one % number for number in range(3)), answers=3))
    assert [answer.facts["target"] for answer in answers] == ["/ok/0", "/ok/1", "/ok/2"]
    assert [(seen.target, seen.size) for seen in primary.seen] == [(f"/ok/{number}", 5) for number in range(3)]


LINES = [
    b"CONNECT home.example:443 HTTP/1.1", b"CONNECT /x HTTP/1.1", b"POST x HTTP/1.1", b"POST * HTTP/1.1",
    b"POST /x\0 HTTP/1.1", b"POST /a b HTTP/1.1", b"PO(ST /x HTTP/1.1", b"POST /x HTTP/1.1 HTTP/1.1",
    b"POST /x/../y HTTP/1.1", b"POST /x/%2e%2e/y HTTP/1.1", b"POST /x/%2E/y HTTP/1.1", b"POST /x%5c..%5cy HTTP/1.1",
    b"POST /x%00y HTTP/1.1", b"POST /x/..;/y HTTP/1.1", b"POST \\x HTTP/1.1", b"POST /\\y HTTP/1.1",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_request_line_that_is_none_is_not_sent_on(server: Server, primary: Scripted, line: bytes) -> None:
    answer = answer_of(server.raw(line + b"\r\nHost: edge\r\nContent-Length: 0\r\n\r\n"))
    assert 400 <= answer.status <= 505
    assert primary.seen == []


@pytest.mark.parametrize(
    ("line", "target"),
    [
        (b"post /ok HTTP/1.1", "/ok"),
        (b"POST //ok HTTP/1.1", "/ok"),
        (b"POST //evil.example/ok HTTP/1.1", "/evil.example/ok"),
        (b"POST http://evil.example/ok HTTP/1.1", "/ok"),
        (b"POST http://evil.example//ok HTTP/1.1", "/ok"),
        (b"POST /ok#x HTTP/1.1", "/ok"),
    ],
)
def test_a_request_goes_to_the_primary_and_nowhere_else(
    server: Server, primary: Scripted, line: bytes, target: str
) -> None:
    answer = answer_of(server.raw(line + b"\r\nHost: edge\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
    assert answer.status == 400 or [seen.target for seen in primary.seen] in ([target], [target + "%23x"])
    for seen in primary.seen:
        assert seen["host"] == primary.url.removeprefix("http://")


# Headers that only an edge may send

LIES = {
    "Walcast-Forwarded": "t=1;for=10.9.9.9;host=admin.example;proto=https",
    "X-Forwarded-For": "10.9.9.9",
    "X-Forwarded-Host": "admin.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": "/admin",
    "Forwarded": "for=10.9.9.9",
    "X-Real-IP": "10.9.9.9",
    "X-Original-URL": "/admin",
    "X-Rewrite-URL": "/admin",
    "Via": "1.1 me",
    "Walcast-Not-Primary": "1",
}


def told_by(server: Server, site: str, headers: dict[str, str]) -> dict[str, Any]:
    answer = server.ask("POST", "/x?y", headers, b"z", host=site)
    assert answer.status == 200, answer
    return answer.facts


def test_a_client_cannot_say_who_it_is(server: Server) -> None:
    lies = {name: value for name, value in LIES.items() if name != "Walcast-Forwarded"}
    facts = told_by(server, "through", lies | {"Host": "through:81"})
    assert facts["region"] == HOME
    assert (facts["REMOTE_ADDR"], facts["scheme"], facts["headers"]["HOST"]) == ("127.0.0.1", "http", "through:81")
    assert "10.9.9.9" not in str(facts)
    assert "/admin" not in str(facts)
    assert not [name for name in facts["headers"] if name.startswith(("X_", "FORWARDED", "VIA", "WALCAST"))]


@pytest.mark.parametrize("spelling", ["underscore", "mixed", "capitals"])
def test_nor_by_writing_it_otherwise(server: Server, spelling: str) -> None:
    change = {
        "underscore": lambda n: n.replace("-", "_"),
        "mixed": lambda n: n.replace("-", "_", 1),
        "capitals": str.upper,
    }
    lies = {change[spelling](name): value for name, value in LIES.items() if "Walcast-F" not in name}
    facts = told_by(server, "through", lies)
    assert facts["REMOTE_ADDR"] == "127.0.0.1"
    assert "10.9.9.9" not in str(facts)


@pytest.mark.parametrize("site", ["open", "alien"])
def test_an_edge_without_the_secret_of_the_primary_gets_nothing_done(server: Server, site: str) -> None:
    answer = server.ask("POST", "/x?y", {}, b"z", host=site)
    assert (answer.status, answer["walcast-not-primary"]) == (403, "")
    assert b"give every host the same" in answer.body
    assert "region" not in answer.body.decode()


def test_a_client_that_plays_an_edge_gets_nothing_at_an_edge(server: Server, primary: Scripted) -> None:
    """It is answered as an edge would be: this is not the primary."""
    for method in ("GET", "POST"):
        answer = server.ask(method, "/ok", {"Walcast-Forwarded": LIES["Walcast-Forwarded"]})
        assert (answer.status, answer["walcast-not-primary"]) == (503, "1")
    assert primary.seen == []


@pytest.mark.parametrize(
    "text",
    [
        LIES["Walcast-Forwarded"],
        "",
        ";mac=",
        forwarded_text(Origin("10.9.9.9", "admin.example", "https"), "", "POST", "/x?y", BODY, time.time(), ()),
        forwarded_text(
            Origin("10.9.9.9", "x", "https"), "", "POST", "/x?y", BODY, time.time(), Options.of(secret="other").secrets
        ),
        forwarded_text(
            Origin("10.9.9.9", "x", "https"), "", "POST", "/other", BODY, time.time(), Options.of(secret=SECRET).secrets
        ),
        forwarded_text(
            Origin("10.9.9.9", "x", "https"), "", "POST", "/x?y", BODY, 1, Options.of(secret=SECRET).secrets
        ),
    ],
    ids=["made up", "empty", "no more than a mac", "unsigned", "of another secret", "of another path", "of long ago"],
)
def test_a_client_that_plays_an_edge_gets_nothing_at_the_primary(server: Server, text: str) -> None:
    answer = server.ask("POST", "/x?y", {"Walcast-Forwarded": text}, b"z", host=HOME)
    assert (answer.status, answer["walcast-not-primary"]) == (403, "")
    assert b"Nothing was done" in answer.body


def proof(body: bytes = b"z", target: str = "/x?y") -> str:
    digest = hashlib.sha256(body).hexdigest()
    origin = Origin("203.0.113.9", "shop.example", "https")
    return forwarded_text(origin, "", "POST", target, digest, time.time(), Options.of(secret=SECRET).secrets)


SENT_AT_ONCE_BYTES = 64 << 10  # at least, into the socket's buffers


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 300_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_proven_request_is_taken_once(server: Server, size: int, chunked: bool) -> None:
    """Whoever repeats it, with its cookies and all."""
    body = random.Random(size).randbytes(size)
    headers = {"Walcast-Forwarded": proof(body)} | ({"Transfer-Encoding": "chunked"} if chunked else {})

    def ask() -> Answer:
        return server.ask("POST", "/x?y", headers, iter([body] if size else []) if chunked else body, host=HOME)

    first = ask()
    assert (first.status, first.facts["REMOTE_ADDR"], first.facts["headers"]["HOST"]) == (
        200,
        "203.0.113.9",
        "shop.example",
    )
    assert (first.facts["size"], first.facts["sha256"]) == (size, hashlib.sha256(body).hexdigest())
    for _ in range(3):
        try:
            again = ask()
        except ConnectionError:  # refused before all of its body was sent
            assert size > SENT_AT_ONCE_BYTES
        else:
            assert (again.status, b"taken before" in again.body) == (403, True)


@pytest.mark.parametrize("sent", [b"", b"y", b"zz", bytes(300_000)])
def test_a_body_that_was_changed_on_its_way_reaches_no_app(server: Server, sent: bytes) -> None:
    answer = server.ask("POST", "/x?y", {"Walcast-Forwarded": proof()}, sent, host=HOME)
    assert (answer.status, b"the body is not the one" in answer.body) == (403, True)


def test_of_many_who_repeat_a_request_at_once_one_is_answered(server: Server) -> None:
    text = proof()
    with ThreadPoolExecutor(16) as pool:
        asked = [
            pool.submit(server.ask, "POST", "/x?y", {"Walcast-Forwarded": text}, b"z", host=HOME) for _ in range(16)
        ]
        statuses = sorted(future.result().status for future in asked)
    assert statuses == [200, *[403] * 15]


def test_a_client_cannot_have_an_edge_drop_what_it_says(server: Server, primary: Scripted) -> None:
    named = (
        "close, X-Forwarded-For, X-Forwarded-Host, Walcast-Forwarded, Host, Content-Length, Transfer-Encoding, Cookie"
    )
    answer = server.ask("POST", "/ok", {"Connection": named, "Cookie": "a=b", "X-Kept": "c"}, b"12345")
    assert answer.status == 200
    seen = primary.one
    assert (seen.size, seen["x-forwarded-for"], seen["x-forwarded-host"], seen["x-kept"]) == (
        5,
        "127.0.0.1",
        "edge",
        "c",
    )
    assert seen["walcast-forwarded"].startswith("t=")
    assert seen["connection"] == ""


def test_what_a_proxy_of_ours_says_reaches_the_app(server: Server) -> None:
    facts = told_by(server, "trusting", {"X-Forwarded-For": "198.51.100.7, 10.0.0.1", "X-Forwarded-Proto": "https"})
    assert facts["headers"]["X_FORWARDED_FOR"] == "198.51.100.7, 10.0.0.1"
    assert facts["headers"]["X_FORWARDED_PROTO"] == "https"


# Private paths

ADMIN = [
    "/admin", "/admin/", "/admin/x", "//admin", "///admin/x", "/%61dmin", "/%41DMIN/x", "/Admin", "/ADMIN/x",
    "/admin%2Fx", "/admin?x", "/admin//", "/./admin", "/x/../admin", "/%2e/admin", "/x/%2e%2e/admin", "/%2e%2e/admin",
    "/..%2fadmin",
    "/%5cadmin", "/x%5c..%5cadmin", "/admin%5cx", "/admin/..", "/admin/../admin", "/x/..%2f/admin", "/x//..//admin/x",
    "http://home.example/admin", "/%2Fadmin", "/admin%2f..%2fadmin",
]  # fmt: skip


@pytest.mark.parametrize("target", ADMIN)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("site", ["through", "open"])
def test_a_private_path_is_answered_here_and_nowhere_else(server: Server, target: str, method: str, site: str) -> None:
    head = f"{method} {target} HTTP/1.1\r\nHost: {site}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answer = answer_of(server.raw(head.encode()))
    if answer.status == 200:
        assert answer.facts["region"] == site
    else:
        assert answer.status in (400, 404)


@pytest.mark.parametrize("target", ADMIN)
def test_the_primary_shows_no_private_path_to_an_edge(server: Server, target: str) -> None:
    """Also when the edge was told of none."""
    head = f"POST {target} HTTP/1.1\r\nHost: careless\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    began_s = time.monotonic()
    answer = answer_of(server.raw(head.encode()))
    assert answer.status in (400, 404)
    assert time.monotonic() - began_s < 0.4, "there is nothing to wait for"
    assert answer["walcast-not-primary"] == ""


def test_at_home_a_private_path_is_open_to_whoever_comes_there(server: Server) -> None:
    assert server.post("/admin", host=HOME).facts["region"] == HOME
    assert server.post("/admin", host=HOME, Walcast_Forwarded="anything").status == 404


# Other protocols

UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: {}\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n"
)


def upgrade(server: Server, site: str, path: str = "/x", to: str = "websocket", method: str = "GET") -> Answer:
    with server.connect() as made:
        made.sendall(f"{method} {path} HTTP/1.1\r\nHost: {site}\r\n{UPGRADE.format(to)}\r\n".encode())
        found = b""
        while b"hello from" not in found and b"}}" not in found and (data := made.recv(65536)):
            found += data
            if b"HTTP/1.1 501" in found and b"host\n" in found:
                break
        return answer_of(found)


@pytest.mark.parametrize("to", ["websocket", "WebSocket"])
def test_a_websocket_is_refused_with_a_word_at_an_edge(server: Server, primary: Scripted, to: str) -> None:
    answer = upgrade(server, "edge", to=to)
    assert answer.status == 501
    assert b"primary's host" in answer.body
    assert primary.seen == []


def test_a_websocket_is_let_in_at_the_primary(server: Server) -> None:
    answer = upgrade(server, HOME)
    if server.asynchronous:
        assert answer.status == 101
        assert answer.body.endswith(b"hello from 127.0.0.1") or b"hello from 127.0.0.1" in answer.body
    else:  # its app does not know of them
        assert answer.facts["region"] == HOME


def test_a_websocket_on_a_private_path_is_the_apps_own(server: Server) -> None:
    answer = upgrade(server, "through", "/admin/x")
    assert b"through" in answer.body
    assert answer.status == (101 if server.asynchronous else 200)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_version_of_http_is_not_taken_up(server: Server, primary: Scripted, method: str) -> None:
    asked = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
    answer = answer_of(server.raw(f"{method} /ok HTTP/1.1\r\nHost: edge\r\n{asked}Content-Length: 0\r\n\r\n".encode()))
    assert answer.status == 200
    for seen in primary.seen:
        assert (seen["upgrade"], seen["http2-settings"], seen["connection"]) == ("", "", "")


# Anything


NAMES = [
    b"Content-Length", b"Transfer-Encoding", b"Keep-Alive", b"Host", b"Walcast-Forwarded", b"X-Forwarded-For", b"X-A",
    b"Content_Length", b"Walcast_Forwarded", b"x-forwarded-host", b"TE", b"Upgrade", b"Expect", b"Cookie", b"", b" X",
    b"X\tA",
]  # fmt: skip
VALUES = [
    b"0", b"5", b"05", b"+5", b"5, 5", b"chunked", b"Chunked", b"identity", b"chunked, chunked", b"close", b"host",
    b"edge", b"content-length", b"transfer-encoding, x-a", b"100-continue", b"h2c", b"walcast=2-1", b"10.9.9.9", b"",
    b"\xff", b"\x7f",
]  # fmt: skip
JOINS = [b": ", b":", b" : ", b":\t", b":  "]
ENDS = [b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\0\r\n", b" \r\n", b"\x0b\r\n"]
BODIES = [b"", b"hello", b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\nX-A: b\r\n\r\n", INSIDE]


@pytest.mark.slow
def test_whatever_a_client_sends_the_primary_gets_plain_requests(server: Server, primary: Scripted, seed: int) -> None:
    """None that the edge's server did not take for one, with nothing in it that only an edge may say."""
    chance = random.Random(seed)
    for number in range(400):
        lines = [
            chance.choice(NAMES) + chance.choice(JOINS) + chance.choice(VALUES) + chance.choice(ENDS)
            for _ in range(chance.randrange(5))
        ]
        start, end = b"POST /ok/%d HTTP/1.1\r\n" % number, b"Host: edge\r\nConnection: close\r\n\r\n"
        data = start + b"".join(lines) + end + chance.choice(BODIES).replace(b"smuggled", b"smuggled/%d" % number)
        primary.seen.clear()
        answers = split(server.raw(data))
        print(number, data, [answer.status for answer in answers], primary.seen)
        seen = [seen for seen in primary.seen if seen.target == f"/ok/{number}"]
        assert {seen.target for seen in primary.seen if seen.whole} <= {f"/ok/{number}"}
        assert len(seen) <= 1
        for one in seen:
            assert one["walcast-forwarded"].startswith("t=")
            assert one["x-forwarded-for"] == HOME
            assert one["host"] == primary.url.removeprefix("http://")
            assert (one["content-length"] == "") != (one["transfer-encoding"] == "")
            assert (
                not {"connection", "te", "upgrade", "expect", "content_length", "walcast_forwarded"}
                & dict(one.headers).keys()
            )
        assert not primary.errors

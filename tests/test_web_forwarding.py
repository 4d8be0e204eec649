"""Requests that write, from an edge to the primary's app, under every server: what arrives, what comes back, and that
nothing which may have been executed is sent twice. The primary's app is a script that behaves as badly as it can."""

from __future__ import annotations

import hashlib
import http.client
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from support.nodes import poll
from support.web_place import Place, place
from support.web_scripted import Scripted, scripted
from support.web_servers import PATIENCE_S, Answer, Server, answer_of, read_all, served

from walcast.statusfile import State
from walcast.web.answers import MAYBE

SECRET = "of all hosts"
MAX_BODY = 200_000
ANSWER_S = 0.15
LONGEST_S = 0.4
PRIMARY_WAIT_S = 0.15
SOON_S = 3.0  # beyond a bound, for a machine that is busy
SHORT = {"primary_wait_s": PRIMARY_WAIT_S, "connect_s": 0.3, "answer_s": ANSWER_S, "longest_s": LONGEST_S}
PATIENT = {"primary_wait_s": 10, "connect_s": 5, "answer_s": 20, "longest_s": 60, "barrier_s": 0}


@dataclass
class Edges:
    """The places of an edge's sites, and the primary's app."""

    primary: Scripted
    edge: Place
    moving: Place


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edges]:
    folder = tmp_path_factory.mktemp("web")
    with ExitStack() as stack:
        enter = stack.enter_context
        yield Edges(enter(scripted()), enter(place(folder / "edge")), enter(place(folder / "moving")))


ALL = [*("gthread", "uvicorn"), *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sync", "gevent"))]


@pytest.fixture(scope="module", params=ALL)
def server(request: pytest.FixtureRequest, edges: Edges, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its sites: `edge`; `short` has short times, `brief` a short end, `large` takes large bodies, `cramped` has little
    room for them, `behind` sends reads to the primary, too, `narrow` has two connections, `moving` and `hasty` ask the
    status file where the primary's app is."""
    there = {"secret": SECRET, "primary_url": edges.primary.url, "max_body": MAX_BODY}
    here, elsewhere = str(edges.edge.database), str(edges.moving.database)
    sites: dict[str, dict[str, Any]] = {
        "edge": {"database": here, "options": there | PATIENT},
        "short": {"database": here, "options": there | SHORT},
        "brief": {"database": here, "options": there | PATIENT | {"longest_s": LONGEST_S}},
        "large": {"database": here, "options": there | PATIENT | {"max_body": 1 << 30}},
        "cramped": {"database": here, "options": there | PATIENT | {"max_spooled": 80_000}},
        "behind": {"database": here, "options": there | PATIENT | {"max_lag_s": 0}},
        "narrow": {"database": here, "options": there | SHORT | {"max_connections": 2, "answer_s": 0.3}},
        "moving": {"database": elsewhere, "options": PATIENT | {"connect_s": 0.3}},
        "hasty": {"database": elsewhere, "options": SHORT},
    }
    with served(request.param, sites, tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture(autouse=True)
def primary(edges: Edges) -> Iterator[Scripted]:
    edges.primary.reset()
    edges.edge.show(lag_us=1000)
    edges.moving.show(app_url=edges.primary.url)
    yield edges.primary
    edges.primary.gate.set()
    assert not edges.primary.errors


class Clock:
    """How long something took."""

    def __enter__(self) -> Clock:
        self.began_s = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.began_s


def read_until(made: socket.socket, end: bytes) -> bytes:
    found = b""
    while end not in found:
        data = made.recv(65536)
        assert data, found
        found += data
    return found


# What arrives


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_read_is_answered_here(server: Server, primary: Scripted, method: str) -> None:
    answer = server.ask(method, "/x?y")
    assert answer.status == 200
    assert method == "HEAD" or answer.facts["region"] == "edge"
    assert "walcast" not in str(answer.headers)
    assert primary.seen == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PURGE"])
def test_a_write_is_answered_by_the_primarys_app(server: Server, primary: Scripted, method: str) -> None:
    body = random.Random(method).randbytes(100_000)
    answer = server.ask(
        method, "/ok/x?y=z", {"Content-Type": "text/x; a=b", "Range": "bytes=1-", "If-Match": '"e"'}, body
    )
    assert answer.status == 200
    seen = primary.one
    assert (seen.method, seen.target) == (method, "/ok/x?y=z")
    assert (seen.size, seen.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert (seen["content-type"], seen["range"], seen["if-match"]) == ("text/x; a=b", "bytes=1-", '"e"')
    assert (seen["content-length"], seen["transfer-encoding"]) == (str(len(body)), "")


@pytest.mark.parametrize("sizes", [[], [1], [65536], [1, 65536, 3, 70_000]])
def test_a_body_without_a_length_arrives_whole(server: Server, primary: Scripted, sizes: list[int]) -> None:
    parts = [bytes([65 + n]) * size for n, size in enumerate(sizes)]
    answer = server.ask("POST", "/ok", {"Transfer-Encoding": "chunked"}, iter(parts))
    assert answer.status == 200
    assert (primary.one.size, primary.one.sha256) == (sum(sizes), hashlib.sha256(b"".join(parts)).hexdigest())
    assert (primary.one["content-length"], primary.one["transfer-encoding"]) == (str(sum(sizes)), "")


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_write_without_a_body_says_so(server: Server, primary: Scripted, method: str) -> None:
    assert server.ask(method, "/ok").status == 200
    assert (primary.one["content-length"], primary.one["transfer-encoding"]) == ("0", "")


TARGETS = [
    ("/ok/a%20b%3Fc%23d?e=%20f&g=h+i", "/ok/a%20b%3Fc%23d?e=%20f&g=h+i"),
    ("/ok/100%25/na%C3%AFve/%E6%97%A5", "/ok/100%25/na%C3%AFve/%E6%97%A5"),
    ("/ok/a%2Fb", "/ok/a/b"),
    ("/ok/x/?", "/ok/x/"),
    ("/ok//x//", "/ok//x//"),
    ("/ok/%252e%252e/x", "/ok/%252e%252e/x"),
    ("/ok?a[]=1&b={c}|d^e`", "/ok?a%5B%5D=1&b=%7Bc%7D%7Cd%5Ee%60"),
    ("/ok?%00%0d%0a%ff", "/ok?%00%0d%0a%ff"),
    ("/mounted/ok/x?y", "/mounted/ok/x?y"),
    ("/mounted", "/mounted"),
]


@pytest.mark.parametrize(("target", "expected"), TARGETS)
def test_the_primarys_app_is_asked_for_the_same_path(
    server: Server, primary: Scripted, target: str, expected: str
) -> None:
    assert server.post(target).status == 200
    assert primary.one.target == expected


def test_the_primary_is_told_for_whom_it_answers(server: Server, primary: Scripted) -> None:
    server.post("/ok", host="edge:8080")
    seen = primary.one
    assert seen["host"] == primary.url.removeprefix("http://")
    assert (seen["x-forwarded-for"], seen["x-forwarded-host"], seen["x-forwarded-proto"]) == (
        "127.0.0.1",
        "edge:8080",
        "http",
    )
    assert ";for=127.0.0.1;host=edge:8080;proto=http;mac=" in seen["walcast-forwarded"]


# What comes back


@pytest.mark.parametrize("status", [200, 201, 202, 301, 302, 307, 400, 401, 404, 409, 413, 418, 500, 503, 599])
def test_a_status_is_passed_on(server: Server, primary: Scripted, status: int) -> None:
    answer = server.post(f"/status/{status}")
    assert (answer.status, answer["location"], answer["x-reason"]) == (status, "/there?a=b", "kept")
    assert answer.facts["target"] == f"/status/{status}"
    assert len(primary.seen) == 1


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_has_none(server: Server, primary: Scripted, status: int) -> None:
    with server.connect() as made:
        made.sendall(
            b"POST /status/%d HTTP/1.1\r\nHost: edge\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status
        )
        answer = answer_of(read_all(made))
    assert (answer.status, answer["etag"], answer.body) == (status, "abc", b"")


def test_several_cookies_stay_several(server: Server, primary: Scripted) -> None:
    cookies = server.post("/cookies").all("set-cookie")
    assert cookies == ["a=1; Path=/", "b=2; Expires=Wed, 01 Jan 2031 00:00:00 GMT"]


@pytest.mark.parametrize(
    ("path", "body"), [("/chunked", b"hello there"), ("/old", b"as of old"), ("/two-lengths", b"hello")]
)
def test_an_answer_without_a_length_comes_whole(server: Server, primary: Scripted, path: str, body: bytes) -> None:
    answer = server.post(path)
    assert (answer.status, answer.body, answer["content-length"]) == (200, body, "")


def test_what_comes_before_an_answer_is_none(server: Server, primary: Scripted) -> None:
    assert server.post("/early").facts["target"] == "/early"


def test_headers_between_the_primary_and_the_edge_stay_there(server: Server, primary: Scripted) -> None:
    answer = server.post("/named")
    names = {name for name, _ in answer.headers}
    assert answer["x-kept"] == "yes"
    assert not names & {"x-secret", "keep-alive", "upgrade", "proxy-authenticate"}
    assert "scripted" not in answer["server"]
    assert "x-secret" not in answer["connection"].lower()


@pytest.mark.parametrize("path", ["/ok", "/chunked", "/status/404"])
def test_the_answer_to_a_head_has_no_body(server: Server, primary: Scripted, path: str) -> None:
    """A read that is sent on, since the replica is behind."""
    with server.connect() as made:
        made.sendall(b"HEAD %b HTTP/1.1\r\nHost: behind\r\nConnection: close\r\n\r\n" % path.encode())
        answer = answer_of(read_all(made))
    assert primary.one.method == "HEAD"
    assert (answer.status, answer.body) == (404 if "404" in path else 200, b"")


# Exactly once

FAULTS = [
    "closes-after-head", "closes-after-body", "silent", "garbage", "bare-cr", "nul", "bad-name", "huge-head",
    "negative", "lengths-differ", "switching", "odd-status", "plus",
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_have_been_executed_is_not_sent_again(server: Server, primary: Scripted, fault: str) -> None:
    with Clock() as clock:
        answer = server.post(f"/{fault}", b"pay 5", host="short" if fault == "silent" else "edge")
    assert (answer.status, answer.body.decode().strip()) == (502, MAYBE)
    assert answer["cache-control"] == "no-store"
    assert len(primary.seen) == 1
    assert clock.seconds < ANSWER_S + SOON_S


def test_nor_when_the_connection_ends_before_anything_was_read(server: Server, primary: Scripted) -> None:
    """From here it looks as if it had been."""
    primary.refusals = 1
    assert server.post("/ok", b"pay 5").status == 502
    assert primary.seen == []
    assert primary.connections == 1


def test_a_read_that_was_sent_on_is_sent_once_more(server: Server, primary: Scripted) -> None:
    assert server.get("/closes-once", host="behind").status == 200
    assert len(primary.seen) == 2


def test_but_not_for_ever(server: Server, primary: Scripted) -> None:
    answer = server.get("/closes-after-head", host="behind")
    assert (answer.status, answer.body) == (502, b"the primary did not answer in time\n")
    assert len(primary.seen) == 2


def test_an_error_of_the_primarys_app_is_the_answer(server: Server, primary: Scripted) -> None:
    answer = server.post("/unavailable", b"pay 5")
    assert (answer.status, answer["retry-after"], answer.facts["size"]) == (503, "7", 5)
    assert len(primary.seen) == 1


@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_who_is_not_the_primary_is_asked_again_with_the_whole_body(
    server: Server, primary: Scripted, kind: str
) -> None:
    primary.not_primary = 3
    body = random.Random(kind).randbytes(60_000)
    headers = {"Transfer-Encoding": "chunked"} if kind == "chunked" else {}
    answer = server.ask("POST", "/moving", headers, iter([body]) if kind == "chunked" else body, host="large")
    assert answer.status == 200
    assert answer["walcast-not-primary"] == ""
    digest = hashlib.sha256(body).hexdigest()
    assert [(seen.size, seen.sha256) for seen in primary.seen] == [(len(body), digest)] * 4


def test_also_with_a_long_one(server: Server, primary: Scripted) -> None:
    primary.not_primary = 1
    body = random.Random("long").randbytes(150_000)
    assert server.post("/moving", body).status == 200
    assert [seen.sha256 for seen in primary.seen] == [hashlib.sha256(body).hexdigest()] * 2
    proofs = {seen["walcast-forwarded"].partition(";n=")[2] for seen in primary.seen}
    assert len(proofs) == 2, "each can be taken once"


def test_without_a_primary_there_is_an_end_to_waiting(server: Server, primary: Scripted) -> None:
    with Clock() as clock:
        answer = server.post("/never-primary", host="short")
    assert (answer.status, answer["retry-after"]) == (503, "1")
    assert "nothing was changed" in answer.body.decode()
    assert answer["walcast-not-primary"] == ""
    assert clock.seconds < PRIMARY_WAIT_S + SOON_S
    assert primary.seen  # on a machine that is busy the time is over after the first attempt


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:1"])
def test_with_nobody_there_it_is_said_that_nothing_was_done(server: Server, edges: Edges, url: str) -> None:
    edges.moving.show(app_url=url)
    with Clock() as clock:
        answer = server.post(host="hasty")
    assert (answer.status, answer["retry-after"]) == (503, "1")
    assert "nothing was changed" in answer.body.decode()
    assert clock.seconds < PRIMARY_WAIT_S + 2 * SHORT["connect_s"] + SOON_S


def test_a_request_waits_for_a_primary_that_moves(server: Server, edges: Edges, primary: Scripted) -> None:
    edges.moving.show(app_url="http://127.0.0.1:1")
    said = server.said.read_text().count("cannot be reached")
    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(server.post, "/ok", b"pay 5", host="moving")
        assert poll(lambda: server.said.read_text().count("cannot be reached") > said + 1, PATIENCE_S)
        edges.moving.show(app_url=primary.url)
        assert posted.result(PATIENCE_S).facts["size"] == 5
    assert len(primary.seen) == 1


def test_a_host_that_becomes_the_primary_answers_itself(server: Server, edges: Edges, primary: Scripted) -> None:
    edges.moving.show(app_url="http://127.0.0.1:1")
    said = server.said.read_text().count("cannot be reached")
    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(server.post, "/x", b"pay 5", host="moving")
        assert poll(lambda: server.said.read_text().count("cannot be reached") > said, PATIENCE_S)
        edges.moving.show(State.PRIMARY)
        facts = posted.result(PATIENCE_S).facts
    assert (facts["region"], facts["size"]) == ("moving", 5)
    assert primary.seen == []


# An answer that is not whole


@pytest.mark.parametrize("fault", ["breaks-off", "breaks-off-chunked", "falls-silent"])
def test_an_answer_that_breaks_off_is_not_taken_for_whole(server: Server, primary: Scripted, fault: str) -> None:
    with Clock() as clock, pytest.raises(http.client.IncompleteRead):
        server.post(f"/{fault}", host="short" if fault == "falls-silent" else "edge")
    assert len(primary.seen) == 1
    assert clock.seconds < ANSWER_S + SOON_S


@pytest.mark.parametrize(
    "fault", ["breaks-off", "closes-after-head", pytest.param("silent", marks=pytest.mark.slow), "two-lengths"]
)
def test_what_fails_leaves_no_connection_behind(server: Server, primary: Scripted, fault: str) -> None:
    """The host has two connections. A primary that closes one while the next request is on its way leaves it open
    whether that was done, which is another case: each connection is closed before the next request here."""
    for _ in range(3):
        with suppress(http.client.IncompleteRead):
            server.post(f"/{fault}", host="narrow")
        assert poll(lambda: primary.seen[-1].closed, PATIENCE_S)
    assert server.post("/ok", host="narrow").status == 200


# Time and size


def test_an_answer_that_never_ends_is_cut_off(server: Server, primary: Scripted) -> None:
    with Clock() as clock, pytest.raises(http.client.IncompleteRead):
        server.post("/dribbles", host="short")
    assert LONGEST_S - 0.1 < clock.seconds < LONGEST_S + ANSWER_S + SOON_S
    assert primary.gone.wait(PATIENCE_S)


def test_an_answer_that_never_begins_is_cut_off(server: Server, primary: Scripted) -> None:
    with Clock() as clock:
        answer = server.post("/dribbles-head", host="short")
    assert (answer.status, answer.body.decode().strip()) == (502, MAYBE)
    assert clock.seconds < LONGEST_S + ANSWER_S + SOON_S


@pytest.mark.parametrize("fault", ["silent", "falls-silent"])
def test_no_silence_lasts_beyond_the_end(server: Server, primary: Scripted, fault: str) -> None:
    with Clock() as clock, suppress(http.client.IncompleteRead):
        assert server.post(f"/{fault}", host="brief").status == 502
    assert clock.seconds < LONGEST_S + SOON_S
    assert len(primary.seen) == 1


def test_a_primary_that_does_not_read_is_not_waited_for(server: Server, primary: Scripted) -> None:
    with Clock() as clock:
        answer = server.post("/deaf", bytes(MAX_BODY), host="short")
    assert answer.status == 502
    assert len(primary.seen) == 1
    assert clock.seconds < 2 * ANSWER_S + SOON_S


@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_a_body_may_be_as_long_as_is_allowed(server: Server, primary: Scripted, kind: str) -> None:
    headers = {"Transfer-Encoding": "chunked"} if kind == "chunked" else {}
    body = bytes(MAX_BODY)
    assert server.ask("POST", "/ok", headers, iter([body]) if kind == "chunked" else body).facts["size"] == MAX_BODY


def test_a_body_that_is_too_long_is_refused_before_anything_is_sent(server: Server, primary: Scripted) -> None:
    data = server.raw(b"POST /ok HTTP/1.1\r\nHost: edge\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1))
    assert answer_of(data).status == 413
    assert primary.connections == 0


def test_a_body_that_turns_out_too_long_is_not_sent(server: Server, primary: Scripted) -> None:
    chunks = [bytes(65536)] * 4
    answer = server.ask("POST", "/ok", {"Transfer-Encoding": "chunked"}, iter(chunks))
    assert answer.status == 413
    assert primary.seen == []


def test_a_primary_that_finds_a_body_too_long_can_say_so(server: Server, primary: Scripted) -> None:
    answer = server.post("/too-large", bytes(4 << 20), host="large")
    assert (answer.status, answer.body) == (413, b"too large")
    assert len(primary.seen) == 1


def test_or_hang_up(server: Server, primary: Scripted) -> None:
    with suppress(ConnectionError):  # as far as its own server lets the client know
        assert server.post("/too-large-at-once", bytes(4 << 20), host="large").status in (413, 502)
    assert server.post("/ok").status == 200
    assert len(primary.seen) == 2


@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_a_client_that_hangs_up_has_sent_nothing(server: Server, primary: Scripted, kind: str) -> None:
    head = b"Content-Length: 150000" if kind == "length" else b"Transfer-Encoding: chunked"
    with server.connect() as made:
        made.sendall(b"POST /ok HTTP/1.1\r\nHost: edge\r\n%b\r\n\r\n" % head)
        made.sendall((b"" if kind == "length" else b"186a0\r\n") + bytes(100_000))
    assert server.post("/ok").status == 200
    assert [seen.size for seen in primary.seen] == [0]


def test_a_client_that_stops_sending_is_not_waited_for(server: Server, primary: Scripted) -> None:
    if not server.asynchronous:
        pytest.skip("with WSGI the server reads: its own limits count")
    with server.connect() as made, Clock() as clock:
        made.sendall(b"POST /ok HTTP/1.1\r\nHost: short\r\nContent-Length: 10\r\n\r\nhello")
        assert answer_of(made.recv(65536)).status == 408
    assert clock.seconds < ANSWER_S + SOON_S
    assert primary.seen == []


def test_a_client_that_stops_reading_is_not_waited_for(server: Server, primary: Scripted) -> None:
    if not server.asynchronous:
        pytest.skip("with WSGI the server writes: its own limits count")
    with server.connect() as made:
        made.sendall(b"POST /big/100000000 HTTP/1.1\r\nHost: short\r\nContent-Length: 0\r\n\r\n")
        assert primary.gone.wait(PATIENCE_S)


def test_when_the_client_goes_the_primary_is_let_go(server: Server, primary: Scripted) -> None:
    with server.connect() as made:
        made.sendall(b"POST /dribbles HTTP/1.1\r\nHost: large\r\nContent-Length: 0\r\n\r\n")
        read_until(made, b"xx")
        # What is left unread makes the end a reset, as that of a browser.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert primary.gone.wait(PATIENCE_S)


# As a stream


def test_a_body_is_sent_on_once_it_is_whole(server: Server, primary: Scripted) -> None:
    """Who sends slowly holds no worker of the primary; and its proof covers all of it."""
    if server.kind == "sync":
        pytest.skip("who sends slowly holds its one worker, and nobody else is answered meanwhile")
    with server.connect() as made:
        made.sendall(b"POST /ok HTTP/1.1\r\nHost: large\r\nContent-Length: 200000\r\n\r\n" + bytes(100_000))
        assert server.post("/ok/other", host="large").status == 200
        assert [seen.target for seen in primary.seen] == ["/ok/other"]
        made.sendall(bytes(100_000))
        assert b'"size": 200000' in read_until(made, b"}}")
    digest = hashlib.sha256(bytes(200_000)).hexdigest()
    assert f";body={digest};" in primary.seen[1]["walcast-forwarded"]


@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_bodies_take_no_more_room_than_they_may(server: Server, primary: Scripted, kind: str) -> None:
    headers = {"Transfer-Encoding": "chunked"} if kind == "chunked" else {}
    for _ in range(5):
        body = bytes(100_000)
        answer = server.ask("POST", "/ok", headers, iter([body]) if kind == "chunked" else body, host="cramped")
        assert answer.status == 503
        assert server.post("/ok", bytes(60_000), host="cramped").status == 200
        assert server.post("/ok", bytes(70_000), host="cramped").status == 200, "and all of it is given back"
    assert [seen.size for seen in primary.seen] == [60_000, 70_000] * 5


def test_the_beginning_of_an_answer_comes_before_its_end_is_there(server: Server, primary: Scripted) -> None:
    with server.connect() as made:
        made.sendall(b"POST /gated HTTP/1.1\r\nHost: large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        assert b"second" not in read_until(made, b"first")
        primary.gate.set()
        assert b"second" in read_all(made)


@pytest.mark.parametrize("size", [24 << 20, pytest.param(200 << 20, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_a_body(server: Server, primary: Scripted, size: int) -> None:
    server.post(f"/big/{16 << 20}", bytes(1 << 20), host="large")  # what a server takes once, for buffers and threads
    before = server.peak_bytes()
    chunk = bytes(1 << 20)
    answer = server.ask("POST", "/ok", {"Content-Length": str(size)}, (chunk for _ in range(size >> 20)), host="large")
    assert answer.facts["size"] == size
    with server.connect() as made:
        made.sendall(b"POST /big/%d HTTP/1.1\r\nHost: large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % size)
        got = 0
        while data := made.recv(1 << 20):
            got += len(data)
    assert size < got < size + 1000
    assert server.peak_bytes() - before < 8 << 20


# Connections


def test_a_connection_is_used_again(server: Server, primary: Scripted) -> None:
    for _ in range(4):
        assert server.post("/ok", host="large").status == 200
    assert primary.connections <= 2  # one that was there before may end
    for _ in range(3):
        assert server.post("/closing", host="large").status == 200
    assert len(primary.seen) == 7


def test_many_at_once_are_all_answered(server: Server, primary: Scripted) -> None:
    def post(number: int) -> Answer:
        return server.post(f"/ok/{number}", bytes(number), host="large")

    with ThreadPoolExecutor(16) as pool:
        sizes = [answer.facts["size"] for answer in pool.map(post, range(64))]
    assert sizes == list(range(64))
    assert len(primary.seen) == 64

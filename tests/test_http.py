"""What `--http` tells to whom: names, methods, sizes, secrets."""

from __future__ import annotations

import http.client
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.http_asked import (
    LOCAL,
    SOON_S,
    body_of,
    code_of,
    connect,
    everything,
    get,
    headers_of,
    say,
    serving,
)
from support.nodes import Node, poll

from walcast.errors import ConfigError
from walcast.statusfile import State
from walcast.wire import Address
from walcast_node.config.configuration import load_config
from walcast_node.http.app import MAX_HEADER_BYTES, MAX_HEADERS, Route, Sees
from walcast_node.http.hosts import check_host_name, is_known
from walcast_node.http.near import is_loopback
from walcast_node.http.request import Answer, Request
from walcast_node.http.routes import near
from walcast_node.process.health import Failure, FailureKind, member_failure

# Which Host is answered


@pytest.mark.parametrize(
    "header",
    ["localhost", "LOCALHOST:7421", "localhost.", "127.0.0.1:7421", "127.9.9.9", "[::1]:80", "10.0.0.5:7421", "db1.lan",
     "DB1.lan.:80", "monitor.example", "[::ffff:10.0.0.5]:1", "10.7.7.7"],
)  # fmt: skip
def test_loopback_the_address_and_configured_names_are_known(header: str) -> None:
    assert is_known(header, "10.0.0.5", "db1.lan", {"monitor.example", "10.7.7.7"})


@pytest.mark.parametrize(
    "header",
    ["", "evil.test", "evil.test:7421", "localhost.evil.test", "evil.localhost", "127.0.0.1.evil.test", "10.0.0.6",
     "0.0.0.0:7421", "[::]:7421", "0:7421", "2130706433", "0x7f000001", "127.1", "localhost:7421:1", "localhost/",
     "localhost,evil",
     "localhost@evil.test", "evil.test#localhost", "localhost evil", "local\u212aost", "[::1", "[localhost]", ":7421",
     "::1%evil.test", "::1%a\r\nb"],
)  # fmt: skip
def test_no_other_host_is_known(header: str) -> None:
    assert not is_known(header, "10.0.0.5", "db1.lan", {"monitor.example"})
    assert not is_known(header, "10.0.0.5", "0.0.0.0", ())


@pytest.mark.parametrize("name", ["", "a b", "a:80", "http://a", "*", "[::1]:80", "a,b", "é.example", "a" * 300])
def test_what_is_no_host_name_cannot_be_configured(name: str) -> None:
    with pytest.raises(ConfigError):
        check_host_name(name)


@pytest.mark.parametrize(
    ("name", "same"), [("DB1.lan.", "db1.lan"), ("[::1]", "::1"), ("::1", "::1"), ("1.2.3.4",) * 2]
)
def test_a_host_name_is_compared_in_one_form(name: str, same: str) -> None:
    assert check_host_name(name) == same


@pytest.mark.parametrize("path", ["/healthz", "/status", "/nothing"])
def test_a_page_of_another_site_reads_nothing_through_its_own_name(path: str) -> None:
    with serving(names=["monitor.example"]) as server:
        assert code_of(get(server, path, "evil.test")) == 421
        assert code_of(get(server, path, f"evil.test:{server.listening.port}")) == 421
        assert code_of(get(server, path, "monitor.example")) in (200, 404)
        assert code_of(say(server, f"GET {path} HTTP/1.1\r\n\r\n".encode())) == 400
        assert code_of(say(server, f"GET {path} HTTP/2.0\r\n\r\n".encode())) == 421
        twice = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n\r\n"
        assert code_of(say(server, twice.encode())) == 400
        assert code_of(say(server, f"GET http://evil.test{path} HTTP/1.1".encode() + LOCAL)) == 404
        assert code_of(say(server, f"GET {path} HTTP/1.0\r\n\r\n".encode())) in (200, 404)  # a load balancer's check


# What is answered


def test_only_get_and_head_are_answered() -> None:
    with serving() as server:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "FOO", "get"):
            answer = say(server, f"{method} /status HTTP/1.1".encode() + LOCAL)
            assert (code_of(answer), headers_of(answer)["allow"]) == (405, "GET, HEAD"), method
        whole, head = get(server, "/status"), say(server, b"HEAD /status HTTP/1.1" + LOCAL)
        assert body_of(whole) == {"role": "primary"}
        assert head == whole.split(b"\r\n\r\n")[0] + b"\r\n\r\n"
        assert code_of(get(server, "/status?x=1")) == 200


def test_every_answer_forbids_storing_and_guessing_and_names_no_server() -> None:
    async def broken(_: Request, __: Sees) -> Answer:
        raise RuntimeError("secret")

    async def late(_: Request, __: Sees) -> Answer:
        raise TimeoutError

    def admits(request: Request) -> Sees | None:
        return None if request.path == "/status" else everything(request)

    more = {"/broken": Route(broken), "/late": Route(late)}
    with serving(admits, more=more) as server:
        answers = {
            200: get(server, "/healthz"),
            400: say(server, b"\x16\x03\x01\x00\x00\r\n\r\n"),
            403: get(server, "/status"),
            404: get(server, "/../status"),
            405: say(server, b"POST / HTTP/1.1" + LOCAL),
            413: say(server, b"GET / HTTP/1.1\r\nContent-Length: 2\r\nHost: localhost\r\n\r\n"),
            421: get(server, "/", "evil.test"),
            431: say(server, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * MAX_HEADERS + b"Host: localhost\r\n\r\n"),
            500: get(server, "/broken"),
            503: get(server, "/late"),
        }
    for code, answer in answers.items():
        told = headers_of(answer)
        assert code_of(answer) == code, answer
        assert (told["cache-control"], told["x-content-type-options"]) == ("no-store", "nosniff"), code
        assert "server" not in told
        assert b"secret" not in answer


def test_what_is_too_long_is_not_read() -> None:
    with serving() as server:
        long = b"a" * (MAX_HEADER_BYTES + 1)
        assert code_of(say(server, b"GET /" + long + b" HTTP/1.1" + LOCAL)) == 431
        assert code_of(say(server, b"GET / HTTP/1.1\r\nX: " + long + LOCAL)) == 431
        assert code_of(say(server, b"GET /" + 2 * long)) in (400, 0)  # not even whole; 0: it hung up on what was left
        for told in (b"Content-Length: 1000000000000", b"Transfer-Encoding: chunked"):
            assert code_of(say(server, b"GET /healthz HTTP/1.1\r\n" + told + LOCAL)) == 413


def test_a_connection_is_for_one_request() -> None:
    with serving() as server:
        answer = say(server, (b"GET /healthz HTTP/1.1" + LOCAL) * 2)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert headers_of(answer)["connection"] == "close"


# Who is told what


def test_a_stranger_is_told_the_kind_of_failure_and_no_more() -> None:
    failure = Failure(FailureKind.NOT_SERVED, "/srv/secret/app.db: locked by billing", "app")
    with serving(lambda _: None, failure) as server:
        answer = get(server, "/healthz")
        assert (code_of(answer), body_of(answer)) == (503, {"status": "failing", "failure": "not-served"})
    with serving(everything, failure) as server:
        assert body_of(get(server, "/healthz"))["error"] == failure.text
    with serving(lambda _: None) as server:
        assert body_of(get(server, "/healthz")) == {"status": "ok"}


def test_the_words_of_a_failure_are_for_those_who_may_see_its_database() -> None:
    failures = [Failure(FailureKind.NOT_SERVED, "/srv/secret/a.db: locked", "a"),
                Failure(FailureKind.STALE, "/srv/b.db is 12 s old", "b")]  # fmt: skip
    for seen, said in [("a", failures[0]), ("b", failures[1])]:
        with serving(lambda _, seen=seen: lambda name: name == seen, *failures) as server:  # type: ignore[misc]
            answer = body_of(get(server, "/healthz"))
            assert answer == {"status": "failing", "failure": str(said.kind), "error": said.text}


def test_the_health_is_told_where_nobody_can_tell_who_asks() -> None:
    def admits(request: Request) -> Sees | None:
        raise OSError("no such user")

    with serving(admits) as server:
        assert body_of(get(server, "/healthz")) == {"status": "ok"}


@pytest.mark.parametrize(
    ("trouble", "scrubbed", "served", "holds", "kind"),
    [
        ("no space", None, True, True, FailureKind.NOT_CAPTURED),
        ("page 7", "page 7", True, True, FailureKind.DAMAGED),
        (None, None, True, False, FailureKind.FENCED),
        ("no space", None, True, False, FailureKind.NOT_CAPTURED),
        ("12 s old", None, False, False, FailureKind.STALE),
        (None, None, True, True, None),
        (None, None, False, False, None),
    ],
)
def test_the_kind_of_failure_is_what_is_wrong_first(
    trouble: str | None, scrubbed: str | None, served: bool, holds: bool, kind: FailureKind | None
) -> None:
    database = SimpleNamespace(scrubber=SimpleNamespace(trouble=scrubbed))
    settings = SimpleNamespace(name="app")
    serving = SimpleNamespace(trouble=trouble, database=database, settings=settings) if served else None
    said = trouble or ("fenced" if served and not holds else None)
    following = SimpleNamespace(showing=SimpleNamespace(error=None), status=SimpleNamespace(state=State.DISCONNECTED))
    member = SimpleNamespace(serving=serving, trouble=said, name="app", following=following)
    failure = member_failure(member)  # type: ignore[arg-type]
    assert failure == (Failure(kind, said, "app") if kind and said else None)


def test_a_database_that_is_not_there_yet_is_not_served() -> None:
    member: Any = SimpleNamespace(
        serving=None, following=None, restore_error="not restored yet", trouble="not restored yet", name="app"
    )
    assert member_failure(member) == Failure(FailureKind.NOT_SERVED, "not restored yet", "app")


def test_status_is_for_those_whom_the_server_is_told_to_let_through() -> None:
    asked: list[Request] = []

    def admits(request: Request) -> Sees | None:
        asked.append(request)
        return everything(request) if request.authorization == "Bearer s3cret" else None

    with serving(admits) as server:
        assert code_of(get(server, "/status")) == 403
        assert code_of(get(server, "/metrics")) == 403
        with connect(server) as one:
            one.sendall(b"GET /status?q HTTP/1.1\r\nauthorization: Bearer s3cret" + LOCAL)
            assert poll(lambda: code_of(one.recv(1 << 16)) == 200, SOON_S)
            port = one.getsockname()[1]
    request = asked[-1]
    assert (request.peer, request.peer_port) == ("127.0.0.1", port)
    assert (request.local, request.local_port) == ("127.0.0.1", server.listening.port)
    assert (request.path, request.query, request.tls) == ("/status", "q", False)
    assert "s3cret" not in repr(request)
    assert near(request)
    assert not near(replace(request, peer="10.0.0.9"))


def test_a_permission_that_cannot_be_found_out_is_none() -> None:
    def admits(request: Request) -> Sees | None:
        raise OSError("no such user")

    with serving(admits) as server:
        answer = get(server, "/status")
        assert code_of(answer) == 500
        assert b"role" not in answer
        assert b"no such user" not in answer


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("127.8.8.8", True), ("10.0.0.1", False),
     ("::ffff:10.0.0.1", False), ("0.0.0.0", False), ("::", False), ("127.evil.test", False), ("localhost", False),
     ("", False)],
)  # fmt: skip
def test_near_is_what_the_address_is_not_what_it_looks_like(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


def test_a_primary_answers_by_the_names_that_it_was_given(tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    sqlite3.connect(database).execute("CREATE TABLE t (x)").connection.close()
    arguments = ["primary", str(database), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json"]
    node = Node([*arguments, "--http-host", "a.example", "--http-host", "B.example"], tmp_path, "primary").start()
    try:
        address = Address.parse(node.ready()["http"])
        codes = {}
        for path, word in ("/status", b"app.db"), ("/metrics", b"walcast_build_info"):
            for host in (str(address), "a.example", "b.example", "evil.test"):
                connection = http.client.HTTPConnection(address.host, address.port, timeout=SOON_S)
                connection.request("GET", path, headers={"Host": host})
                answer = connection.getresponse()
                codes[host] = answer.status
                assert (word in answer.read()) is (answer.status == 200)
                connection.close()
            assert list(codes.values()) == [200, 200, 200, 421]
    finally:
        node.end()


# Configuration


@pytest.mark.parametrize(
    ("value", "names"),
    [("monitor.example", ("monitor.example",)), ("[a.example, B.example]", ("a.example", "b.example"))],
)
def test_names_are_in_the_configuration_file(tmp_path: Path, value: str, names: tuple[str, ...]) -> None:
    file = tmp_path / "walcast.yml"
    file.write_text(f"http: 127.0.0.1:7421\nhttp-host: {value}\n")
    assert load_config(file).http_hosts == names


def test_a_wrong_name_in_the_configuration_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "walcast.yml"
    file.write_text("http-host: ['a b']\n")
    with pytest.raises(ConfigError):
        load_config(file)

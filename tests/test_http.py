"""What `--http` tells to whom, and what it does not: names, methods, sizes, secrets, slow and silent clients."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import resource
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.nodes import Node, poll, walcast

from node import limits
from node.config import load_config
from node.health import Failure, FailureKind, member_failure
from node.http import server as http_server
from node.http.app import MAX_HEADER_BYTES, MAX_HEADERS, Allows, Route
from node.http.hosts import check_host_name, is_known
from node.http.near import is_loopback
from node.http.request import Answer, Request
from node.http.routes import near, routes
from node.http.server import Connection, HttpServer, bind, whom_to_drop
from node.http.tls import certificate_for
from walcast.errors import ConfigError
from walcast.wire import Address, Tls

LOOPBACK = Address("127.0.0.1", 0)
LOCAL = b"\r\nHost: localhost\r\n\r\n"
SOON_S = 5.0


async def facts() -> dict[str, Any]:
    return {"role": "primary"}


@contextmanager
def serving(
    allows: Allows = near,
    failure: Failure | None = None,
    more: dict[str, Route] | None = None,
    **named: Any,
) -> Iterator[HttpServer]:
    named.setdefault("connections", 8)
    made = HttpServer(LOOPBACK, routes(lambda: failure, facts, allows) | (more or {}), allows, **named)
    try:
        yield made
    finally:
        made.close()


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.listening.port), timeout=SOON_S)


def say(server: HttpServer, data: bytes) -> bytes:
    """All that the server answers to these bytes, until it hangs up."""
    got = b""
    with connect(server) as one, suppress(ConnectionError):
        one.sendall(data)
        while part := one.recv(1 << 16):
            got += part
    return got


def code_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def headers_of(answer: bytes) -> dict[str, str]:
    lines = answer.split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


def body_of(answer: bytes) -> Any:
    return json.loads(answer.split(b"\r\n\r\n", 1)[1])


def get(server: HttpServer, path: str, host: str = "localhost") -> bytes:
    return say(server, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())


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
     "localhost@evil.test", "evil.test#localhost", "localhost evil", "local\u212aost", "[::1", "[localhost]", ":7421"],
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
    async def broken(_: Request) -> Answer:
        raise RuntimeError("secret")

    async def late(_: Request) -> Answer:
        raise TimeoutError

    def allows(request: Request) -> bool:
        return request.path != "/status"

    more = {"/broken": Route(broken), "/late": Route(late)}
    with serving(allows, more=more) as server:
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
    failure = Failure(FailureKind.NOT_SERVED, "/srv/secret/app.db: locked by billing")
    with serving(lambda request: False, failure) as server:
        answer = get(server, "/healthz")
        assert (code_of(answer), body_of(answer)) == (503, {"status": "failing", "failure": "not-served"})
    with serving(lambda request: True, failure) as server:
        assert body_of(get(server, "/healthz"))["error"] == failure.text
    with serving(lambda request: False) as server:
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
    serving = SimpleNamespace(trouble=trouble, database=database) if served else None
    said = trouble or ("fenced" if served and not holds else None)
    failure = member_failure(SimpleNamespace(serving=serving, trouble=said))  # type: ignore[arg-type]
    assert (failure and failure.kind) == kind
    assert (failure and failure.text) == said


def test_status_is_for_those_whom_the_server_is_told_to_let_through() -> None:
    asked: list[Request] = []

    def allows(request: Request) -> bool:
        asked.append(request)
        return request.authorization == "Bearer s3cret"

    with serving(allows) as server:
        assert code_of(get(server, "/status")) == 403
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
    def allows(request: Request) -> bool:
        raise OSError("no such user")

    with serving(allows) as server:
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


# Slow, silent and many


def hung_up(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_bytes_now_and_then_extend_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "TOTAL_S", 0.8)
    with serving() as server, connect(server) as one:
        began_s = time.monotonic()
        one.sendall(b"GET /healthz HTTP/1.1\r\nX: ")

        def drip() -> bool:
            with suppress(OSError):
                one.send(b"a")
            return hung_up(one)

        assert poll(drip, SOON_S)
        assert 0.5 < time.monotonic() - began_s < 3.0


def test_who_does_not_read_his_answer_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "TOTAL_S", 0.8)

    async def large(_: Request) -> Answer:
        return Answer(HTTPStatus.OK, b"x" * (32 << 20))

    with serving(more={"/large": Route(large)}, connections=1) as server, connect(server) as one:
        one.sendall(b"GET /large HTTP/1.1" + LOCAL)
        assert one.recv(1) == b"H"
        assert len(server._connections) == 1
        assert poll(lambda: not server._connections, SOON_S) is True


def test_an_answer_that_hangs_costs_its_client_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "TOTAL_S", 0.8)

    async def never(_: Request) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    with serving(more={"/never": Route(never)}) as server:
        assert get(server, "/never") == b""
        assert code_of(get(server, "/healthz")) == 200


def test_no_number_of_clients_takes_a_thread_or_the_server_from_others() -> None:
    with serving(connections=8) as server:
        threads = threading.active_count()
        held = [connect(server) for _ in range(100)]
        try:
            for one in held:
                with suppress(OSError):
                    one.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
            assert code_of(get(server, "/healthz")) == 200
            assert poll(lambda: sum(not hung_up(one) for one in held) <= 8, SOON_S)
            assert threading.active_count() == threads
        finally:
            for one in held:
                one.close()


def test_no_bytes_end_the_server(caplog: pytest.LogCaptureFixture) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    whole = b"GET /healthz?a=%41 HTTP/1.1\r\nHost: localhost:1\r\nAuthorization: x\r\nContent-Length: 0\r\n\r\n"
    with serving() as server:
        for _ in range(300):
            data = bytearray(whole * chance.randint(1, 3))
            for _ in range(chance.randint(0, 6)):
                at = chance.randrange(len(data))
                data[at : at + chance.randint(0, 3)] = chance.choice(
                    [chance.randbytes(3), b"\r\n", b":", b"", b" ", b"\0"]
                )
            with connect(server) as one, suppress(ConnectionError):
                one.sendall(data)
                one.shutdown(socket.SHUT_WR)
                one.recv(1)
        assert code_of(get(server, "/healthz")) == 200
    assert not caplog.records  # and what strangers send is not worth a line


def test_the_oldest_idle_connection_of_the_peer_with_most_is_dropped() -> None:
    class Busy:
        busy = True

    def made(peer: str, busy: bool = False) -> Connection:
        return Connection(socket.socket(), peer, Busy() if busy else None)  # type: ignore[arg-type]

    honest, first, second, busy = made("10.0.0.1"), made("6.6.6.6"), made("6.6.6.6"), made("6.6.6.6", busy=True)
    try:
        assert whom_to_drop([honest, busy, first, second]) is first
        assert whom_to_drop([honest, busy]) is honest
        assert whom_to_drop([busy]) is None
        assert whom_to_drop([]) is None
    finally:
        for one in (honest, first, second, busy):
            one.socket.close()


def test_while_all_are_being_answered_a_newcomer_is_hung_up_on() -> None:
    going = threading.Event()

    async def slow(_: Request) -> Answer:
        while not going.is_set():
            await asyncio.sleep(0.01)
        return Answer(HTTPStatus.OK, b"done")

    with serving(more={"/slow": Route(slow)}, connections=2) as server, connect(server) as one, connect(server) as two:
        for each in (one, two):
            each.sendall(b"GET /slow HTTP/1.1" + LOCAL)
        assert poll(lambda: sum(each.busy for each in list(server._connections)) == 2, SOON_S)
        assert get(server, "/healthz") == b""
        going.set()
        for each in (one, two):
            assert b"".join(iter(lambda each=each: each.recv(1 << 16), b"")).endswith(b"done")  # type: ignore[misc]
        assert poll(lambda: code_of(get(server, "/healthz")) == 200, SOON_S)


def test_a_server_that_lacks_descriptors_answers_when_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "ACCEPT_AGAIN_S", 0.05)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving() as server:
        assert code_of(get(server, "/healthz")) == 200
        assert poll(lambda: not server._connections, SOON_S) is True
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, before[1]))  # one is left: the client's
        try:
            one = connect(server)
            one.sendall(b"GET /healthz HTTP/1.1" + LOCAL)
            assert poll(lambda: "OSError" in map(str, server._rarely._said), SOON_S)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        with one:
            assert code_of(one.recv(1 << 16)) == 200


def test_http_leaves_descriptors_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    for hard in (64, 256, 1024, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda which, hard=hard: (hard, hard))
        most = limits.http_connections()
        assert 4 <= most <= limits.MAX_HTTP_CONNECTIONS
        assert hard == resource.RLIM_INFINITY or most <= hard // 8


# Beyond loopback


def test_beyond_loopback_there_is_no_plain_http_unless_it_is_asked_for(tmp_path: Path) -> None:
    everywhere = Address("0.0.0.0", 7421)
    with pytest.raises(ConfigError):
        certificate_for(Tls(), everywhere, loopback=False)
    with pytest.raises(ConfigError):
        certificate_for(Tls(cert=tmp_path / "c"), everywhere, loopback=False)
    with pytest.raises(ConfigError):
        certificate_for(Tls(cert=tmp_path / "c", key=tmp_path / "k"), everywhere, loopback=False)
    assert certificate_for(Tls(insecure=True), everywhere, loopback=False) is None
    for address in (Address("0.0.0.0", 0), Address("[::]", 0)):
        with pytest.raises(ConfigError):
            HttpServer(address, {}, near, connections=1)


def test_a_primary_with_plain_http_for_everybody_does_not_start(tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    sqlite3.connect(database).execute("CREATE TABLE t (x)").connection.close()
    before = sorted(tmp_path.iterdir())
    done = walcast("primary", database, "--listen", "127.0.0.1:0", "--http", "0.0.0.0:0")
    assert done.returncode == 1
    assert "--tls-cert" in done.stderr
    assert sorted(tmp_path.iterdir()) == before  # refused before anything was changed


def test_a_name_is_bound_to_an_address_of_its_own() -> None:
    with bind(Address("localhost", 0)) as bound:
        assert is_loopback(bound.getsockname()[0])
    with pytest.raises(ConfigError):
        bind(Address("192.0.2.1", 0))  # nobody's, by RFC 5737


def test_a_primary_answers_by_the_names_that_it_was_given(tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    sqlite3.connect(database).execute("CREATE TABLE t (x)").connection.close()
    arguments = ["primary", str(database), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json"]
    node = Node([*arguments, "--http-host", "a.example", "--http-host", "B.example"], tmp_path, "primary").start()
    try:
        address = Address.parse(node.ready()["http"])
        codes = {}
        for host in (str(address), "a.example", "b.example", "evil.test"):
            connection = http.client.HTTPConnection(address.host, address.port, timeout=SOON_S)
            connection.request("GET", "/status", headers={"Host": host})
            answer = connection.getresponse()
            codes[host] = answer.status
            assert (b"app.db" in answer.read()) is (answer.status == 200)
            connection.close()
        assert list(codes.values()) == [200, 200, 200, 421]
    finally:
        node.end()


# HTTPS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two for 127.0.0.1, each its own CA, by the openssl command."""
    folder = tmp_path_factory.mktemp("tls")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("one", "two"):
        files = ("-keyout", f"{name}.key.pem", "-out", f"{name}.cert.pem")
        about = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1")
        subprocess.run(["openssl", "req", "-x509", *curve, *files, *about], check=True, capture_output=True, cwd=folder)
    return folder


@pytest.fixture
def https(certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[HttpServer, Path]]:
    monkeypatch.setattr(http_server, "is_loopback", lambda address: False)
    monkeypatch.setattr(http_server, "TOTAL_S", 1.5)
    use(certificates, "one", tmp_path)
    with serving(tls=Tls(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")) as server:
        yield server, tmp_path


def use(certificates: Path, name: str, folder: Path) -> None:
    for kind in ("cert", "key"):
        new = folder / f"{kind}.new"
        new.write_bytes((certificates / f"{name}.{kind}.pem").read_bytes())
        new.replace(folder / f"{kind}.pem")


def over_tls(server: HttpServer, trusted: Path, data: bytes) -> bytes:
    context = ssl.create_default_context(cafile=str(trusted))
    with connect(server) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as one:
        one.sendall(data)
        got = b""
        while part := one.recv(1 << 16):
            got += part
        return got


def test_beyond_loopback_https_is_served_and_no_plain_http(https: tuple[HttpServer, Path], certificates: Path) -> None:
    server, _ = https
    answer = over_tls(server, certificates / "one.cert.pem", b"GET /status HTTP/1.1" + LOCAL)
    assert body_of(answer) == {"role": "primary"}
    assert b"HTTP/1.1" not in get(server, "/healthz")


def test_a_new_certificate_is_used_and_a_broken_one_is_not(https: tuple[HttpServer, Path], certificates: Path) -> None:
    server, folder = https
    ask = b"HEAD /healthz HTTP/1.1" + LOCAL
    (folder / "cert.pem").write_bytes((certificates / "two.cert.pem").read_bytes())  # its key is not there yet
    assert over_tls(server, certificates / "one.cert.pem", ask)
    use(certificates, "two", folder)
    assert over_tls(server, certificates / "two.cert.pem", ask)
    (folder / "key.pem").unlink()
    assert over_tls(server, certificates / "two.cert.pem", ask)


def test_a_tls_handshake_has_the_same_deadline(https: tuple[HttpServer, Path], certificates: Path) -> None:
    server, _ = https
    with connect(server) as silent, connect(server) as slow:
        slow.sendall(b"\x16\x03\x01")
        began_s = time.monotonic()
        assert poll(lambda: hung_up(silent) and hung_up(slow), SOON_S)
        assert time.monotonic() - began_s < 4.0
    assert over_tls(server, certificates / "one.cert.pem", b"HEAD /healthz HTTP/1.1" + LOCAL)


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

"""Slow, silent, many and malformed clients of `--http` cost themselves, not the others."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import socket
import threading
import time
from contextlib import suppress
from http import HTTPStatus

import pytest
from support.http_asked import (
    LOCAL,
    SOON_S,
    code_of,
    connect,
    get,
    hung_up,
    serving,
)
from support.nodes import poll

from walcast_node.http import server as http_server
from walcast_node.http.app import Route, Sees
from walcast_node.http.request import Answer, Request
from walcast_node.http.server import Connection, whom_to_drop
from walcast_node.process import limits


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

    async def large(_: Request, __: Sees) -> Answer:
        return Answer(HTTPStatus.OK, b"x" * (32 << 20))

    with serving(more={"/large": Route(large)}, connections=1) as server, connect(server) as one:
        one.sendall(b"GET /large HTTP/1.1" + LOCAL)
        assert one.recv(1) == b"H"
        assert len(server._connections) == 1
        assert poll(lambda: not server._connections, SOON_S) is True


def test_an_answer_that_hangs_costs_its_client_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "TOTAL_S", 0.8)

    async def never(_: Request, __: Sees) -> Answer:
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


def test_a_body_that_is_malformed_is_refused_once_and_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as server, connect(server) as one:
        one.sendall(b"POST /healthz HTTP/1.1" + LOCAL[:-2] + b"Transfer-Encoding: chunked\r\n\r\nno size\r\n")
        assert code_of(one.recv(4096)) == 400
        assert poll(lambda: hung_up(one), SOON_S)
    assert not caplog.records


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

    async def slow(_: Request, __: Sees) -> Answer:
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

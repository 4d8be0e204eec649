"""Who takes connections, descriptors or threads without end hurts himself: not capture, not the app, not the others."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from support.e2e_state import create
from support.nodes import Node, follower, poll, position_of, primary, wait_level

from walcast import local, wire
from walcast.errors import Unavailable
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.wire import Address
from walcast_node.http import server as http_module
from walcast_node.http.routes import near, routes
from walcast_node.http.server import HttpServer
from walcast_node.process import limits, local_service
from walcast_node.process.grpc_server import LIMITS, listen
from walcast_node.process.local_service import LocalService
from walcast_primary.publish.gate import Gate
from walcast_primary.publish.publisher import Publisher

SOON_S = 15.0
COMMIT = "UPDATE accounts SET balance = balance + 1"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    create(path)
    return path


@contextmanager
def silent(address: str, count: int) -> Iterator[list[socket.socket]]:
    """Connections that never say a word."""
    host, port = address.rsplit(":", 1)
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            with suppress(OSError):
                held.append(socket.create_connection((host, int(port)), timeout=1.0))
        yield held
    finally:
        for one in held:
            one.close()


@contextmanager
def descriptors(pid: int, most: int) -> Iterator[None]:
    """A process of ours may have no more than these."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def count_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


def test_silent_connections_neither_end_a_primary_nor_disturb_its_streams(db: Path, tmp_path: Path) -> None:
    replica = tmp_path / "replica" / "app.db"
    arguments = ["primary", str(db), "--listen", "127.0.0.1:0", "--json", "--log-format", "json"]
    one = Node(arguments, db.parent, "primary", script="few_descriptors.py").start()
    try:
        address = one.ready()["listen"]
        with (
            follower(replica, address) as other,
            closing(sqlite3.connect(db, isolation_level=None)) as app,
        ):
            wait_level(address, replica)
            with silent(address, 500):
                assert poll(lambda: count_descriptors(one.pid) > 100, SOON_S)
                for _ in range(5):
                    app.execute(COMMIT)
                goal = position_at(db)
                assert poll(lambda: position_of(replica) == goal, SOON_S)
                assert count_descriptors(one.pid) < 300
            wait_level(address, replica)
            assert not other.events("trying again")
            assert one.running
    finally:
        one.end()


def position_at(db: Path) -> Position:
    """What the primary answers on its local socket."""
    with local.ask(db, "barrier", within_s=10.0) as (answer, _):
        return Position.parse(answer["position"])


@pytest.mark.slow
def test_a_follower_without_descriptors_goes_on_when_it_has_some(db: Path, tmp_path: Path) -> None:
    replica = tmp_path / "replica" / "app.db"
    with (
        primary(db) as one,
        follower(replica, one.address) as other,
        closing(sqlite3.connect(db, isolation_level=None)) as app,
    ):
        wait_level(one.address, replica)
        with descriptors(other.pid, count_descriptors(other.pid)), silent(other.ready()["listen"], 50):
            for _ in range(20):
                app.execute(COMMIT)
            one.stop()
            one.start().ready()
            time.sleep(1.0)
            assert other.running
        wait_level(one.address, replica)


def test_a_server_closes_what_is_more_than_it_may_have_and_takes_others_later() -> None:
    async def run() -> None:
        publisher = Publisher({}, lambda: pb.StatusReply(role="primary"), Gate(listening=lambda: address))
        server, _, address = listen(publisher, Address("127.0.0.1", 0), wire.Tls(), connections=10)
        await server.start()
        try:
            with silent(str(address), 30) as held:
                await asyncio.sleep(0.3)
                left = [one for one in held if not is_closed(one)]
                assert len(left) == 10
            await asyncio.sleep(0.3)
            async with grpc.aio.insecure_channel(str(address)) as channel:
                reply = await rpc.ReplicationStub(channel).Status(pb.StatusRequest(), timeout=5.0)
                assert reply.role == "primary"
        finally:
            await server.stop(0)

    asyncio.run(run())
    assert dict(LIMITS)["grpc.server_handshake_timeout_ms"] <= 10_000


def is_closed(one: socket.socket) -> bool:
    """By the other side."""
    one.setblocking(False)
    try:
        while one.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def test_connections_leave_descriptors_for_the_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    for hard in (64, 256, 1024, 4096, 1 << 20, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda which, hard=hard: (hard, hard))
        for databases in (1, 10, limits.capacity()):
            most = limits.connections(databases)
            assert most > 0
            if hard >= 1024 and hard != resource.RLIM_INFINITY:
                assert most + limits.FILES_EACH * databases <= hard - 100
        assert 4 <= limits.local_calls() <= limits.MAX_LOCAL_CALLS


# The local socket


def test_more_local_calls_than_there_may_be_are_told_to_ask_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_service, "local_calls", lambda: 4)
    (tmp_path / "app.db-walcast").mkdir()
    path = tmp_path / "app.db"

    async def run() -> None:
        now, go = 0, asyncio.Event()

        async def slow(_: dict[str, object]) -> dict[str, object]:
            nonlocal now
            now += 1
            await go.wait()
            return {"done": True}

        def ask() -> object:
            with local.ask(path, "slow") as (answer, _):
                return answer["done"]

        service = LocalService(path, {"slow": slow}, lambda: None)
        await service.start()
        asking = [asyncio.create_task(asyncio.to_thread(ask)) for _ in range(4)]
        while now < 4:
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await asyncio.to_thread(ask)
        go.set()
        assert await asyncio.gather(*asking) == [True] * 4
        assert await asyncio.to_thread(ask)
        await service.stop()
        assert not (tmp_path / "app.db-walcast" / "socket").exists()

    asyncio.run(run())


def test_a_socket_that_cannot_be_made_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_service, "LISTEN_AGAIN_S", 0.02)
    path = tmp_path / "app.db"

    async def run() -> None:
        async def hello(_: dict[str, object]) -> dict[str, object]:
            return {"hello": True}

        service = LocalService(path, {"hello": hello}, lambda: None)
        await service.start()
        (tmp_path / "app.db-walcast").mkdir()

        def ask() -> bool:
            with suppress(Exception), local.ask(path, "hello") as (answer, _):
                return bool(answer["hello"])
            return False

        assert await asyncio.to_thread(poll, ask, SOON_S)
        await service.stop()

    asyncio.run(run())


# HTTP


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    monkeypatch.setattr(http_module, "TOTAL_S", 1.5)

    async def facts(_: object) -> dict[str, object]:
        return {"role": "primary"}

    made = HttpServer(Address("127.0.0.1", 0), routes(list, facts, bytes), near, connections=4)
    yield made
    made.close()


def status(address: Address) -> object:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=5.0)
    try:
        connection.request("GET", "/status")
        return json.loads(connection.getresponse().read())
    except OSError:
        return None
    finally:
        connection.close()


def test_http_has_so_many_connections_at_a_time_and_none_for_long(server: HttpServer) -> None:
    assert status(server.listening) == {"role": "primary"}
    with silent(str(server.listening), 20) as held:
        assert poll(lambda: sum(is_closed(one) for one in held) == 16, 5.0)
        assert status(server.listening) == {"role": "primary"}  # who asks takes the place of who does not
        began_s = time.monotonic()
        for one in held:  # a byte now and then is no request either
            with suppress(OSError):
                one.send(b"G")
        assert poll(lambda: all(is_closed(one) for one in held), 5.0)
        assert time.monotonic() - began_s < 4.0
        assert status(server.listening) == {"role": "primary"}


def test_http_answers_while_no_thread_can_be_started(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert status(server.listening) == {"role": "primary"}


def test_connections_to_http_take_no_descriptor_from_the_databases(db: Path) -> None:
    arguments = ["primary", str(db), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json"]
    one = Node(arguments, db.parent, "primary", script="few_descriptors.py").start()
    try:
        address = Address.parse(one.ready()["http"])
        with closing(sqlite3.connect(db, isolation_level=None)) as app, silent(str(address), 450):
            assert count_descriptors(one.pid) < 200
            app.execute(COMMIT)
            assert position_at(db)
            assert isinstance(status(address), dict)
    finally:
        one.end()

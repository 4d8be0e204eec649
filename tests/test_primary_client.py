"""`walcast.Primary` against a real server: barriers, tokens, refusals, deadlines."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

import walcast
from walcast import by_grpc
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc

ROOT = Path(__file__).parent.parent
PATIENCE_S = 20.0

# A primary, and followers when told so: in a process of its own, for two SQLite libraries must never open one file in
# one process, and apps have the stock one. Each line on its standard input is a command, answered by a line.
SERVER = """
import asyncio, sys
from pathlib import Path
import grpc
from walcast_follower.subscribe.primary_client import Client
from walcast_follower.following import Following
from walcast_primary.database import Database
from walcast_primary.publish.publisher import Publisher
from walcast_primary.publish.served_database import Served
from walcast_primary.publish.gate import Gate
from walcast import wire
from walcast.rpc import replication_pb2 as pb, replication_pb2_grpc as rpc

database = Database(Path(sys.argv[1]), "app")
port, tasks = 0, {}

def status():
    reply = pb.StatusReply(role="primary", term=1, protocol=wire.PROTOCOL_VERSION)
    position = wire.position_message(database.log.position, 1)
    reply.databases.add(name="app", path=str(database.path), position=position, page_size=4096, pages=2)
    reply.databases[0].followers.add(id="f1", applied_txid=1, lag_txids=2, lag_ms=0.75, state="streaming")
    return reply

async def start():
    global port, server, publisher
    publisher = Publisher({"app": Served(database)}, status, Gate(listening=lambda: wire.Address("127.0.0.1", port)))
    server = grpc.aio.server(options=wire.OPTIONS)
    rpc.add_ReplicationServicer_to_server(publisher, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return port

async def stopping():
    publisher.stop()

async def stop():
    publisher.stop()
    await server.stop(0.2)

async def position():
    return database.log.position

async def follow(name, path):
    client = Client(wire.Address("127.0.0.1", port), wire.Tls(), database="app", follower_id=name)
    follower = Following(Path(path), client)
    tasks[name] = client, asyncio.create_task(follower.run())
    await follower.connected.wait()

async def unfollow(name):
    client, task = tasks.pop(name)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.close()

async def main():
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, *arguments = line.split()
        print(await globals()[command](*arguments), flush=True)
    for name in list(tasks):
        await unfollow(name)
    await stop()

database.start()
asyncio.run(main())
database.stop()
"""


class Server:
    """A primary in another process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = f"127.0.0.1:{self.tell('start')}"

    def tell(self, command: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        print(command, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f"the server ended at {command!r}"
        return answer.strip()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("primary") / "app.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (x)")
    return path


@pytest.fixture
def app(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Server]:
    command = [sys.executable, "-c", SERVER, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Server(process)
        assert process.stdin
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0


@pytest.fixture
def primary(server: Server) -> Iterator[walcast.Primary]:
    with walcast.Primary(server.address, name="app") as primary:
        yield primary


@contextmanager
def following(server: Server, path: Path, name: str) -> Iterator[None]:
    """A real follower of `server` at `path`, connected."""
    path.parent.mkdir()
    server.tell(f"follow {name} {path}")
    try:
        yield
    finally:
        server.tell(f"unfollow {name}")


@contextmanager
def playing(servicer: rpc.ReplicationServicer) -> Iterator[str]:
    """The address of a server that answers as `servicer` does."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()
        rpc.add_ReplicationServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


# Barriers


def test_a_barrier_covers_every_commit_made_before_it(
    primary: walcast.Primary, server: Server, app: sqlite3.Connection
) -> None:
    last = primary.barrier()
    for x in range(50):
        app.execute("INSERT INTO t VALUES (?)", [x])
        token = primary.barrier()
        assert token > last
        last = token
    assert (last.term, last.txid) == (1, walcast.Position.parse(server.tell("position")).txid)
    assert primary.barrier() == last


def test_a_reader_finds_its_write_on_a_replica(
    primary: walcast.Primary, server: Server, app: sqlite3.Connection, tmp_path: Path
) -> None:
    app.execute("DELETE FROM t")
    copy = tmp_path / "edge" / "app.db"
    replica = walcast.Replica(copy)
    with following(server, copy, "f1"):
        replica.wait_for(primary.barrier(), timeout=PATIENCE_S)
        with closing(replica.connect()) as db:
            for x in range(50):
                app.execute("INSERT INTO t VALUES (?)", [x])
                replica.wait_for(str(primary.barrier()), timeout=PATIENCE_S)
                assert db.execute("SELECT max(x) FROM t").fetchone() == (x,)
        assert replica.state() == "streaming"
        assert replica.lag().txids == 0
        assert replica.lag().ms < PATIENCE_S * 1000
    assert replica.state() == "stopped"
    with closing(replica.connect()) as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (50,)


def test_a_barrier_with_followers_returns_when_they_have_applied(
    primary: walcast.Primary, server: Server, app: sqlite3.Connection, tmp_path: Path
) -> None:
    copies = [tmp_path / name / "app.db" for name in ("one", "two")]
    with following(server, copies[0], "f1"), following(server, copies[1], "f2"):
        for x in range(10):
            app.execute("INSERT INTO t VALUES (?)", [x])
            token = primary.barrier(followers=2, timeout=PATIENCE_S)
            for copy in copies:
                walcast.Replica(copy).wait_for(token, timeout=PATIENCE_S)


def test_too_few_followers_keep_the_token(primary: walcast.Primary, app: sqlite3.Connection) -> None:
    app.execute("INSERT INTO t VALUES (1)")
    began = time.monotonic()
    with pytest.raises(walcast.NotEnoughFollowers, match="0 of 2 followers") as caught:
        primary.barrier(followers=2, timeout=0.1)
    assert 0.1 <= time.monotonic() - began < PATIENCE_S
    error = caught.value
    assert isinstance(error, walcast.Unavailable)
    assert (error.applied, error.wanted) == (0, 2)
    assert error.token == primary.barrier()
    assert error.position.txid == error.token.txid


def test_many_threads_share_a_primary(primary: walcast.Primary, app: sqlite3.Connection) -> None:
    app.execute("INSERT INTO t VALUES (1)")
    with ThreadPoolExecutor(16) as pool:
        tokens = set(pool.map(lambda _: primary.barrier(), range(200)))
    assert tokens == {primary.barrier()}


@pytest.mark.parametrize(("followers", "timeout"), [(-1, 1.0), (0, -1.0), (0, float("nan"))])
def test_a_barrier_that_makes_no_sense_is_refused_here(followers: int, timeout: float) -> None:
    with pytest.raises(ValueError, match="negative"):
        walcast.Primary("127.0.0.1:1").barrier(followers, timeout)


# Status


def test_status_is_the_primarys_as_json_has_it(primary: walcast.Primary, server: Server, path: Path) -> None:
    txid = primary.barrier().txid
    status = primary.status()
    assert (status["role"], status["term"]) == ("primary", 1)
    (database,) = status["databases"]
    assert (database["name"], database["path"], database["txid"]) == ("app", str(path), txid)
    assert database["position"] == server.tell("position")
    assert database["archive"] is None
    (follower,) = database["followers"]
    assert (follower["id"], follower["lag_ms"], follower["state"]) == ("f1", 0.75, "streaming")


# What goes wrong


def test_an_unknown_database_is_a_configuration_error(server: Server) -> None:
    message = f"{server.address}: no database 'other' here; there is: app"
    with walcast.Primary(server.address, name="other") as primary, pytest.raises(walcast.ConfigError, match=message):
        primary.barrier()


def test_the_only_database_needs_no_name(server: Server) -> None:
    with walcast.Primary(server.address) as primary:
        assert primary.barrier().term == 1


def test_a_primary_that_is_stopping_is_unavailable(primary: walcast.Primary, server: Server) -> None:
    server.tell("stopping")
    with pytest.raises(walcast.Unavailable, match="the primary is stopping"):
        primary.barrier()
    server.tell("stop")
    server.tell("start")


def test_a_primary_that_comes_back_is_found_again(primary: walcast.Primary, server: Server) -> None:
    token = primary.barrier()
    server.tell("stop")
    with pytest.raises(walcast.Unavailable):
        primary.barrier()
    server.tell("start")
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            assert primary.barrier() == token
            break
        except walcast.Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_nobody_there_is_one_clear_line() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with walcast.Primary(address) as primary, pytest.raises(walcast.Unavailable) as caught:
            primary.barrier()
    assert str(caught.value).startswith(f"{address}: cannot be reached: ")
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_answer_is_given_up_after_the_deadline() -> None:
    class Silent(rpc.ReplicationServicer):
        async def Barrier(self, request: pb.BarrierRequest, context: object) -> pb.BarrierReply:  # noqa: N802
            await asyncio.sleep(PATIENCE_S)
            return pb.BarrierReply()

    began = time.monotonic()
    late = pytest.raises(walcast.Unavailable, match=r"no answer within 1\.1 s")
    with playing(Silent()) as address, walcast.Primary(address) as primary, late:
        primary.barrier(timeout=0.1)
    assert 1.1 <= time.monotonic() - began < PATIENCE_S


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pb.REFUSAL_KIND_PROTOCOL_VERSION, walcast.ConfigError),
        (pb.REFUSAL_KIND_UNKNOWN_DATABASE, walcast.ConfigError),
        (pb.REFUSAL_KIND_STOPPING, walcast.Unavailable),
        (pb.REFUSAL_KIND_TOO_MANY, walcast.Unavailable),
        (pb.REFUSAL_KIND_OLDER_TERM, walcast.Unavailable),
        (99, walcast.Unavailable),
    ],
)
def test_a_refusal_is_translated_by_its_kind(kind: Any, expected: type[walcast.WalcastError]) -> None:
    class Refusing(rpc.ReplicationServicer):
        async def Barrier(self, request: pb.BarrierRequest, context: object) -> pb.BarrierReply:  # noqa: N802
            return pb.BarrierReply(refusal=pb.Refusal(kind=kind, detail="because"))

    with playing(Refusing()) as address, walcast.Primary(address) as primary:
        with pytest.raises(walcast.WalcastError) as caught:
            primary.barrier()
        assert type(caught.value) is expected
        assert str(caught.value) == f"{address}: because"


def test_who_is_not_the_primary_says_where_it_is() -> None:
    with playing(Elsewhere("")) as address, walcast.Primary(address) as primary:
        with pytest.raises(walcast.NotPrimary, match="not the primary") as caught:
            primary.barrier()
        assert caught.value.primary == ""
        assert isinstance(caught.value, walcast.Unavailable)


def test_a_server_without_the_call_is_no_primary() -> None:
    class Other(rpc.ReplicationServicer):
        pass

    refused = pytest.raises(walcast.ConfigError, match="not a walcast primary")
    with playing(Other()) as address, walcast.Primary(address) as primary, refused:
        primary.status()


@pytest.mark.parametrize("address", ["nowhere", "host:port", "::1:7420"])
def test_what_is_no_address_is_a_configuration_error(address: str) -> None:
    with pytest.raises(walcast.ConfigError):
        walcast.Primary(address).barrier()


def test_plain_text_beyond_this_machine_must_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(walcast.ConfigError, match="insecure"):
        walcast.Primary("db.example.com:7420").barrier()
    with pytest.raises(walcast.ConfigError, match="No such file"):
        walcast.Primary("db.example.com:7420", tls_ca=tmp_path / "ca.pem").barrier()


# Several addresses


class Elsewhere(rpc.ReplicationServicer):
    """A node that is not the primary; `primary`, where that is."""

    def __init__(self, primary: str) -> None:
        self.primary = primary
        self.asked = 0

    async def Barrier(self, request: pb.BarrierRequest, context: object) -> pb.BarrierReply:  # noqa: N802
        self.asked += 1
        kind = pb.REFUSAL_KIND_NOT_PRIMARY
        return pb.BarrierReply(refusal=pb.Refusal(kind=kind, detail="not the primary", primary=self.primary))


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody listens."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_one_that_cannot_be_reached_leads_to_the_next_and_is_not_asked_again_first(
    primary: walcast.Primary, server: Server, nobody: str
) -> None:
    other = Elsewhere("")
    with playing(other) as address, walcast.Primary(f"{nobody}, {address},{server.address}", "app") as several:
        for _ in range(3):
            assert several.barrier() == primary.barrier()
        assert other.asked == 1
        assert several.status()["databases"][0]["name"] == "app"


def test_one_of_several_that_says_where_the_primary_is_leads_there(
    primary: walcast.Primary, server: Server, nobody: str
) -> None:
    other = Elsewhere(server.address)
    with playing(other) as address, walcast.Primary(f"{address},{nobody}") as led:
        for _ in range(2):
            assert led.barrier() == primary.barrier()
        assert other.asked == 1
        server.tell("stop")
        with pytest.raises(walcast.NotPrimary):  # back to what was given, which still says the same
            led.barrier()
        server.tell("start")
        assert other.asked == 2


def test_nodes_that_point_at_each_other_are_asked_once_each(nobody: str) -> None:
    one, two = Elsewhere(""), Elsewhere("")
    with playing(one) as first, playing(two) as second, walcast.Primary(f"{first},{nobody},{second}") as several:
        one.primary, two.primary = second, first
        with pytest.raises(walcast.NotPrimary) as caught:
            several.barrier()
        assert (one.asked, two.asked) == (1, 1)
        assert all(address in str(caught.value) for address in (first, second, nobody))
        assert "\n" not in str(caught.value)


def test_one_that_takes_connections_and_says_nothing_leaves_time_for_the_next(
    primary: walcast.Primary, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_grpc, "CONNECT_MS", 200)
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with walcast.Primary(f"{address},{server.address}", "app") as several:
            assert several.barrier() == primary.barrier()


def test_nobody_is_told_anything_in_plain_text_because_another_node_says_so() -> None:
    with playing(Elsewhere("db.example.com:7420")) as address, walcast.Primary(address) as primary:
        with pytest.raises(walcast.NotPrimary) as caught:
            primary.barrier()
        assert caught.value.primary == "db.example.com:7420"


def test_what_is_wrong_for_good_is_said_at_once(server: Server, nobody: str) -> None:
    several = walcast.Primary(f"{server.address},{nobody}", "other")
    with several, pytest.raises(walcast.ConfigError, match="no database 'other' here"):
        several.barrier()


# Life


def test_a_closed_primary_opens_again(primary: walcast.Primary) -> None:
    token = primary.barrier()
    primary.close()
    primary.close()
    assert primary.barrier() == token


def test_a_worker_that_was_forked_before_the_first_call_has_its_own_channel(server: Server) -> None:
    code = """
import os, sys, walcast
primary = walcast.Primary(sys.argv[1], name="app")
pid = os.fork()
token = primary.barrier(timeout=10)
primary.close()
os.write(1, token.encode() + b"\\n")
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    command = [sys.executable, "-c", code, server.address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2

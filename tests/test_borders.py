"""What one caller can take of a primary, and what it may say: over a real connection."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.e2e_oracle import Served, served
from support.e2e_state import create

from walcast import wire
from walcast.access import Policy, Role, Rule
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.wire import Address
from walcast_follower.subscribe.primary_client import Client
from walcast_node.process import grpc_unread
from walcast_node.process.grpc_health import WATCHES
from walcast_node.process.grpc_server import MAX_REQUEST_BYTES, SERVICE, listen
from walcast_primary.publish import publisher as publishing
from walcast_primary.publish.followers import Follower
from walcast_primary.publish.gate import Gate
from walcast_primary.publish.publisher import Publisher
from walcast_primary.publish.quotas import BARRIERS, CALLS, COPIES
from walcast_primary.publish.served_database import Served as ServedDatabase

SOON_S = 10.0
READERS = Policy((Rule("anyone", frozenset((Role.STATUS, Role.REPLICATE))),))  # strangers, held to a share


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "app.db"
    create(path)
    with served(path) as made:
        yield made


@pytest.fixture
def big(tmp_path: Path) -> Iterator[Served]:
    """More than flow control lets go to a receiver that does not read, and more checksums than fit in one request."""
    path = tmp_path / "app.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript("PRAGMA page_size = 512; PRAGMA journal_mode = WAL; CREATE TABLE t (a); BEGIN")
    rng = random.Random(1)
    db.executemany("INSERT INTO t VALUES (?)", ((rng.randbytes(400),) for _ in range(20_000)))
    db.execute("COMMIT")
    db.close()
    with served(path) as made:
        yield made


@asynccontextmanager
async def publishing_of(app: Served) -> AsyncIterator[tuple[Any, Publisher, Address]]:
    gate = Gate(READERS, listening=lambda: address, trust_user=False)
    publisher = Publisher({"app": ServedDatabase(app.database)}, lambda: pb.StatusReply(role="primary"), gate)
    server, _, address = listen(publisher, Address("127.0.0.1", 0), wire.Tls(), connections=10)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(str(address), options=[("grpc.max_send_message_length", -1)]) as channel:
            yield rpc.ReplicationStub(channel), publisher, address
    finally:
        publisher.stop()
        await server.stop(0)


def hello(app: Served, **facts: Any) -> pb.FollowerMessage:
    position = wire.position_message(app.base_position, 1)
    facts = {"follower_id": "f", "database": "app", "position": position} | facts
    return pb.FollowerMessage(hello=pb.Hello(protocol=wire.PROTOCOL_VERSION, **facts))


def copy_hello(**facts: Any) -> pb.CopyRequest:
    facts = {"follower_id": "f", "database": "app"} | facts
    return pb.CopyRequest(hello=pb.CopyHello(protocol=wire.PROTOCOL_VERSION, **facts))


async def opened(call: Any, first: Any) -> Any:
    """The call's first answer."""
    await call.write(first)
    async with asyncio.timeout(SOON_S):
        return await call.read()


async def until(what: Any) -> None:
    async with asyncio.timeout(SOON_S):
        while not what():
            await asyncio.sleep(0.01)


BAD = ["A" * 201, "x\n09:00:00.000 warning deposed", "\x1b[2J", "\u202egnp.exe"]


@pytest.mark.parametrize("text", BAD, ids=ascii)
def test_a_name_that_no_log_should_show_is_refused_wherever_it_comes_in(app: Served, text: str) -> None:
    async def run() -> None:
        async with publishing_of(app) as (stub, publisher, _):
            for facts in ({"follower_id": text}, {"address": text + ":1"}, {"database": text}):
                assert (await opened(stub.Stream(), hello(app, **facts))).HasField("refusal"), facts
            assert (await opened(stub.Stream(), hello(app, address="x"))).HasField("refusal")
            for facts in ({"follower_id": text}, {"database": text}):
                assert (await opened(stub.Copy(), copy_hello(**facts))).HasField("refusal"), facts
            replies = [
                await stub.Barrier(pb.BarrierRequest(database=text)),
                await stub.Switchover(pb.SwitchoverRequest(database="app", to=text)),
                await stub.Switchover(pb.SwitchoverRequest(database=text, to="f")),
                await stub.StepDown(pb.StepDownRequest(database="app", term=2, primary=text + ":1")),
            ]
            for reply in replies:
                assert text not in reply.refusal.detail
                assert reply.refusal.detail.isprintable()
            assert not publisher._databases["app"].followers.connected

    asyncio.run(run())


@pytest.mark.parametrize("method", ["Stream", "Copy", "Barrier"])
def test_a_request_that_is_too_big_is_refused_before_it_is_decoded(app: Served, method: str) -> None:
    async def run() -> None:
        async with publishing_of(app) as (stub, _, _):
            big = "A" * MAX_REQUEST_BYTES
            if method == "Barrier":
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Barrier(pb.BarrierRequest(database=big))
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                return
            call = stub.Stream() if method == "Stream" else stub.Copy()
            await call.write(hello(app, follower_id=big) if method == "Stream" else copy_hello(follower_id=big))
            async with asyncio.timeout(SOON_S):
                assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(run())


def test_one_identity_has_no_more_than_its_share_of_streams(app: Served) -> None:
    async def run() -> None:
        async with publishing_of(app) as (stub, publisher, _):
            calls, first = [], []
            for number in range(CALLS.each + 10):
                calls.append(stub.Stream())  # one after the other: without its hello a call is waited for a moment only
                first.append(await opened(calls[-1], hello(app, follower_id=f"f{number}")))
            refused = [message.refusal.kind for message in first if message.HasField("refusal")]
            assert refused == [pb.REFUSAL_KIND_TOO_MANY] * 9  # one beside the share, for one database
            for call in calls:
                call.cancel()
            await until(lambda: publisher._quotas.calls.taken == 0)
            assert (await opened(stub.Stream(), hello(app))).HasField("welcome")

    asyncio.run(run())


def test_calls_without_a_hello_end_and_give_their_places_back(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "HELLO_S", 0.3)
    monkeypatch.setattr(publishing, "REFUSED_HELLO_S", 0.1)

    async def run() -> None:
        async with publishing_of(app) as (stub, publisher, _):
            calls = [stub.Stream() for _ in range(300)] + [stub.Copy() for _ in range(300)]
            async with asyncio.timeout(SOON_S):
                codes = {await call.code() for call in calls}
            assert codes == {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
            await until(lambda: publisher._quotas.calls.taken == 0)

    asyncio.run(run())


def test_calls_whose_request_never_comes_make_room_and_end(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_unread, "UNREAD_MOST", 10)
    monkeypatch.setattr(grpc_unread, "READ_S", 1.0)

    async def run() -> None:
        async with publishing_of(app) as (stub, _, address), grpc.aio.insecure_channel(str(address)) as channel:
            methods = [f"/{SERVICE}/Status", f"/{SERVICE}/Barrier", "/grpc.health.v1.Health/Check"]
            silent = [channel.stream_unary(methods[number % 3])() for number in range(60)]
            await until(lambda: sum(call.done() for call in silent) == 50)
            assert (await stub.Status(pb.StatusRequest())).role == "primary"  # asked by a stranger with that role
            async with asyncio.timeout(SOON_S):
                assert {await call.code() for call in silent} == {grpc.StatusCode.INVALID_ARGUMENT}

    asyncio.run(run())


def test_each_peer_watches_the_health_a_few_times(app: Served) -> None:
    async def run() -> None:
        async with publishing_of(app) as (_, _, address), grpc.aio.insecure_channel(str(address)) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            watching = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(WATCHES.each + 5)]
            await until(lambda: sum(call.done() for call in watching) == 5)
            refused = [await call.code() for call in watching if call.done()]
            assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 5
            serving = health_pb2.HealthCheckResponse.SERVING
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == serving
            for call in watching:
                call.cancel()

    asyncio.run(run())


def test_copies_that_send_nothing_lose_their_places(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "SILENT_S", 0.5)

    async def run() -> None:
        async with publishing_of(app) as (stub, publisher, _):
            held = [stub.Copy() for _ in range(COPIES.each)]
            for call in held:
                await call.write(copy_hello())
            await until(lambda: publisher._quotas.copies.taken == COPIES.each)
            one_more = await opened(stub.Copy(), copy_hello())
            assert one_more.refusal.kind == pb.REFUSAL_KIND_TOO_MANY
            await until(lambda: publisher._quotas.copies.taken == 0)
            call = stub.Copy()
            await call.write(copy_hello())
            await call.done_writing()
            assert (await call.read()).HasField("start")

    asyncio.run(run())


def test_a_copy_that_nobody_reads_loses_its_place_and_pins_no_log(big: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "STALL_S", 0.5)

    async def run() -> None:
        async with publishing_of(big) as (stub, publisher, _):
            call = stub.Copy()
            await call.write(copy_hello())
            await call.done_writing()
            await until(lambda: publisher._quotas.copies.taken == 1)
            await until(lambda: publisher._quotas.copies.taken == 0)
            assert big.database.log._pins == 0

    asyncio.run(run())


def test_page_checksums_of_a_big_replica_come_in_pieces(big: Served) -> None:
    async def run() -> None:
        async with publishing_of(big) as (_, _, address):
            checksums = big.database.log.checksums
            assert checksums is not None
            theirs = np.array([checksums.get(pgno) for pgno in range(1, checksums.commit_pages + 1)], np.uint64)
            assert theirs.nbytes > MAX_REQUEST_BYTES
            client = Client(address, wire.Tls(), database="app", follower_id="f")
            try:
                async with client.copy(512, theirs) as copy:
                    sent = 0
                    while not (message := await copy.read()).HasField("end"):
                        sent += len(message.pages.pgnos)
                    assert sent == 0
            finally:
                await client.close()

    asyncio.run(run())


def test_barriers_that_wait_leave_room_for_others(app: Served) -> None:
    async def run() -> None:
        async with publishing_of(app) as (stub, publisher, _):
            waiting = [
                asyncio.ensure_future(stub.Barrier(pb.BarrierRequest(database="app", followers=9, timeout_ms=9000)))
                for _ in range(BARRIERS.each + 5)
            ]
            await until(lambda: sum(call.done() for call in waiting) == 5)
            done = [call.result().refusal.kind for call in waiting if call.done()]
            assert done == [pb.REFUSAL_KIND_TOO_MANY] * 5
            for call in waiting:
                call.cancel()
            await until(lambda: publisher._quotas.barriers.taken == 0)
            assert not (await stub.Barrier(pb.BarrierRequest(database="app"))).HasField("refusal")

    asyncio.run(run())


@pytest.mark.parametrize("echo_us", [-(2**63), -1, 2**63 - 1])
def test_an_echo_of_what_was_never_sent_says_nothing(echo_us: int) -> None:
    follower = Follower("f", "peer", sent_txid=9)
    follower.acknowledged(2**64 - 1, 2**64 - 1, 2**64 - 1, echo_us, 2**32 - 1)
    assert follower.round_trip_us == 0
    assert (follower.received_txid, follower.applied_txid, follower.durable_txid) == (9, 9, 9)
    pb.Heartbeat(round_trip_us=follower.round_trip_us)


def test_a_follower_that_calls_itself_something_else_each_time_does_not_fill_the_log(
    app: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publishing, "BURST_OF_ONE", 5)
    caplog.set_level("INFO", "walcast.primary")

    async def run() -> None:
        async with publishing_of(app) as (stub, publisher, _):
            for number in range(30):
                call = stub.Stream()
                assert (await opened(call, hello(app, follower_id=f"f{number}"))).HasField("welcome")
                call.cancel()
            await until(lambda: publisher._quotas.calls.taken == 0)

    asyncio.run(run())
    assert 0 < sum(line.message == "follower connected" for line in caplog.records) <= 5

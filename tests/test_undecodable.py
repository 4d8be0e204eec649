"""What cannot be decoded costs the connection that it came on, at either end, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import lz4.block
import pytest
from support.e2e_oracle import Served, served
from support.e2e_state import create
from support.writers import sql

import walcast
from walcast import wire
from walcast.errors import ConfigError, ProtocolViolation, Unavailable, WalcastError
from walcast.position import CHECKSUM_FLAG, Position
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.wire import Address
from walcast_follower.following import Following
from walcast_follower.subscribe.copied_pages import Pieces
from walcast_follower.subscribe.primary_client import Client
from walcast_node.process.grpc_server import listen
from walcast_primary.publish import publisher as publishing
from walcast_primary.publish.gate import Gate
from walcast_primary.publish.publisher import Publisher
from walcast_primary.publish.served_database import Served as ServedDatabase

GARBAGE = b"\xff\xff\xff"
PATIENCE_S = 20.0
PREFIX = "/walcast.v1.Replication/"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "app.db"
    create(path)
    with served(path) as made:
        yield made


# The follower's end


class Garbled(grpc.GenericRpcHandler):
    """A primary whose answers, after the `good` ones are bytes that are no message."""

    def __init__(self, *good: Any) -> None:
        self._good = good

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        good = self._good

        async def stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            await anext(aiter(requests))
            for message in good:
                yield message.SerializeToString()
            yield GARBAGE
            await asyncio.sleep(30.0)

        async def one(request: bytes, context: Any) -> bytes:
            return GARBAGE

        if str(details.method).endswith(("Stream", "Copy")):
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(one)


@asynccontextmanager
async def garbled(*good: Any) -> AsyncIterator[Address]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Garbled(*good),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Address("127.0.0.1", port)
    finally:
        await server.stop(0)


WELCOME = pb.PrimaryMessage(welcome=pb.Welcome(protocol=wire.PROTOCOL_VERSION, term=1, page_size=4096))
POSITION = pb.Position(txid=1, checksum=CHECKSUM_FLAG, term=1)
START = pb.CopyReply(start=pb.CopyStart(page_size=4096, commit_pages=1, position=POSITION))


@pytest.mark.parametrize("call", ["stream", "stream later", "copy", "copy later"])
def test_a_follower_that_gets_what_cannot_be_decoded_may_try_again(call: str) -> None:
    later = call.endswith("later")

    async def run() -> None:
        good = [START if call.startswith("copy") else WELCOME] if later else []
        async with garbled(*good) as address:
            client = Client(address, wire.Tls(), database="app", follower_id="f")
            opened = client.copy(0, None) if call.startswith("copy") else client.stream(Position(), 0)
            try:
                with pytest.raises(Unavailable, match="cannot be decoded"):
                    async with opened as there:
                        await there.read()
            finally:
                await client.close()

    asyncio.run(run())


def test_an_app_that_gets_what_cannot_be_decoded_is_told_so() -> None:
    async def run() -> None:
        async with garbled() as address:

            def ask() -> None:
                with pytest.raises(WalcastError):
                    walcast.Primary(str(address)).barrier(timeout=5.0)

            await asyncio.to_thread(ask)

    asyncio.run(run())


@pytest.mark.parametrize("pgnos", [[0], [3], [0xFFFFFFFF], [1, 2]], ids=str)
def test_pages_that_a_copy_does_not_have_are_refused(pgnos: list[int]) -> None:
    block = lz4.block.compress(bytes(4096), store_size=False)
    message = pb.CopyPages(pgnos=pgnos, sizes=[len(block)], blocks=block)
    with pytest.raises(ProtocolViolation):
        Pieces(None, pb.CopyStart(page_size=4096, commit_pages=2), 0).write(message)  # type: ignore[arg-type]


@pytest.mark.parametrize("page_size", [0, 1, 1000, 1 << 17])
def test_a_copy_of_pages_that_sqlite_does_not_have_is_refused(page_size: int) -> None:
    async def run() -> None:
        start = pb.CopyReply(start=pb.CopyStart(page_size=page_size, commit_pages=1))
        async with garbled(start) as address:
            client = Client(address, wire.Tls(), database="app", follower_id="f")
            try:
                with pytest.raises(Unavailable):
                    async with client.copy(0, None):
                        pass
            finally:
                await client.close()

    asyncio.run(run())


# The primary's end


@asynccontextmanager
async def publishing_of(app: Served) -> AsyncIterator[tuple[grpc.aio.Channel, ServedDatabase]]:
    database = ServedDatabase(app.database)
    gate = Gate(listening=lambda: address)
    publisher = Publisher({"app": database}, lambda: pb.StatusReply(role="primary"), gate)
    server, _, address = listen(publisher, Address("127.0.0.1", 0), wire.Tls(), connections=10)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(str(address)) as channel:
            yield channel, database
    finally:
        publisher.stop()
        await server.stop(0)


def raw(channel: grpc.aio.Channel, method: str) -> Any:
    """A call whose requests are bytes."""
    return channel.stream_stream(PREFIX + method, request_serializer=bytes, response_deserializer=bytes)()


def test_acknowledgements_that_cannot_be_decoded_end_their_stream_and_no_other(app: Served) -> None:
    async def run() -> None:
        async with publishing_of(app) as (channel, database):
            hello = pb.Hello(
                protocol=wire.PROTOCOL_VERSION,
                database="app",
                follower_id="f",
                position=wire.position_message(app.base_position, 1),
            )
            first = pb.FollowerMessage(hello=hello).SerializeToString()
            good, bad = raw(channel, "Stream"), raw(channel, "Stream")
            for call in (good, bad):
                await call.write(first)
                assert pb.PrimaryMessage.FromString(await call.read()).HasField("welcome")
            assert len(database.followers.connected) == 2
            await bad.write(GARBAGE)
            async with asyncio.timeout(10.0):
                while len(database.followers.connected) == 2:
                    await asyncio.sleep(0.01)
            await good.write(pb.FollowerMessage(ack=pb.Ack(applied_txid=1)).SerializeToString())
            with sql(app.path) as one:
                one("UPDATE accounts SET balance = balance + 1")
            async with asyncio.timeout(10.0):
                while not pb.PrimaryMessage.FromString(await good.read()).HasField("chunk"):
                    pass
            good.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("method", ["Stream", "Copy"])
def test_a_first_message_that_cannot_be_decoded_or_never_comes_is_refused(
    app: Served, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(publishing, "HELLO_S", 0.2)

    async def run() -> None:
        async with publishing_of(app) as (channel, _):
            garbage, silent = raw(channel, method), raw(channel, method)
            await garbage.write(GARBAGE)
            for call in (garbage, silent):
                async with asyncio.timeout(10.0):
                    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(run())


def test_checksums_that_cannot_be_decoded_are_refused(app: Served) -> None:
    async def run() -> None:
        async with publishing_of(app) as (channel, _):
            call = raw(channel, "Copy")
            hello = pb.CopyHello(protocol=wire.PROTOCOL_VERSION, database="app", follower_id="f")
            await call.write(pb.CopyRequest(hello=hello).SerializeToString())
            await call.write(GARBAGE)
            reply = pb.CopyReply.FromString(await call.read())
            assert reply.refusal.kind == pb.REFUSAL_KIND_STOPPING

    asyncio.run(run())


@pytest.mark.parametrize("method", ["Status", "Barrier", "Switchover", "StepDown"])
def test_a_request_that_cannot_be_decoded_ends_its_call_alone(app: Served, method: str) -> None:
    async def run() -> None:
        async with publishing_of(app) as (channel, _):
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(PREFIX + method, request_serializer=bytes)(GARBAGE, timeout=10.0)
            status = channel.unary_unary(PREFIX + "Status", request_serializer=bytes)
            assert pb.StatusReply.FromString(await status(b"", timeout=10.0)).role == "primary"

    asyncio.run(run())


# What ends a follower is said twice


class Refusing(rpc.ReplicationServicer):
    """A primary that refuses the first `times` copies for good, and says nothing to those that come later."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.calls = 0
        self.later = asyncio.Event()

    async def Copy(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.CopyReply]:  # noqa: N802
        await anext(aiter(request_iterator))
        self.calls += 1
        if self.calls > self.times:
            self.later.set()
            await asyncio.sleep(PATIENCE_S)
        refusal = pb.Refusal(kind=pb.REFUSAL_KIND_UNKNOWN_DATABASE, detail="no database 'apq' here")
        yield pb.CopyReply(refusal=refusal)


async def follow_refusing(path: Path, servicer: Refusing) -> asyncio.Task[None]:
    server = grpc.aio.server(options=wire.OPTIONS)
    rpc.add_ReplicationServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = Client(wire.Address("127.0.0.1", port), wire.Tls(), database="app", follower_id="f")
    following = asyncio.create_task(Following(path, client).run())
    later = asyncio.create_task(servicer.later.wait())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([following, later], return_when=asyncio.FIRST_COMPLETED)
        alive = not following.done()
        later.cancel()
        following.cancel()
        await asyncio.wait([following])
        assert alive is (servicer.times < 2)
        return following
    finally:
        await server.stop(None)


def test_a_refusal_that_comes_of_a_damaged_byte_does_not_end_a_follower(tmp_path: Path) -> None:
    servicer = Refusing(1)
    asyncio.run(follow_refusing(tmp_path / "r.db", servicer))
    assert servicer.calls == 2


def test_a_refusal_that_is_said_twice_ends_a_follower(tmp_path: Path) -> None:
    servicer = Refusing(1000)
    ended = asyncio.run(follow_refusing(tmp_path / "r.db", servicer))
    assert isinstance(ended.exception(), ConfigError)
    assert servicer.calls == 2

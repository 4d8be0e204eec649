"""The primary's service: every method, with messages of anybody, on a database that is served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import grpc
from google.protobuf.message import DecodeError

from walcast import wire
from walcast.access import ALL, Policy, Rule
from walcast.rpc import replication_pb2 as pb
from walcast.wire import Address
from walcast_primary.database import Database
from walcast_primary.publish.gate import Gate
from walcast_primary.publish.publisher import Publisher
from walcast_primary.publish.served_database import Served

SHORT = 300
MOST_ANSWERS = 8
MOST_MESSAGES = 16
MOST_S = 0.002  # for a barrier that waits for followers
TOKENS = [b"app", b"\x0a\x00", b"\x09" + b"\xff" * 8, b"\x08" + b"\xff" * 9 + b"\x01"]
REQUESTS: tuple[Any, ...] = (
    pb.FollowerMessage,
    pb.CopyRequest,
    pb.BarrierRequest,
    pb.SwitchoverRequest,
    pb.StepDownRequest,
)


EVERYBODY = Policy((Rule("anyone", ALL),))


class Aborted(Exception):
    """As gRPC raises it: the call ends with a status."""


ALLOWED = (Aborted, DecodeError)


class Context:
    """What the service asks of a call."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def peer_identities(self) -> None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def add_done_callback(self, callback: object) -> None:
        pass

    async def abort(self, code: grpc.StatusCode, details: str = "") -> None:
        raise Aborted(code, details)


PLACE: list[tuple[asyncio.AbstractEventLoop, Publisher, Served]] = []


@contextmanager
def running() -> Iterator[None]:
    logger = logging.getLogger("walcast")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with TemporaryDirectory() as folder, mock.patch("walcast_primary.publish.barriers.BARRIER_TIMEOUT_S", MOST_S):
        path = Path(folder) / "app.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as one:
            one.execute("PRAGMA journal_mode=WAL")
            one.execute("CREATE TABLE t (a)")
            database, loop = Database(path, "app"), asyncio.new_event_loop()
            database.start()
            try:
                for i in range(4):
                    one.execute("INSERT INTO t VALUES (?)", (i,))

                async def made() -> Served:
                    return Served(database)

                served = loop.run_until_complete(made())
                gate = Gate(EVERYBODY, listening=lambda: Address("127.0.0.1", 1), trust_user=False)
                publisher = Publisher({"app": served}, lambda: pb.StatusReply(role="primary"), gate)
                PLACE[:] = [(loop, publisher, served)]
                yield
            finally:
                PLACE.clear()
                loop.close()
                database.stop()
                logger.setLevel(level)


def packed(kind: int, *messages: Any) -> bytes:
    """Of one call."""
    parts = [message.SerializeToString() for message in messages]
    return bytes([kind]) + b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def seeds() -> list[bytes]:
    hello = pb.Hello(protocol=wire.PROTOCOL_VERSION, database="app", follower_id="f", address="h:1", candidate=True)
    behind = pb.Hello(protocol=wire.PROTOCOL_VERSION, follower_id="g", position=pb.Position(txid=1, checksum=1 << 63))
    watching = pb.Hello(protocol=wire.PROTOCOL_VERSION, database="app", observer=True, database_id="9f0c" * 8)
    ack = pb.FollowerMessage(ack=pb.Ack(received_txid=5, applied_txid=5, echo_us=1, lag_us=1, durable_txid=5))
    taken = pb.FollowerMessage(hand_over=pb.HandOverReply(term=1, taken=True))
    streams = [packed(0, pb.FollowerMessage(hello=one), ack, taken) for one in (hello, behind, watching)]
    start = pb.CopyHello(protocol=wire.PROTOCOL_VERSION, database="app", follower_id="f", page_size=4096)
    copies = [packed(1, pb.CopyRequest(hello=start), pb.CopyRequest(checksums=bytes(n))) for n in (0, 8, 24)]
    return [
        *streams,
        *copies,
        packed(2, pb.BarrierRequest(database="app", followers=1, timeout_ms=1, level=1)),
        packed(2, pb.BarrierRequest(level=2)),
        packed(3, pb.SwitchoverRequest(database="app")),
        packed(4, pb.StepDownRequest(database="app", term=7)),
    ]


def target(data: bytes) -> None:
    loop, publisher, served = PLACE[0]
    loop.run_until_complete(_call(publisher, data))
    assert not served.followers.connected


async def _call(publisher: Publisher, data: bytes) -> None:
    kind = data[0] % len(REQUESTS) if data else 0
    requests, context = _requests(REQUESTS[kind], data[1:]), Context()
    method: Any = (publisher.Stream, publisher.Copy, publisher.Barrier, publisher.Switchover, publisher.StepDown)[kind]
    if kind > 1:
        async for request in requests:
            await method(request, context)
        return
    async with contextlib.aclosing(method(requests, context)) as answers:
        left = MOST_ANSWERS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MOST_S):
                async for answer in answers:
                    answer.SerializeToString()
                    left -= 1
                    if not left:
                        break


async def _requests(kind: Any, data: bytes) -> AsyncIterator[Any]:
    """As gRPC hands them over, which decodes each when it is asked for."""
    for _ in range(MOST_MESSAGES):
        if len(data) < 2:
            return
        size = int.from_bytes(data[:2], "big")
        yield kind.FromString(data[2 : 2 + size])
        data = data[2 + size :]

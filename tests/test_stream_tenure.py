"""What a follower takes from a primary, and from when on it takes nothing: terms and tenures in the stream."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from walcast import wire
from walcast.errors import Unavailable
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast_follower.in_thread import InThread
from walcast_follower.subscribe import primary_client
from walcast_follower.subscribe.acknowledger import Acknowledger
from walcast_follower.subscribe.primary_client import Elsewhere, Stream

PRIMARY = wire.Address("127.0.0.1", 1)


class Call:
    """A gRPC call whose messages are there already."""

    def __init__(self, *messages: pb.PrimaryMessage) -> None:
        self._messages = list(messages)

    async def read(self) -> pb.PrimaryMessage:
        return self._messages.pop(0)

    async def write(self, message: pb.FollowerMessage) -> None:
        pass

    def cancel(self) -> None:
        pass


def chunk(term: int = 3, tenure_ms: int = 0) -> pb.PrimaryMessage:
    return pb.PrimaryMessage(chunk=pb.Chunk(term=term, tenure_ms=tenure_ms))


def heartbeat(tenure_ms: int) -> pb.PrimaryMessage:
    return pb.PrimaryMessage(heartbeat=pb.Heartbeat(tenure_ms=tenure_ms))


def play(steps: Callable[[Stream], Awaitable[None]], *messages: pb.PrimaryMessage) -> None:
    async def run() -> None:
        stream = Stream(Call(*messages), PRIMARY)
        stream.welcome = pb.Welcome(term=3)
        try:
            await steps(stream)
        finally:
            stream.close()

    asyncio.run(run())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(primary_client, "_clock_s", lambda: now[0])
    return now


@pytest.mark.parametrize("last", [heartbeat(2000), chunk(tenure_ms=2000)])
def test_nothing_is_taken_once_the_tenure_that_was_told_last_is_over(clock: list[float], last: Any) -> None:
    async def steps(stream: Stream) -> None:
        await stream.read()
        clock[0] += 1.9
        await stream.read()
        clock[0] += 2.1
        with pytest.raises(Unavailable, match="tenure"):
            await stream.read()

    play(steps, last, last, chunk(tenure_ms=2000))


def test_each_message_extends_it(clock: list[float]) -> None:
    async def steps(stream: Stream) -> None:
        for _ in range(10):
            await stream.read()
            clock[0] += 1.5

    play(steps, *[chunk(tenure_ms=2000), heartbeat(2000)] * 5)


def test_without_a_lease_it_has_no_end(clock: list[float]) -> None:
    async def steps(stream: Stream) -> None:
        await stream.read()
        clock[0] += 1e9
        await stream.read()

    play(steps, heartbeat(0), chunk())


def test_a_chunk_of_an_older_term_is_refused(clock: list[float]) -> None:
    async def steps(stream: Stream) -> None:
        await stream.read()
        with pytest.raises(Elsewhere, match="term 3 has begun"):
            await stream.read()

    play(steps, chunk(3), chunk(2))


def test_whoever_leaves_a_stream_is_told_why() -> None:
    async def steps(stream: Stream) -> None:
        stream.leave("the primary is elsewhere now")

        async def cancelled() -> pb.PrimaryMessage:
            raise asyncio.CancelledError

        stream._call.read = cancelled
        with pytest.raises(Unavailable, match="elsewhere now"):
            await stream.read()

    play(steps)


def test_a_closed_stream_holds_no_call_and_whoever_uses_it_is_told() -> None:
    """The call keeps its connection, also that of a closed channel, and a cycle of references keeps the stream."""

    async def run() -> None:
        call = Call(chunk())
        stream = Stream(call, PRIMARY)
        acks = Acknowledger(stream, applier(), InThread())
        await acks.applied(0)
        await acks.applied(0)  # soon
        held = weakref.ref(call)
        acks.close()
        stream.close()
        stream.close()
        stream.leave("again")
        del call
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert held() is None
        for use in (stream.read(), stream.answer(pb.HandOverReply()), stream.acknowledge(pb.Ack())):
            with pytest.raises(Unavailable):
                await use

    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()


def applier() -> Any:
    return SimpleNamespace(position=Position(5, 1), durable=Position(5, 1))

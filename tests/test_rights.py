"""A call that lasts ends once whoever made it may not make it any more: over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.e2e_oracle import Served, served
from support.e2e_state import create

from walcast import wire
from walcast.access import Policy, Role, Rule
from walcast.access.credentials import Credentials
from walcast.access.tokens import bearer, new_token, token_line
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.wire import Address, Tls
from walcast_node.process.grpc_server import listen
from walcast_primary.publish import call_rights
from walcast_primary.publish.gate import Gate
from walcast_primary.publish.publisher import Publisher
from walcast_primary.publish.served_database import Served as ServedDatabase

SOON_S = 10.0
TOKENS = {name: new_token() for name in ("edge-1", "edge-2")}


class Node:
    """A primary that accepts tokens, and what one of their holders can call."""

    def __init__(self, stub: Any, served: ServedDatabase, publisher: Publisher, credentials: Credentials) -> None:
        self.stub, self.served, self.publisher, self._credentials = stub, served, publisher, credentials

    def accept(self, *names: str) -> None:
        """These tokens, and no others, from now on."""
        assert self._credentials.tls.token_file is not None
        self._credentials.tls.token_file.write_text("".join(token_line(name, TOKENS[name]) + "\n" for name in names))
        assert self._credentials.refresh(force=True).error is None

    def call(self, method: str, name: str) -> Any:
        return getattr(self.stub, method)(metadata=(("authorization", bearer(TOKENS[name])),))

    async def follow(self, name: str, **facts: Any) -> Any:
        """A stream, after its welcome."""
        position = wire.position_message(self.served.log.position, 1)
        stream = self.call("Stream", name)
        facts = {"follower_id": name, "address": "127.0.0.1:1"} | facts
        said = pb.Hello(protocol=1, database="app", position=position, **facts)
        await stream.write(pb.FollowerMessage(hello=said))
        async with asyncio.timeout(SOON_S):
            assert (await stream.read()).HasField("welcome")
        return stream


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "app.db"
    create(path)
    with served(path) as made:
        yield made


@asynccontextmanager
async def node_of(app: Served, folder: Path, policy: Policy | None = None) -> AsyncIterator[Node]:
    file = folder / "tokens"
    file.touch(0o600)
    credentials = Credentials(Tls(token_file=file))
    gate = Gate(policy, listening=lambda: address, credentials=credentials, trust_user=False)
    database = ServedDatabase(app.database)
    publisher = Publisher({"app": database}, lambda: pb.StatusReply(role="primary"), gate)
    server, _, address = listen(publisher, Address("127.0.0.1", 0), Tls(), connections=10)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(str(address)) as channel:
            node = Node(rpc.ReplicationStub(channel), database, publisher, credentials)
            node.accept("edge-1", "edge-2")
            yield node
    finally:
        publisher.stop()
        await server.stop(0)


async def refusal_of(call: Any) -> Any:
    """With which it ends."""
    async with asyncio.timeout(SOON_S):
        while not (message := await call.read()).HasField("refusal"):
            pass
    return message.refusal


async def until(what: Any) -> None:
    async with asyncio.timeout(SOON_S):
        while not what():
            await asyncio.sleep(0.01)


def test_a_stream_ends_when_its_token_is_withdrawn(
    app: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_rights, "LOOK_S", 0.1)

    async def run() -> None:
        async with node_of(app, tmp_path) as node:
            ended, stays = await node.follow("edge-1"), await node.follow("edge-2")
            assert {one.id for one in node.served.followers.connected if one.member} == {"edge-1", "edge-2"}
            node.accept("edge-2")
            assert (await refusal_of(ended)).kind == pb.REFUSAL_KIND_STOPPING
            await until(lambda: [one.id for one in node.served.followers.connected] == ["edge-2"])
            stays.cancel()

    asyncio.run(run())


def test_a_copy_ends_when_its_token_is_withdrawn(app: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_rights, "LOOK_S", 0.1)

    async def run() -> None:
        async with node_of(app, tmp_path) as node:
            call = node.call("Copy", "edge-1")
            await call.write(pb.CopyRequest(hello=pb.CopyHello(protocol=1, database="app")))
            await until(lambda: node.publisher._rights._open)
            node.accept("edge-2")
            await until(lambda: all(right.lost for right in node.publisher._rights._open))
            await call.done_writing()
            async with asyncio.timeout(SOON_S):
                first = await call.read()
            assert first.refusal.kind == pb.REFUSAL_KIND_STOPPING

    asyncio.run(run())


def test_a_stream_that_stands_still_is_cancelled_and_counts_for_nothing(
    app: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_rights, "LOOK_S", 0.1)
    monkeypatch.setattr(call_rights, "GRACE_S", 0.3)

    async def still(*_: Any) -> AsyncIterator[pb.PrimaryMessage]:
        """As where the receiver takes nothing."""
        await asyncio.Event().wait()
        yield pb.PrimaryMessage()

    monkeypatch.setattr(Publisher, "_send_from", still)

    async def run() -> None:
        async with node_of(app, tmp_path) as node:
            stream = await node.follow("edge-1")
            [follower] = node.served.followers.connected
            assert follower.member
            node.accept("edge-2")
            await until(lambda: not follower.member)
            await until(lambda: not node.served.followers.connected and not node.publisher._quotas.calls.taken)
            stream.cancel()

    asyncio.run(run())


def test_whoever_has_no_place_in_the_set_keeps_no_member_out_by_its_id(app: Served, tmp_path: Path) -> None:
    readers = Policy((Rule("edge-2", frozenset((Role.REPLICATE,))),))

    async def run() -> None:
        async with node_of(app, tmp_path, readers) as node:
            reader = await node.follow("edge-2", follower_id="edge-1")
            member = await node.follow("edge-1")
            assert (await refusal_of(reader)).kind == pb.REFUSAL_KIND_STOPPING
            [follower] = node.served.followers.connected
            assert (follower.identity, follower.member) == ("token:edge-1", True)
            again = node.call("Stream", "edge-2")
            position = wire.position_message(node.served.log.position, 1)
            await again.write(pb.FollowerMessage(hello=pb.Hello(protocol=1, follower_id="edge-1", position=position)))
            assert (await refusal_of(again)).kind == pb.REFUSAL_KIND_TOO_MANY
            member.cancel()

    asyncio.run(run())


def test_those_who_may_do_nothing_take_no_place_of_anybody(app: Served, tmp_path: Path) -> None:
    async def run() -> None:
        async with node_of(app, tmp_path) as node:
            silent = [node.stub.Stream() for _ in range(200)]
            await until(lambda: node.publisher._quotas.strangers.taken)
            assert node.publisher._quotas.calls.taken == 0
            stays = await node.follow("edge-1")
            async with asyncio.timeout(SOON_S):
                codes = {await call.code() for call in silent}
            assert codes == {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
            await until(lambda: not node.publisher._quotas.strangers.taken)
            stays.cancel()

    asyncio.run(run())

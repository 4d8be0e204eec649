"""Connections that would keep others out: whose go, and that they do."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections import Counter
from contextlib import closing, suppress

import grpc
import pytest

from walcast.access.sockets import Connection
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.wire import Address, Tls
from walcast_node.process.connection_crowds import Caller, keep_room, make_room, whom_to_drop
from walcast_node.process.grpc_server import listen
from walcast_primary.publish.gate import Gate
from walcast_primary.publish.publisher import Publisher

STRANGER = 65534
HOME = ipaddress.ip_address("127.0.0.1")
OURS = f"user:{os.geteuid()}"


def callers(**counts: int) -> list[Caller]:
    """So many of each; the idle ones of `x`, and those of `x_busy`, that have a call."""
    return [
        Caller(Connection(3, HOME, 7420, HOME, 1000 + number), of.removesuffix("_busy"), of.endswith("_busy"))
        for of, count in counts.items()
        for number in range(count)
    ]


def test_those_go_who_have_the_most_and_no_call() -> None:
    dropped = whom_to_drop(callers(crowd=90, honest=5, crowd_busy=3), 40, OURS)
    assert Counter((one.of, one.busy) for one in dropped) == {("crowd", False): 58}


def test_of_several_crowds_none_keeps_more_than_another() -> None:
    dropped = Counter(one.of for one in whom_to_drop(callers(a=60, b=40), 50, OURS))
    assert {"a": 60 - dropped["a"], "b": 40 - dropped["b"]} == {"a": 25, "b": 25}


def test_calls_stay_and_so_does_what_is_of_our_own_user() -> None:
    found = callers(busy_busy=90) + [Caller(one.connection, OURS, False) for one in callers(x=50)]
    assert whom_to_drop(found, 10, OURS) == []
    assert len(whom_to_drop(found + callers(stranger=7), 10, OURS)) == 7


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_crowd_of_another_user_keeps_nobody_out() -> None:
    """gRPC takes ten connections here."""
    most = 10

    async def run() -> None:
        gate = Gate(listening=lambda: address)
        publisher = Publisher({}, lambda: pb.StatusReply(role="primary"), gate)
        server, _, address = listen(publisher, Address("127.0.0.1", 0), Tls(), connections=most)
        await server.start()
        crowd = []
        for _ in range(most):
            one = socket.create_connection(("127.0.0.1", address.port))
            os.fchown(one.fileno(), STRANGER, STRANGER)  # as if that user had made it
            one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
            one.recv(1)
            crowd.append(one)
        keeping = asyncio.create_task(keep_room(address.port, most, list))
        try:
            async with grpc.aio.insecure_channel(str(address)) as channel, asyncio.timeout(20.0):
                stub = rpc.ReplicationStub(channel)
                while True:
                    with suppress(grpc.aio.AioRpcError):
                        assert (await stub.Status(pb.StatusRequest())).role == "primary"
                        break
                    await asyncio.sleep(0.1)
            assert await asyncio.to_thread(make_room, address.port, most, []) == 0
        finally:
            keeping.cancel()
            for one in crowd:
                one.close()
            await server.stop(0)

    asyncio.run(run())


def test_where_there_is_room_nothing_is_ended() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        with closing(socket.create_connection(("127.0.0.1", port))) as client, closing(listener.accept()[0]) as server:
            assert make_room(port, 10, []) == 0
            client.sendall(b"x")
            assert server.recv(1) == b"x"

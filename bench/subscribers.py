"""Followers that apply nothing: `python -m bench.subscribers ADDRESS COUNT COMMITS`.

Prints "ready" once all are welcome, then, when each has had `COMMITS` more transactions, a JSON list: for each of them
the CLOCK_MONOTONIC ns at which the last subscriber had it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc
import uvloop

from walcast import ltx, wire
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc

TIMEOUT_S = 120.0


async def main(address: str, count: int, commits: int) -> None:
    """All of them."""
    channels = [
        grpc.aio.insecure_channel(address, options=[*wire.OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
        for _ in range(count)
    ]
    barrier = await rpc.ReplicationStub(channels[0]).Barrier(pb.BarrierRequest())
    first = barrier.position.txid + 1
    had_ns = [0] * commits
    welcome = [asyncio.Event() for _ in channels]
    tasks = [
        asyncio.create_task(subscribe(channel, f"subscriber-{i}", barrier.position, first, had_ns, welcome[i]))
        for i, channel in enumerate(channels)
    ]
    for event in welcome:
        await event.wait()
    print("ready", flush=True)
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*tasks)
    print(json.dumps(had_ns), flush=True)
    for channel in channels:
        await channel.close()


async def subscribe(
    channel: grpc.aio.Channel, name: str, position: pb.Position, first: int, had_ns: list[int], welcome: asyncio.Event
) -> None:
    """One follower: takes note of when it has each transaction, and acknowledges."""
    call = rpc.ReplicationStub(channel).Stream()
    hello = pb.Hello(protocol=wire.PROTOCOL_VERSION, follower_id=name, position=position)
    await call.write(pb.FollowerMessage(hello=hello))
    while True:
        message = await call.read()
        if message is grpc.aio.EOF or message.WhichOneof("kind") == "refusal":
            raise RuntimeError(f"{name}: {message}")
        if message.WhichOneof("kind") == "welcome":
            welcome.set()
        if message.WhichOneof("kind") != "chunk":
            continue
        now_ns, start, header = time.monotonic_ns(), 0, None
        for end in message.chunk.ends:  # transactions this small never span chunks
            header = ltx.Header.decode(message.chunk.data[start:end])
            assert header is not None
            for txid in range(header.min_txid, header.max_txid + 1):
                had_ns[txid - first] = max(had_ns[txid - first], now_ns)
            start = end
        assert header is not None
        await call.write(pb.FollowerMessage(ack=pb.Ack(received_txid=header.max_txid, applied_txid=header.max_txid)))
        if header.max_txid >= first + len(had_ns) - 1:
            call.cancel()
            return


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

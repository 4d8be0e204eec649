"""A node that is late at moments which are too short to be met otherwise. Arguments as `walcast`.

DELAYS is a folder; a file there holds seconds, looked up each time:

    offer    before a follower hears of the place that it is offered
    give     before the lease is written that names another node than the one before

With a file `keep` that lease is not written at all.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

from walcast.errors import Unavailable
from walcast.rpc import replication_pb2 as pb
from walcast.store.directory import DirectoryStore
from walcast_follower.apply.applier import Applier
from walcast_follower.following import Following
from walcast_follower.subscribe.primary_client import Stream
from walcast_node.cli import main
from walcast_node.failover.lease import KEY, Lease

DELAYS = Path(os.environ["DELAYS"])

take_over = Following._take_over
swap = DirectoryStore.swap


def seconds(moment: str) -> float:
    with suppress(FileNotFoundError):
        return float((DELAYS / moment).read_text())
    return 0.0


async def take_over_late(self: Following, stream: Stream, offer: pb.HandOver, applier: Applier) -> None:
    await asyncio.sleep(seconds("offer"))
    await take_over(self, stream, offer, applier)


def swap_late(self: DirectoryStore, key: str, data: bytes, version: str | None) -> str:
    found = self.read(key) if key == KEY else None
    if found is not None and Lease.decode(found.data).holder != Lease.decode(data).holder:
        time.sleep(seconds("give"))
        if (DELAYS / "keep").exists():
            raise Unavailable("as the test wants it")
    return swap(self, key, data, version)


Following._take_over = take_over_late  # type: ignore[method-assign]
DirectoryStore.swap = swap_late  # type: ignore[method-assign]
main()

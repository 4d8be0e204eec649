"""A barrier: a position that covers every commit made before it was asked for, and how many followers have it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from walcast.errors import WalcastError
from walcast.levels import Level
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast_primary.publish.served_database import Refused, Served

BARRIER_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Reached:
    """`followers`: how many had `position`, as the level says, when this was said."""

    term: int
    position: Position
    followers: int


async def barrier(served: Served, followers: int, timeout_s: float, level: Level) -> Reached:
    """Waits until `followers` of them have it as `level` says, up to `timeout_s`; fewer is no error. Refused when it
    cannot be captured."""
    timeout_s = min(timeout_s or BARRIER_TIMEOUT_S, BARRIER_TIMEOUT_S)
    until_s = time.monotonic() + timeout_s
    served.check_tenure()
    try:
        async with asyncio.timeout(timeout_s):
            captured = await asyncio.wrap_future(served.database.loop.barrier())
    except (WalcastError, TimeoutError) as error:
        detail = str(error) or "the primary could not capture in time"
        raise Refused(pb.REFUSAL_KIND_STOPPING, detail) from error
    position = captured.position
    count = served.followers.count(position.txid, level)
    if count < followers:
        left_s = until_s - time.monotonic()
        waiting = asyncio.create_task(served.followers.wait(position.txid, followers, level, left_s))
        await asyncio.sleep(0)
        served.wake()  # have the streams ask for a reply
        count = await waiting
    served.check_tenure()  # who has it counts only while this node is the primary
    return Reached(served.log.term, position, count)

"""A barrier: a position that covers every commit made before it was asked for, and who has applied it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from primary.served import Refused, Served
from walcast.errors import WalcastError
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb

BARRIER_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Reached:
    """`applied`: how many followers had applied `position` when this was said."""

    term: int
    position: Position
    applied: int


async def barrier(served: Served, followers: int, timeout_s: float) -> Reached:
    """Waits for `followers` of them, up to `timeout_s`; fewer is no error. Refused when it cannot be captured."""
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
    applied = served.followers.applied(position.txid)
    if followers:
        left_s = until_s - time.monotonic()
        waiting = asyncio.create_task(served.followers.wait_applied(position.txid, followers, left_s))
        await asyncio.sleep(0)
        served.wake()  # have the streams ask for a reply
        applied = await waiting
    served.check_tenure()  # who has it counts only while this node is the primary
    return Reached(served.log.term, position, applied)

"""What the primary knows of its followers: positions acknowledged, and how far they are behind."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from walcast.errors import Unavailable
from walcast.rpc import replication_pb2 as pb

MAX_UNACKNOWLEDGED = 1024


@dataclass(slots=True)
class Offer:
    """The primary's place, for a follower that has everything. Its stream stays until it has answered; `message` is
    sent once there is one; `taken` is the answer, None when the follower is gone."""

    taken: asyncio.Future[pb.HandOverReply | None]
    message: pb.HandOver | None = None
    sent: bool = False


@dataclass(slots=True)
class Follower:
    """One follower's stream, as Postgres' `pg_stat_replication` would show it. Lag is from capture to visible."""

    id: str
    peer: str
    state: str = "catching-up"
    sent_txid: int = 0
    received_txid: int = 0
    applied_txid: int = 0
    round_trip_us: int = 0
    reply_requested: bool = False
    address: str = ""  # where it would serve as the primary
    candidate: bool = False  # it takes over by itself
    offer: Offer | None = None
    replies: int = 0
    _lag_us: int = 0
    _sent: deque[tuple[int, int]] = field(default_factory=deque)

    def sent(self, txid: int, captured_ns: int) -> None:
        """An entry that ends with `txid` is on its way."""
        self.sent_txid = txid
        if captured_ns and len(self._sent) < MAX_UNACKNOWLEDGED:
            self._sent.append((txid, captured_ns))

    def acknowledged(self, received_txid: int, applied_txid: int, echo_us: int = 0, lag_us: int = 0) -> None:
        """The follower says how far it is."""
        now = time.monotonic_ns()
        self.received_txid = max(self.received_txid, min(received_txid, self.sent_txid))
        self.applied_txid = max(self.applied_txid, min(applied_txid, self.sent_txid))
        while self._sent and self._sent[0][0] <= self.applied_txid:
            self._sent.popleft()
            self._lag_us = lag_us
        if echo_us:
            self.replies += 1
            self.round_trip_us = max(0, now // 1000 - echo_us)

    def lag_ms(self) -> float:
        """The newest measured lag, or how long the oldest transaction not applied has been waiting, if that is more."""
        waiting = time.monotonic_ns() - self._sent[0][1] if self._sent else 0
        return max(self._lag_us / 1e3, waiting / 1e6)


class Followers:
    """The followers of one database, and those who wait for them. Used in the event loop only."""

    def __init__(self) -> None:
        self.connected: list[Follower] = []
        self._changed = asyncio.Event()

    def add(self, follower: Follower) -> None:
        """A stream began; the same id again replaces an older stream in what is counted."""
        self.connected.append(follower)

    def remove(self, follower: Follower) -> None:
        """The stream ended."""
        self.connected.remove(follower)
        self.progressed()
        if follower.offer is not None and not follower.offer.taken.done():
            follower.offer.taken.set_result(None)

    def find(self, follower_id: str) -> Follower | None:
        """The newest stream of a follower."""
        return next((f for f in reversed(self.connected) if f.id == follower_id), None)

    def progressed(self) -> None:
        """Wake those who wait for an applied position."""
        self._changed.set()
        self._changed = asyncio.Event()

    def applied(self, txid: int) -> int:
        """How many different followers have applied `txid`."""
        return len({f.id for f in self.connected if f.applied_txid >= txid})

    async def until_applied(self, follower: Follower, txid: int) -> None:
        """Until this stream's follower has applied `txid`, and has replied since this was asked: what it applied before
        says nothing of whether it still runs. Unavailable when the stream ends first."""
        before, follower.reply_requested = follower.replies, True
        while follower.applied_txid < txid or follower.replies == before:
            if follower not in self.connected:
                raise Unavailable(f"the follower {follower.id!r} is gone")
            await self._changed.wait()

    async def wait_applied(self, txid: int, count: int, timeout_s: float) -> int:
        """Until `count` followers have applied `txid`, or the time is over; how many have."""
        for follower in self.connected:
            follower.reply_requested = follower.applied_txid < txid
        try:
            async with asyncio.timeout(timeout_s):
                while self.applied(txid) < count:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.applied(txid)

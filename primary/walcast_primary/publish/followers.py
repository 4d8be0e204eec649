"""What the primary knows of its followers: positions acknowledged, how far they are behind, and who waits for them.

Whoever waits has the followers asked, by a heartbeat behind the transaction that is waited for: for an acknowledgement,
and, where it must be durable, for a sync. Without anybody who waits nothing is synced for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from walcast.errors import Unavailable
from walcast.levels import Level
from walcast.rpc import replication_pb2 as pb

MAX_UNACKNOWLEDGED = 1024
ROUND_TRIP_MOST_US = 3_600_000_000  # the clock may have been asleep with the machine
NEVER = 1 << 64  # behind every TXID


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
    durable_txid: int = 0
    round_trip_us: int = 0
    ask_from_txid: int = NEVER  # once this was sent, ask for an acknowledgement
    address: str = ""  # where it would serve as the primary
    candidate: bool = False  # it takes over by itself
    identity: str = ""  # who it has proven to be
    member: bool = False  # its acknowledgements count for a barrier
    offer: Offer | None = None
    replies: int = 0
    ended: str = ""  # why nothing more is read from it: its stream is to end
    _lag_us: int = 0
    _sent: deque[tuple[int, int]] = field(default_factory=deque)

    def sent(self, txid: int, captured_ns: int) -> None:
        """An entry that ends with `txid` is on its way."""
        self.sent_txid = txid
        if captured_ns and len(self._sent) < MAX_UNACKNOWLEDGED:
            self._sent.append((txid, captured_ns))

    def has(self, txid: int, level: Level) -> bool:
        """Is `txid` durable there, or applied?"""
        return txid <= (self.durable_txid if level is Level.DURABLE else self.applied_txid)

    def acknowledged(
        self, received_txid: int, applied_txid: int, durable_txid: int = 0, echo_us: int = 0, lag_us: int = 0
    ) -> None:
        """The follower says how far it is; nothing is believed that cannot be: durable ≤ applied ≤ received ≤ sent."""
        now = time.monotonic_ns()
        self.received_txid = max(self.received_txid, min(received_txid, self.sent_txid))
        self.applied_txid = max(self.applied_txid, min(applied_txid, self.received_txid))
        self.durable_txid = max(self.durable_txid, min(durable_txid, self.applied_txid))
        while self._sent and self._sent[0][0] <= self.applied_txid:
            self._sent.popleft()
            self._lag_us = lag_us
        if echo_us:
            self.replies += 1
            trip_us = now // 1000 - echo_us
            if 0 <= trip_us <= ROUND_TRIP_MOST_US:  # else it is no echo of anything that was sent here
                self.round_trip_us = trip_us

    def lag_ms(self) -> float:
        """The newest measured lag, or how long the oldest transaction not applied has been waiting, if that is more."""
        waiting = time.monotonic_ns() - self._sent[0][1] if self._sent else 0
        return max(self._lag_us / 1e3, waiting / 1e6)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """Somebody waits until followers, or one stream's, have `txid`."""

    txid: int
    level: Level
    follower: Follower | None = None

    def of(self, follower: Follower) -> bool:
        return self.follower is None or self.follower is follower


class Followers:
    """The followers of one database, and those who wait for them. Used in the event loop only."""

    def __init__(self) -> None:
        self.connected: list[Follower] = []
        self._changed = asyncio.Event()
        self._waiting: set[_Waiting] = set()

    def add(self, follower: Follower) -> None:
        """A stream began; the same id again replaces an older stream in what is counted."""
        self.connected.append(follower)
        follower.ask_from_txid = min((w.txid for w in self._waiting if w.of(follower)), default=NEVER)

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
        """Wake those who wait for a position."""
        self._changed.set()
        self._changed = asyncio.Event()

    def count(self, txid: int, level: Level) -> int:
        """How many different followers that are members have `txid`."""
        return len({f.id for f in self.connected if f.member and f.has(txid, level)})

    def ask(self, follower: Follower, sent_txid: int) -> tuple[bool, bool]:
        """For a heartbeat behind `sent_txid`: does somebody wait for the acknowledgement, and for a sync before it?

        Asked again with each heartbeat until it is there: a sync may fail, and succeed later.
        """
        reply = sync = False
        ask_from_txid = NEVER
        for waiting in self._waiting:
            if not waiting.of(follower):
                continue
            if waiting.txid > sent_txid:
                ask_from_txid = min(ask_from_txid, waiting.txid)
            elif waiting.follower is not None or not follower.has(waiting.txid, waiting.level):
                reply = True
                sync = sync or (waiting.level is Level.DURABLE and follower.durable_txid < waiting.txid)
        follower.ask_from_txid = ask_from_txid
        return reply, sync

    @contextmanager
    def _asking(self, waiting: _Waiting) -> Iterator[None]:
        self._waiting.add(waiting)
        for follower in self.connected:
            if waiting.follower is follower or (
                waiting.follower is None and not follower.has(waiting.txid, waiting.level)
            ):
                follower.ask_from_txid = min(follower.ask_from_txid, waiting.txid)
        try:
            yield
        finally:
            self._waiting.discard(waiting)

    async def until_durable(self, follower: Follower, txid: int) -> None:
        """Until this stream's follower has `txid` on disk, and has replied since this was asked: what it did before
        says nothing of whether it still runs. Unavailable when the stream ends first."""
        before = follower.replies
        with self._asking(_Waiting(txid, Level.DURABLE, follower)):
            while follower.durable_txid < txid or follower.replies == before:
                if follower not in self.connected:
                    raise Unavailable(f"the follower {follower.id!r} is gone")
                await self._changed.wait()

    async def wait(self, txid: int, count: int, level: Level, timeout_s: float) -> int:
        """Until `count` followers have `txid`, or the time is over; how many have."""
        with self._asking(_Waiting(txid, level)):
            try:
                async with asyncio.timeout(timeout_s):
                    while self.count(txid, level) < count:
                        await self._changed.wait()
            except TimeoutError:
                pass
            return self.count(txid, level)

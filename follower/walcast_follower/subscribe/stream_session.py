"""One stream, from the welcome on: apply what comes, acknowledge, keep the WAL short, show where the replica is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from walcast.rpc import replication_pb2 as pb
from walcast.statusfile import LOOK_BOUND_S, State
from walcast_follower.apply.applier import Applier
from walcast_follower.apply.wal_truncation import WalKeeper
from walcast_follower.disk_room import check_announced
from walcast_follower.in_thread import InThread
from walcast_follower.subscribe.acknowledger import Acknowledger
from walcast_follower.subscribe.partial_transaction import PartialTransaction
from walcast_follower.subscribe.primary_client import Stream, clock_us
from walcast_follower.subscribe.receiver import Receiver
from walcast_follower.subscribe.send_times import SentTimes

log = logging.getLogger("walcast.follower")

NEARLY_LEVEL_TXIDS = 1000


class Show(Protocol):
    """Tells whoever looks what the follower is doing."""

    def __call__(
        self,
        state: State,
        *,
        primary_txid: int,
        lag_us: int = ...,
        known_us: int = ...,
        behind_bytes: int | None = ...,
    ) -> None: ...


class Streaming:
    """For an applier that nobody else uses meanwhile. `heard` is called with every message, `take_over` when the
    primary offers its place. `begun` has what came of the transaction that is being received."""

    def __init__(
        self,
        stream: Stream,
        applier: Applier,
        keeper: WalKeeper,
        show: Show,
        heard: Callable[[], None],
        take_over: Callable[[pb.HandOver], Awaitable[None]],
        threads: InThread,
        begun: PartialTransaction,
    ) -> None:
        self._stream = stream
        self._applier = applier
        self._keeper = keeper
        self._show = show
        self._heard = heard
        self._take_over = take_over
        self._begun = begun
        self._receiver = Receiver(
            applier,
            applier.position,
            pages=applier.commit_pages,
            term=max(stream.welcome.term, applier.term),
            has_room=lambda grown_bytes: check_announced(applier.path, grown_bytes, "the database grows"),
        )
        self._acks = Acknowledger(stream, applier, threads)
        self._sent = SentTimes(int(stream.began_s * 1e6))
        self._newest = stream.welcome.position.txid
        self._round_trip_us = 0
        self._lag_us = 0
        self._behind_bytes: int | None = None
        self._level = self._newest == applier.position.txid

    async def run(self) -> None:
        """Until the stream ends with an error."""
        self._show(self._phase(), primary_txid=self._newest)  # not level by it: a welcome does not say of when it is
        try:
            await self._go_on()
            await self._take()
        finally:
            self._acks.close()

    async def _go_on(self) -> None:
        """Behind what an earlier stream has brought of the next transaction, where the primary goes on there."""
        if not self._stream.welcome.resume_bytes:
            self._begun.clear()
            return
        log.debug("a transaction goes on where it broke off", extra={"bytes": self._begun.size})
        with self._begun.of_use():
            for data in self._begun.pieces():
                self._receiver.feed(data, [])
                await asyncio.sleep(0)

    async def _take(self) -> None:
        while True:
            message = await self._stream.read()
            began_ns = time.monotonic_ns()
            self._heard()
            kind = message.WhichOneof("kind")
            if kind == "chunk":
                await self._apply(message.chunk, began_ns)
            elif kind == "heartbeat":
                await self._answer(message.heartbeat)
            elif kind == "hand_over":
                await self._take_over(message.hand_over)

    async def _apply(self, chunk: pb.Chunk, began_ns: int) -> None:
        sent_us = self._sent.other(clock_us())
        await self._keeper.make_room()
        with self._begun.of_use():
            self._receiver.feed(chunk.data, chunk.ends)
        self._begun.took(chunk.data, chunk.ends)
        self._newest = max(self._newest, chunk.position_txid)
        self._behind_bytes = chunk.behind_bytes if chunk.HasField("behind_bytes") else None
        if not chunk.ends:
            return
        self._lag_us = lag_us = chunk.age_us + self._round_trip_us // 2 + (time.monotonic_ns() - began_ns) // 1000
        self._show_known(sent_us, chunk.look_age_ms)  # readers see it already
        await self._acks.applied(lag_us)
        self._keeper.checkpoint_when_due()

    async def _answer(self, beat: pb.Heartbeat) -> None:
        self._newest, self._round_trip_us = beat.position.txid, beat.round_trip_us
        self._behind_bytes = beat.behind_bytes if beat.HasField("behind_bytes") else None
        sent_us = self._sent.heartbeat(clock_us(), beat.clock_us, beat.round_trip_us)
        await self._acks.heartbeat(beat.clock_us, beat.sync_requested)
        if self._round_trip_us and self._newest == self._applier.position.txid:
            # What is here was the newest there was half a round trip ago.
            self._lag_us = min(self._lag_us, self._round_trip_us // 2)
        self._show_known(sent_us, beat.look_age_ms)

    def _show_known(self, sent_us: int, look_age_ms: int) -> None:
        """By a message that was sent at `sent_us`, when the primary's newest look at its WAL was `look_age_ms` ago.
        What it has not looked at for longer than its own bound is unknown, and the lag may be as long."""
        known_us = clock_us() - sent_us + look_age_ms * 1000
        lag_us = max(self._lag_us, known_us) if look_age_ms > LOOK_BOUND_S * 1000 else self._lag_us
        self._show(
            self._phase(),
            primary_txid=self._newest,
            lag_us=lag_us,
            known_us=known_us,
            behind_bytes=self._behind_bytes,
        )

    def _phase(self) -> State:
        """A replica that is level streams; one that was level stays so unless it falls far behind."""
        behind = self._newest - self._applier.position.txid
        self._level = behind <= 0 or (self._level and behind < NEARLY_LEVEL_TXIDS)
        return State.STREAMING if self._level else State.CATCHING_UP

"""Acknowledgements: soon after what was applied, at once when asked, and not one for every commit.

An acknowledgement costs both sides as much as a small transaction. A primary that waits for one asks by a heartbeat,
which comes behind the transactions; everybody else is served by one every few milliseconds.

A sync costs the disk's time, so there is one only when a heartbeat asks for it: in a thread, while applying goes on.
All that is asked while one runs is answered by one more, and by none where everything is durable already. A sync that
fails is not acknowledged; the primary asks again with its next heartbeat as long as somebody waits.
"""

from __future__ import annotations

import asyncio
import logging
import time

from walcast.errors import Stopped, WalcastError
from walcast.rpc import replication_pb2 as pb
from walcast_follower.apply.applier import Applier
from walcast_follower.in_thread import InThread
from walcast_follower.subscribe.primary_client import Stream

log = logging.getLogger("walcast.follower")

EVERY_S = 0.05


class Acknowledger:
    """Tells one stream's primary how far the replica is. `threads` runs the syncs, and outlasts the stream."""

    def __init__(self, stream: Stream, applier: Applier, threads: InThread) -> None:
        self._stream = stream
        self._applier = applier
        self._threads = threads
        # What was durable before this stream may be of a history that the replica has left since.
        self._durable_txid = applier.position.txid if applier.durable == applier.position else 0
        self._lag_us = 0
        self._sent_s = 0.0
        self._later: asyncio.Task[None] | None = None
        self._sync_wanted = False
        self._syncing: asyncio.Task[None] | None = None

    async def applied(self, lag_us: int) -> None:
        """Something was applied, `lag_us` after it was captured."""
        self._lag_us = lag_us
        wait_s = self._sent_s + EVERY_S - time.monotonic()
        if wait_s <= 0:
            await self._send(0)
        elif self._later is None:
            self._later = asyncio.create_task(self._send_later(wait_s))

    async def heartbeat(self, clock_us: int, sync_requested: bool) -> None:
        """A heartbeat is answered at once: it measures the round trip, or somebody waits. Once more, when everything is
        durable, if that was asked for."""
        await self._send(clock_us)
        if sync_requested:
            self._sync_wanted = True
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())

    def close(self) -> None:
        """Acknowledge nothing more. A sync that runs goes on in its thread."""
        for task in (self._later, self._syncing):
            if task is not None:
                task.cancel()
        self._later = self._syncing = None  # their errors refer to this, and so to the stream: see `Stream.close`

    async def _sync(self) -> None:
        try:
            while self._sync_wanted:
                self._sync_wanted = False
                if self._durable_txid < self._applier.position.txid:
                    self._durable_txid = (await self._threads.run(self._applier.sync)).txid
                    await self._send_unless_gone()
        except Stopped as error:
            self._stream.leave(str(error))  # the applier takes no more
        except WalcastError as error:
            log.debug("not durable", extra={"error": str(error)})  # said once where it failed
        finally:
            self._syncing = None

    async def _send_later(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        self._later = None
        await self._send_unless_gone()

    async def _send_unless_gone(self) -> None:
        try:
            await self._send(0)
        except WalcastError as error:
            log.debug("not acknowledged", extra={"error": str(error)})  # who reads the stream finds out, too

    async def _send(self, echo_us: int) -> None:
        self._sent_s = time.monotonic()
        txid = self._applier.position.txid
        await self._stream.acknowledge(
            pb.Ack(
                received_txid=txid,
                applied_txid=txid,
                durable_txid=self._durable_txid,
                echo_us=echo_us,
                lag_us=min(self._lag_us, 0xFFFFFFFF),
            )
        )

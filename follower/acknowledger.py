"""Acknowledgements: soon after what was applied, at once when asked, and not one for every commit.

An acknowledgement costs both sides as much as a small transaction. A primary that waits for one asks by a heartbeat,
which comes behind the transactions; everybody else is served by one every few milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import time

from follower.applier import Applier
from follower.client import Stream
from walcast.errors import WalcastError
from walcast.rpc import replication_pb2 as pb

log = logging.getLogger("walcast.follower")

EVERY_S = 0.05


class Acknowledger:
    """Tells one stream's primary how far the replica is."""

    def __init__(self, stream: Stream, applier: Applier) -> None:
        self._stream = stream
        self._applier = applier
        self._lag_us = 0
        self._sent_s = 0.0
        self._later: asyncio.Task[None] | None = None

    async def applied(self, lag_us: int) -> None:
        """Something was applied, `lag_us` after it was captured."""
        self._lag_us = lag_us
        wait_s = self._sent_s + EVERY_S - time.monotonic()
        if wait_s <= 0:
            await self._send(0)
        elif self._later is None:
            self._later = asyncio.create_task(self._send_later(wait_s))

    async def heartbeat(self, clock_us: int) -> None:
        """A heartbeat is answered at once: it measures the round trip, or somebody waits."""
        await self._send(clock_us)

    async def _send_later(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        self._later = None
        try:
            await self._send(0)
        except WalcastError as error:
            log.debug("not acknowledged", extra={"error": str(error)})  # who reads the stream finds out, too

    async def _send(self, echo_us: int) -> None:
        self._sent_s = time.monotonic()
        txid = self._applier.position.txid
        await self._stream.acknowledge(
            pb.Ack(received_txid=txid, applied_txid=txid, echo_us=echo_us, lag_us=min(self._lag_us, 0xFFFFFFFF))
        )

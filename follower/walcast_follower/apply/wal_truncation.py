"""Keep the replica's WAL short: checkpoints beside the applying, and room for a restart when readers overlap for
ever.
"""

from __future__ import annotations

import asyncio
import logging
import time

from walcast.errors import DiskFull, Unavailable
from walcast.rarely import Rarely
from walcast.shortage import free_bytes, shortage
from walcast_follower.apply.applier import Applier, CheckpointResult

log = logging.getLogger("walcast.follower")

CHECKPOINT_FRAMES = 1000
HOLD_BYTES = 16 << 20
HOLD_S = 0.1
HOLD_EVERY_S = 0.25
HOLD_STEP_S = 0.002
REPORT_BYTES = 256 << 20


class WalKeeper:
    """Used by whoever owns the applier; only the checkpoint itself runs in another thread."""

    def __init__(self, applier: Applier) -> None:
        self._applier = applier
        self._running: asyncio.Task[CheckpointResult | None] | None = None
        self._failure: Unavailable | None = None
        self._rarely = Rarely(log)
        self._checkpointed = 0
        self._held_s = 0.0
        self._reported_bytes = REPORT_BYTES

    def checkpoint_when_due(self) -> None:
        """Start a checkpoint when enough was applied since the last one and none is running."""
        frames = self._applier.wal_frames
        if frames < self._checkpointed:
            self._checkpointed = 0  # the WAL was restarted
        if frames - self._checkpointed < CHECKPOINT_FRAMES or (self._running and not self._running.done()):
            return
        self._checkpointed = frames
        self._running = asyncio.create_task(self._checkpoint())

    async def _checkpoint(self) -> CheckpointResult | None:
        """None when it cannot be done now; said rarely, until it can."""
        try:
            result = await asyncio.to_thread(self._applier.checkpoint)
        except (Unavailable, RuntimeError, MemoryError) as error:
            self._failure = shortage(error, self._applier.path) if not isinstance(error, Unavailable) else error
            if self._failure is None:
                raise
            facts = {"error": str(self._failure)}
            self._rarely.log(logging.ERROR, "the replica's WAL grows", "checkpoint", facts)
            return None
        self._failure = None
        self._rarely.over("the replica's WAL is checkpointed again", "checkpoint")
        return result

    async def make_room(self) -> None:
        """Hold applying back for a bounded moment when the WAL is long and only readers keep it from restarting.

        While nothing is applied new readers use the database file alone, so those in the WAL run out.
        """
        applier = self._applier
        now = time.monotonic()
        if applier.wal_bytes < HOLD_BYTES or now - self._held_s < HOLD_EVERY_S:
            return
        self._held_s = now
        result = await self._checkpoint_now()
        while result is not None and result.complete and not applier.restart_wal_if_possible():
            if time.monotonic() - now > HOLD_S:
                break
            await asyncio.sleep(HOLD_STEP_S)
        if applier.wal_bytes > self._reported_bytes:
            self._reported_bytes = applier.wal_bytes * 2
            log.warning("readers keep the replica's WAL from restarting", extra={"wal_bytes": applier.wal_bytes})

    async def give_back(self) -> None:
        """After the disk was full: put into the database file what the WAL has, which takes no room where those pages
        are there already, and cut the WAL. DiskFull while that leaves it as long as it is."""
        applier = self._applier
        await self._settled()
        applier.cut_wal()
        result = await self._checkpoint_now()
        if applier.restart_wal_if_possible(truncate=True) or not applier.wal_frames:
            return
        detail = "a reader keeps the replica's WAL from being cut"
        if result is None:
            detail = f"the replica's WAL cannot be cut: {self._failure}"
        raise DiskFull(f"{applier.path}-wal", detail, free_bytes=free_bytes(applier.path))

    async def _checkpoint_now(self) -> CheckpointResult | None:
        """One that begins now; it is waited for in `close`, should the caller be cancelled."""
        await self._settled()
        self._running = asyncio.create_task(self._checkpoint())
        return await asyncio.shield(self._running)

    async def _settled(self) -> None:
        if self._running is not None:
            await asyncio.wait([self._running])
            if not self._running.cancelled():
                self._running.exception()  # whoever waited for it has it

    async def close(self) -> None:
        """Wait for a running checkpoint."""
        await self._settled()

"""Keep the replica's WAL short: checkpoints beside the applying, and room for a restart when readers overlap for
ever.
"""

from __future__ import annotations

import asyncio
import logging
import time

from follower.applier import Applier, CheckpointResult
from walcast.errors import Unavailable

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
        self._failing = False
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
        """None when it cannot be done now; said once, until it can."""
        try:
            result = await asyncio.to_thread(self._applier.checkpoint)
        except Unavailable as error:
            if not self._failing:
                log.error("the replica's WAL grows", extra={"error": str(error)})  # noqa: TRY400
            self._failing = True
            return None
        self._failing = False
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
        await self._settled()
        result = await self._checkpoint()
        while result is not None and result.complete and not applier.restart_wal_if_possible():
            if time.monotonic() - now > HOLD_S:
                break
            await asyncio.sleep(HOLD_STEP_S)
        if applier.wal_bytes > self._reported_bytes:
            self._reported_bytes = applier.wal_bytes * 2
            log.warning("readers keep the replica's WAL from restarting", extra={"wal_bytes": applier.wal_bytes})

    async def _settled(self) -> None:
        if self._running is not None:
            await asyncio.wait([self._running])

    async def close(self) -> None:
        """Wait for a running checkpoint."""
        await self._settled()

"""Work in threads that cannot be cancelled, only waited for, so that nothing is given back while it is still used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

log = logging.getLogger("walcast.follower")

T = TypeVar("T")


class InThread:
    """One owner's work. Used in one event loop."""

    def __init__(self) -> None:
        self._working: set[asyncio.Future[Any]] = set()

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Its answer; who gives up waiting leaves it running."""
        working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
        self._working.add(working)
        working.add_done_callback(self._done)
        return await asyncio.shield(working)

    def _done(self, working: asyncio.Future[Any]) -> None:
        self._working.discard(working)
        if not working.cancelled() and working.exception() is not None:
            log.debug("failed in a thread", exc_info=working.exception())

    async def settled(self) -> None:
        """Until none is left."""
        while self._working:
            await asyncio.wait(list(self._working))

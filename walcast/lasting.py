"""Work that must go on while memory, threads, descriptors or room run out for a moment.

The loops of a node hold its lease, its streams and its archive. One that ended with the first `MemoryError` would end
the node, or, worse, leave it without what the loop does. So what ran out costs a turn: the work is begun again a little
later. Whatever else goes wrong is the caller's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from walcast.errors import DiskFull, Exhausted
from walcast.rarely import Rarely
from walcast.shortage import shortage

log = logging.getLogger("walcast.lasting")

AGAIN_S = 0.5
RUN_OUT = (MemoryError, OSError, RuntimeError, DiskFull, Exhausted)  # of the last four only what `is_passing` says

T = TypeVar("T")

_rarely = Rarely(log)


def is_passing(error: BaseException, where: Path | str, what: str) -> bool:
    """Did something run out? Said rarely, where there is memory to say it. For `RUN_OUT`."""
    if isinstance(error, MemoryError):
        with suppress(MemoryError):
            _say(Exhausted(where, "out of memory"), what)
        return True
    known = error if isinstance(error, DiskFull | Exhausted) else shortage(error, where)
    if known is None:
        return False
    with suppress(MemoryError):
        _say(known, what)
    return True


def _say(error: Exception, what: str) -> None:
    _rarely.log(
        logging.ERROR, "something ran out; trying again", (what, type(error)), {"at": what, "error": str(error)}
    )


async def outlast(work: Callable[[], Awaitable[T]], where: Path | str, what: str) -> T:
    """What `work` comes to, which is begun again whenever something runs out in it; `where` and `what` are for the log:
    the folder or file that it works on, and which work it is."""
    while True:
        try:
            return await work()
        except RUN_OUT as error:
            if not is_passing(error, where, what):
                raise
        await asyncio.sleep(AGAIN_S)  # here, where the failed work's frames are let go


def outlast_in_thread(
    work: Callable[[], T], where: Path | str, what: str, *, pause: Callable[[float], object] = time.sleep
) -> T:
    """As `outlast`, for a thread of its own."""
    while True:
        try:
            return work()
        except RUN_OUT as error:
            if not is_passing(error, where, what):
                raise
        pause(AGAIN_S)

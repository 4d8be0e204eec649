"""A replica's scrubber: is what is on disk still what was applied?

Nobody but the applier and checkpoints writes a replica's files. A page that is not what was applied was changed behind
SQLite's back, or the disk lost it: the replica is no copy then, and is mended from the primary by the pages that
differ. None of it is kept: the write lock is held as long as a follower runs, so it cannot be what an app wrote.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import apsw

from walcast.errors import Diverged, Unavailable, WalcastError
from walcast.filewatch import FileWatch, Wrote
from walcast.lasting import outlast
from walcast.scrub import Mismatch, Scrubber, names_of, sample
from walcast_follower.apply.applier import Applier

log = logging.getLogger("walcast.follower")

LOOK_S = 2.0


class Rotten(Diverged):
    """Pages of the replica are not what was applied."""

    def __init__(self, found: Sequence[Mismatch]) -> None:
        self.pgnos = [wrong.pgno for wrong in found]
        pages = names_of(self.pgnos)
        super().__init__(f"{len(found)} pages were changed by something other than walcast, or are rotten: {pages}")


class ReplicaScrubber:
    """Of one replica, from `start` to `stop`, in the event loop of whoever owns the applier.

    `quiet` says whether the applier is used by this event loop alone now; `rotten` is told what is wrong.
    """

    def __init__(
        self, applier: Applier, quiet: Callable[[], bool], rotten: Callable[[Rotten], object], most_bytes_per_s: float
    ) -> None:
        self._applier = applier
        self._quiet = quiet
        self._rotten = rotten
        self._loop = asyncio.get_running_loop()
        self._watch = FileWatch(applier.files)
        self.scrubber = Scrubber(
            applier.files, self._connect, lambda: applier.checksums, self._confirm, most_bytes_per_s=most_bytes_per_s
        )
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._looking = asyncio.create_task(outlast(self._look, self._applier.path, "scrubber"))
        self.scrubber.start()

    async def stop(self) -> None:
        """End; the replica's files are not used any more when this returns."""
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.to_thread(self.scrubber.stop)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self._look_once()
            except (WalcastError, apsw.Error, OSError) as error:  # busy now
                facts = {"database": str(self._applier.path), "error": str(error)}
                log.debug("cannot look at the replica now", extra=facts)

    def _look_once(self) -> None:
        wrote = self._watch.look()
        if wrote is Wrote.SOMEBODY:
            log.debug("the replica was changed by no checkpoint", extra={"database": str(self._applier.path)})
            self.scrubber.suspect()
        if wrote is not Wrote.NOBODY and self._quiet():  # beside a checkpoint somebody else's write does not show
            self._tell(self._applier.differing(sample(self._applier.commit_pages)))

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self._applier.path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(0)
        return connection

    def _confirm(self, pgnos: Sequence[int]) -> Future[list[Mismatch]]:
        """Called in the scrubber's thread."""
        future: Future[list[Mismatch]] = Future()
        try:
            self._loop.call_soon_threadsafe(self._examine, pgnos, future)
        except RuntimeError:  # the event loop is closed
            raise Unavailable("stopping") from None
        return future

    def _examine(self, pgnos: Sequence[int], future: Future[list[Mismatch]]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        if not self._quiet():
            future.set_exception(Unavailable("the replica is being changed now"))
            return
        try:
            found = self._applier.differing(pgnos)
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            future.set_exception(error)
            return
        self._tell(found)
        future.set_result(found)

    def _tell(self, found: list[Mismatch]) -> None:
        if found:
            rotten = Rotten(found)
            self.scrubber.again(str(rotten), len(found))
            self._rotten(rotten)

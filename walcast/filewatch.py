"""Did anything but a checkpoint write the database file?

In WAL mode SQLite writes the database file in checkpoints only, and a checkpoint leaves traces in the wal-index:

    nBackfillAttempted is set before the first page is written, nBackfill after the last one (and after the truncation
    and the sync of the file); whoever checkpoints holds the checkpoint lock from before the first to after the last

So the file's times are read between two readings of these traces, and a change of the times from one look to the next
is a checkpoint's when the traces changed between the first reading of the one and the last reading of the other. A
checkpoint that began after the first reading and is over by the last has moved nBackfill (or the WAL was restarted,
which changes the salts); one that is not over is seen by nBackfillAttempted, which is ahead of nBackfill then, and by
its lock. One that failed leaves nBackfillAttempted ahead without the lock: its pages may be what changed the times, and
so may somebody else's; that counts as changed.

The answer is a reason to look at pages, never a verdict: `touch` changes times, too. What it cannot tell: a write in
the same look as a checkpoint, or one of a device that changes no times. The scrubber finds those.

Source: `walCheckpoint` in SQLite's wal.c; sqlite.org/walformat.html, "The WAL-Index File Format".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum

from walcast.dbfiles import DatabaseFiles
from walcast.locks import is_locked
from walcast.walindex import LOCK_CHECKPOINT

_SALT = slice(32, 40)
_BACKFILL = slice(96, 100)
_ATTEMPTED = slice(128, 132)


class Wrote(Enum):
    """Who wrote the file between two looks."""

    NOBODY = "nobody"
    CHECKPOINT = "a checkpoint, and perhaps somebody else"
    SOMEBODY = "somebody, and it was no checkpoint"


@dataclass(frozen=True, slots=True)
class Traces:
    """What checkpoints leave in the wal-index, as its bytes."""

    salt: bytes
    backfill: bytes
    attempted: bytes

    @property
    def unfinished(self) -> bool:
        """Is a checkpoint under way, or did the last one fail (or has recovery just begun the wal-index anew)?"""
        return self.backfill != self.attempted


@dataclass(frozen=True, slots=True)
class Look:
    """The file's times and size, nanoseconds and bytes, and the traces before and after they were read."""

    before: Traces
    times: tuple[int, int, int]
    after: Traces


def who_wrote(last: Look, now: Look) -> Wrote:
    """By two looks alone: SOMEBODY may still be a checkpoint that is not over."""
    if now.times == last.times:
        return Wrote.NOBODY
    return Wrote.SOMEBODY if now.after == last.before else Wrote.CHECKPOINT


class FileWatch:
    """Of one database that is open. For one thread at a time."""

    def __init__(self, files: DatabaseFiles) -> None:
        self._files = files
        self._last = self._look()

    def look(self) -> Wrote:
        """Who wrote the file since the last look, as far as can be told?"""
        last, now = self._last, self._look()
        self._last = now
        wrote = who_wrote(last, now)
        if wrote is not Wrote.SOMEBODY or not now.after.unfinished:
            return wrote
        # Asked for before the traces are read once more: a checkpoint that ended in between has moved them.
        running = is_locked(self._files.shm_fd, LOCK_CHECKPOINT)
        return Wrote.CHECKPOINT if running or self._traces() != now.after else Wrote.SOMEBODY

    def _look(self) -> Look:
        before = self._traces()
        facts = os.fstat(self._files.db_fd)
        return Look(before, (facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size), self._traces())

    def _traces(self) -> Traces:
        block = self._files.block(0)
        return Traces(block[_SALT], block[_BACKFILL], block[_ATTEMPTED])

"""Is the primary's own database damaged, and what is to be done about it?

A database that was found damaged is noted in its state folder, durably: a primary that starts again must not publish
what it refused to publish before. The note goes when the database is whole again, or when this node gets another state
of it.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import apsw

from walcast.errors import Stopped
from walcast.filesystem import write_durably
from walcast.scrub import is_of_the_file
from walcast_primary.capture.anchor import prepare

log = logging.getLogger("walcast.primary")

NAME = "damaged"
BUSY_TIMEOUT_MS = 1000
CHECK_S = 30.0
STEPS = 100_000  # of SQLite's virtual machine between two looks at the clock

# What quick_check says of rows that were allowed to be so when they were written; no page is wrong for it.
_CONTENT = re.compile(r"(NULL|NUMERIC|TEXT|non-\w+) value in |CHECK constraint failed in ")


@dataclass(frozen=True, slots=True)
class Note:
    """`pages` were changed; `complaint` is SQLite's; `good_ms`: when the database was known to be right, since the
    epoch, 0: nobody knows."""

    pages: str
    complaint: str
    good_ms: int


class Damaged(Stopped):
    """The database was changed by something other than SQLite and is damaged: nothing of that is published."""

    def __init__(self, path: Path, note: Note, archive: str) -> None:
        time_ = f" --timestamp {timestamp(note.good_ms)}" if note.good_ms else " --timestamp TIME, before the damage"
        restore = f"walcast restore {archive or 'ARCHIVE_URL'} -o {path} --force{time_}"
        super().__init__(
            f"{path} is damaged ({note.complaint}): pages {note.pages} were changed by something other than SQLite. "
            f"Followers and the archive keep the state before it. Stop the app, then restore that ({restore}) or "
            "promote a follower, and start again"
        )
        self.path = path
        self.note = note


def timestamp(ms: int) -> str:
    """RFC 3339, UTC, to the second before, as `walcast restore --timestamp` takes it."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_note(directory: Path, note: Note) -> None:
    """Durably."""
    write_durably(directory / NAME, json.dumps(asdict(note)).encode())


def read_note(directory: Path) -> Note | None:
    """None when there is none. One that cannot be read still says that there was damage."""
    try:
        said = json.loads((directory / NAME).read_text())
        return Note(str(said["pages"]), str(said["complaint"]), int(said["good_ms"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Note("unknown", "unknown", 0)


def forget_note(directory: Path) -> None:
    """It is over."""
    (directory / NAME).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Checked:
    """What `PRAGMA quick_check` found. `complaint`: the first thing that is wrong, empty when nothing is; without
    `whole` there was no time to look at everything."""

    complaint: str
    whole: bool


def quick_check(path: Path, stopping: Callable[[], bool] = lambda: False, seconds: float = CHECK_S) -> Checked:
    """By a connection of its own, which has no old pages in its cache. Bounded; ended early when `stopping`."""
    end_s = time.monotonic() + seconds

    def over() -> bool:
        return stopping() or time.monotonic() > end_s

    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as error:
        return _not_checked(path, error)
    try:
        prepare(connection, BUSY_TIMEOUT_MS)
        connection.set_progress_handler(over, STEPS)
        for row in connection.execute("PRAGMA quick_check"):
            said = str(row[0])
            if said != "ok" and not _CONTENT.match(said):
                return Checked(" ".join(said.split()), whole=True)
    except apsw.Error as error:
        return _not_checked(path, error)
    finally:
        connection.close()
    return Checked("", whole=True)


def _not_checked(path: Path, error: apsw.Error) -> Checked:
    """A verdict keeps this node from ever being the primary of the database again, so only what is wrong with the file
    is one: no want of memory or descriptors, nor that it was interrupted, is busy, or has a collation of the app's."""
    if is_of_the_file(error):
        return Checked(str(error), whole=True)
    log.debug("quick_check did not end", extra={"path": str(path), "error": str(error)})
    return Checked("", whole=False)

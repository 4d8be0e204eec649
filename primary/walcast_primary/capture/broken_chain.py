"""A WAL whose checksums no longer chain, though all of it was committed: a fault of SQLite before 3.50.2.

A transaction that outgrew its page cache and wrote a page a second time leaves salts and checksums of the frames
behind it zero until it commits. If it rolled back to a savepoint before that page, they stayed zero. Every connection
goes on reading what was committed, but a recovery of the WAL after a crash ends before those frames, and loses that
transaction and all behind it. The log has them: they are captured, and replayed into the database after a crash. The
primary has the WAL begin anew as soon as that can be.

The chain cannot prove such frames, so they are compared with the wal-index instead.
"""

from __future__ import annotations

import logging
from typing import Any

from numpy.typing import NDArray

from walcast.dbfiles import DatabaseFiles
from walcast.errors import Corrupt
from walcast.walindex import IndexHeader

log = logging.getLogger("walcast.primary")

BATCH_BYTES = 1 << 20


def are_of(frames: NDArray[Any], salt: tuple[int, int]) -> bool:
    """Return whether frames have this salt, or were left without salt and checksum."""
    own = (frames["salt"] == salt).all(axis=1)
    blank = (frames["salt"] == 0).all(axis=1) & (frames["cksum"] == 0).all(axis=1)
    return bool((own | blank).all())


def is_indexed(files: DatabaseFiles, first: int, header: IndexHeader, page_size: int) -> bool:
    """Return whether the frames from `first` to the last one are those of the wal-index: of its salt, of the pages that
    it names, in their order, and with a last one that commits as many pages as it says."""
    pgnos = files.frame_pgnos(header.mx_frame)
    batch = max(1, BATCH_BYTES // page_size)
    commit = 0
    try:
        for start in range(first, header.mx_frame + 1, batch):
            count = min(batch, header.mx_frame + 1 - start)
            frames = files.read_frames(start, count, page_size)
            same_pages = (frames["pgno"] == pgnos[start - 1 : start - 1 + count]).all()
            if not same_pages or not are_of(frames, header.salt):
                return False
            commit = int(frames["commit"][-1])
    except Corrupt:  # the file is shorter than that
        return False
    return commit == header.commit_pages


def say(files: DatabaseFiles, header: IndexHeader) -> None:
    """Log it, for whoever can update the app's SQLite."""
    what = (
        "the app's SQLite has committed what it would lose in a crash (a fault before 3.50.2, after ROLLBACK TO a "
        "savepoint): it is captured; update the app's SQLite"
    )
    log.warning(what, extra={"path": str(files.path), "frame": header.mx_frame})

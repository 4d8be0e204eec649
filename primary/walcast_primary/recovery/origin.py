"""Where a database stands relative to the transaction log, when the log's last entry is not what it ends with.

A power cut can take a database back: with `synchronous=NORMAL` SQLite does not sync each commit, so the machine may
come up with a `-wal` that ends earlier, while the log, synced before anything is published, has every commit that
was captured. What tells the cases apart:

* The WAL itself. A frame's checksum chains over all frames before it, and the log has the mark (frame, checksum) of
  every commit. A WAL whose last commit is a mark of the log *is* the WAL that was captured, cut off there. A WAL that
  has a mark and then other frames was written on by somebody after it had been cut.
* The content, where the WAL is gone (whoever opens a database after the power cut and closes it again removes the WAL):
  the database checksum is that of a position in the log.

Pure but for reading the log and, through `frame_cksum`, the WAL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from walcast import ltx, savedsums
from walcast.checksum import page_checksum
from walcast.position import Position
from walcast.wal import FRAME_HEADER_SIZE, WAL_HEADER_SIZE
from walcast.walindex import IndexHeader
from walcast_primary.transaction_log.segment import Entry
from walcast_primary.transaction_log.transaction_log import TransactionLog

MOST_RESTARTS = 1 << 20  # of the WAL, between a commit that the log has and the present
FEW_RESTARTS = 1 << 14  # that are believed by the salt alone: a random one is as close once in 262,144 times


@dataclass(frozen=True, slots=True)
class TakenBack:
    """The database is as it was at a commit that the log has: everything from `entry` on is missing in it, at least
    in part. `proven` by the WAL; otherwise by the content alone."""

    entry: Entry
    proven: bool


@dataclass(frozen=True, slots=True)
class WrittenOn:
    """The database was taken back to `fork`, or to a commit of the entry after it, and then somebody wrote to it."""

    fork: Position


@dataclass(frozen=True, slots=True)
class Continues:
    """The WAL has all that the log has. `more`: and commits after it."""

    more: bool


Origin = TakenBack | WrittenOn | Continues


def origin_by_wal(
    log: TransactionLog, index: IndexHeader, page_size: int, frame_cksum: Callable[[int], tuple[int, int]]
) -> Origin | None:
    """What the WAL proves; None when it proves nothing.

    `index` is the committed state of the WAL, `frame_cksum` answers the checksum of one of its frames.
    """
    later: Entry | None = None  # the oldest entry that is known not to be whole in this WAL
    for entry in log.backwards():
        header = entry.header()
        frames = _frames(header, page_size)
        if frames is not None and header.wal_salt != index.salt:
            break  # of a WAL before this one
        if frames is not None and frames.stop - 1 <= index.mx_frame:
            last = frames.stop - 1
            if frame_cksum(last) == header.wal_cksum:
                if later is None:
                    return Continues(more=last < index.mx_frame)
                return _after(entry.position, later, last, index, frame_cksum)
        later = entry
    frames = _frames(later.header(), page_size) if later is not None else None
    if later is None or frames is None or later.header().wal_salt != index.salt or index.mx_frame < frames.start - 1:
        return None
    before = Position(later.min_txid - 1, later.pre_checksum)
    return _after(before, later, frames.start - 1, index, frame_cksum)


def _frames(header: ltx.Header, page_size: int) -> range | None:
    """The frames of the WAL that an entry was captured from; None for one that was not captured from frames."""
    size = FRAME_HEADER_SIZE + page_size
    if header.page_size != page_size or not header.wal_size:
        return None
    first = (header.wal_offset - WAL_HEADER_SIZE) // size + 1
    return range(first, first + header.wal_size // size)


def _after(
    position: Position, later: Entry, last: int, index: IndexHeader, frame_cksum: Callable[[int], tuple[int, int]]
) -> Origin:
    """The WAL holds `position`, whose last frame is `last`, and not all of `later`, the entry that follows it."""
    if last == index.mx_frame:
        return TakenBack(later, proven=True)
    for mark in later.marks()[::-1]:
        frame, cksum = int(mark["frame"]), (int(mark["cksum"][0]), int(mark["cksum"][1]))
        if last < frame <= index.mx_frame and frame_cksum(frame) == cksum:
            return TakenBack(later, proven=True) if frame == index.mx_frame else WrittenOn(position)
    return WrittenOn(position)


def restarted_since(log: TransactionLog, index: IndexHeader) -> bool:
    """Is the WAL the one that the log has commits of, some restarts later? A restart adds one to the first salt, and
    SQLite restarts a WAL only when all of it is in the database file. A WAL that is made anew has random salts."""
    if not index.mx_frame:
        return False
    for entry in log.backwards():
        header = entry.header()
        if header.wal_size:
            return 0 < (index.salt[0] - header.wal_salt[0]) % (1 << 32) < FEW_RESTARTS
    return False


def origin_by_content(log: TransactionLog, checksum: int) -> TakenBack | None:
    """The newest position of the log, before its last, with this database checksum."""
    for entry in log.backwards():
        if entry.pre_checksum == checksum:
            return TakenBack(entry, proven=False)
    return None


@dataclass(frozen=True, slots=True)
class Versions:
    """What the log has of some pages. `missing`: those that no entry wrote. `fork`: the position before the first entry
    one of whose pages stands in the database as it was before that entry; None when there is no such page. `traced`:
    the position after the newest entry one of whose pages stands in the database as that entry wrote it and none after
    it; of what the log has beyond it nothing is to be seen there. `mostly_undone`: more of the pages stand as they were
    before such an entry than have a content that the log does not know."""

    missing: frozenset[int]
    fork: Position | None
    traced: Position
    mostly_undone: bool


def versions_in_log(
    log: TransactionLog, pgnos: NDArray[np.uint32], checksums: NDArray[np.uint64], below: frozenset[int] = frozenset()
) -> Versions:
    """Look for pages, whose present checksums are given, among everything that the log has: reads all of it. What a
    page was before the log had it is known from the checksums that were saved with the newest segment. `below`: pages
    that stand in the database file as the log has them last, under newer ones of a WAL that was begun later."""
    present = dict(zip(pgnos.tolist(), checksums.tolist(), strict=True))
    saved = savedsums.load(log.directory)
    newest: dict[int, int] = {}
    writer: dict[int, Position] = {}  # by page: after the last entry that wrote it
    undone: dict[int, Position] = {}  # by page: before the last entry that replaced what stands there now
    for entry in reversed(list(log.backwards())):
        before = Position(entry.min_txid - 1, entry.pre_checksum)
        for page in entry.pages():
            writer[page.pgno] = entry.position
            if page.pgno not in present:
                continue
            if page.pgno not in newest and saved is not None and before.txid >= saved[1].txid:
                newest[page.pgno] = saved[0].get(page.pgno)
            if newest.get(page.pgno) == present[page.pgno]:
                undone[page.pgno] = before
            newest[page.pgno] = page_checksum(page.pgno, page.data)
    fork = min(undone.values(), default=None)
    pages = log.checksums.commit_pages if log.checksums is not None else 0
    stand = (at for pgno, at in writer.items() if pgno <= pages and (pgno not in present or pgno in below))
    traced = max(stand, default=log.first)
    missing = present.keys() - newest.keys()
    unknown = len(present) - len(missing) - len(undone)
    return Versions(frozenset(missing), fork, traced, len(undone) > unknown)

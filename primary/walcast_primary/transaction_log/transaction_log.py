"""The transaction log: what was captured, on local disk, before anybody hears of it.

Invariant: the log's position is durable, and no TXID is ever given to different content. So an entry is written and
`fdatasync`ed before it is published; at start a tail that does not decode was never published and is cut off.

The log keeps the page checksums of the database at its position, so that after any restart the primary can tell which
pages changed while it was away. They are saved at each new segment (`checksums`, atomically replaced) and brought up to
the position by replaying the entries since; the log is the truth, the file is its checkpoint.

Bounded: whole segments are deleted from the old end by bytes and age. A `pin` (a running copy) holds that back up to a
multiple of the bound.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from walcast import ltx, savedsums
from walcast.checksum import PageChecksums, page_checksum
from walcast.errors import Corrupt
from walcast.filesystem import fsync_directory, make_directory
from walcast.position import Position
from walcast.terms import TERM_TXIDS
from walcast_primary.capture.commit_clock import Clock
from walcast_primary.transaction_log.segment import Entry, Segment, Writer
from walcast_primary.transaction_log.segment_files import delete_segments, load_segments

PINNED_FACTOR = 4
WORTH_BYTES = 1 << 20


class Known(Enum):
    """What the log can say of somebody's position."""

    YES = "it continues from there"
    OLDER = "its oldest entry is newer"
    DIVERGED = "that position is not on its history"


class TransactionLog:
    """Entries from `first` to `position`, contiguous in TXIDs and checksums. One thread appends, any may read.

    `before_trim` is called, in the appending thread, with each segment that is about to be deleted, and
    `sync_database` before that: what can no longer be replayed must be durable in the database itself.
    """

    def __init__(self, directory: Path, *, max_bytes: int, max_age_s: float, segment_bytes: int = 16 << 20) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        self.segment_bytes = min(segment_bytes, max(max_bytes // 4, 1 << 16))
        self.position = Position()
        self.term = 1
        self.checksums: PageChecksums | None = None
        self._segments: list[Segment] = []
        self._lock = threading.Lock()
        self._pins = 0
        self._rotten = False
        self._listeners: list[Callable[[], None]] = []
        self.clock = Clock()
        self.before_trim: Callable[[Segment], None] = lambda segment: None
        self.sync_database: Callable[[], None] = lambda: None

    # Opening

    @classmethod
    def open(cls, directory: Path, *, max_bytes: int = 256 << 20, max_age_s: float = 3600.0) -> TransactionLog:
        """What is there, cut back to the last entry that is whole. Without a usable `checksums`, `checksums` is None
        and `position` still tells the last TXID given, so that a new start goes on behind it."""
        make_directory(directory, parents=True)
        log = cls(directory, max_bytes=max_bytes, max_age_s=max_age_s)
        log._load()
        saved = savedsums.load(directory)
        if saved is None or log._rotten:
            return log
        checksums, position, term = saved
        log.term = max(log.term, term)
        if not log._segments:
            log.position, log.checksums = position, checksums
            return log
        try:
            log._replay(checksums, position)
        except Corrupt:
            log.checksums = None
            log.position = max(log.position, position)  # no TXID is given twice
        return log

    def _load(self) -> None:
        self._segments, lost_txid = load_segments(self.directory)
        if self._segments:
            entry = self._segments[-1].entry(-1)
            self.position = entry.position
            self.term = entry.header().term or 1
            self.clock.not_before(self._segments[-1].newest_ms)
        if lost_txid > self.position.txid:
            self.position = Position(lost_txid)
            self._rotten = True

    def _replay(self, checksums: PageChecksums, position: Position) -> None:
        """Bring the saved checksums up to the log's end; what does not decode was never published and ends the log."""
        while position != self.position:
            entry = self.after(position.txid)
            if entry is None or entry.pre_checksum != position.checksum:
                raise Corrupt("the log does not go on from the saved checksums")
            try:
                _replay_entry(entry, checksums)
            except Corrupt:
                if entry.max_txid != self.position.txid:
                    raise  # not a torn tail: what comes after was published, and its TXIDs are given
                self._cut_from(entry)
                break
            position = entry.position
        self.position, self.checksums = position, checksums

    def _cut_from(self, entry: Entry) -> None:
        """Forget an entry and all after it."""
        while self._segments[-1] is not entry.segment:
            self._segments.pop().path.unlink()
        entry.segment.cut(entry.segment.min_txids.index(entry.min_txid))

    def start(self, checksums: PageChecksums, position: Position) -> None:
        """Begin anew at a state of the database; older entries no longer connect and go."""
        savedsums.save(self.directory, checksums, position, self.term)  # first: a crash must not forget TXIDs given
        with self._lock:
            delete_segments(self.directory)
            self._segments.clear()
            self.checksums, self.position, self._rotten = checksums, position, False

    # Appending

    def timestamp_ms(self) -> int:
        """The time for the next entry: never before that of the last one, so that an archive is searched by time."""
        return self.clock.stamp_ms()

    def not_before(self, timestamp_ms: int) -> None:
        """Have no entry's time be before that of an older one, which another node gave."""
        self.clock.not_before(timestamp_ms)

    def writer(self, min_txid: int) -> Writer:
        """For the entry that begins with `min_txid`, which must follow the position."""
        if not self._segments or self._segments[-1].end >= self._roll_bytes():
            self._roll(min_txid)
        return Writer(self._segments[-1])

    def _roll_bytes(self, least_bytes: int = 0) -> int:
        pages = 0 if self.checksums is None else self.checksums.commit_pages
        # Saving 8 bytes a page must stay a small part of the writing, but the bound comes first.
        return max(least_bytes or self.segment_bytes, min(64 * pages, self.max_bytes // 4))

    def _roll(self, min_txid: int) -> None:
        if self._segments:
            self._segments[-1].seal()
        self.trim()  # on a full disk the oldest go first
        self._save_checksums()
        segment = Segment.create(self.directory, min_txid)
        fsync_directory(self.directory)
        with self._lock:
            self._segments.append(segment)
        self.trim()

    def append(
        self,
        header: ltx.Header,
        trailer: ltx.Trailer,
        pgnos: NDArray[np.uint32],
        sums: NDArray[np.uint64],
        marks_size: int = 0,
    ) -> None:
        """Move the position over the entry that its writer has made durable, and tell the listeners."""
        assert self.checksums is not None
        self.checksums.apply(pgnos, sums, header.commit_pages, trailer.post_checksum)
        with self._lock:
            self._segments[-1].append(header, trailer.post_checksum, trailer.size, time.monotonic_ns(), marks_size)
            self.position = Position(header.max_txid, trailer.post_checksum)
        for listener in self._listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called, in the appending thread, after each entry; call the answer to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def abandon(self) -> None:
        """The entry that was being written failed: give back what was allocated for it."""
        if self._segments:
            self._segments[-1].seal()

    def _save_checksums(self) -> None:
        assert self.checksums is not None
        savedsums.save(self.directory, self.checksums, self.position, self.term)

    # Bounds

    @contextmanager
    def pin(self) -> Iterator[None]:
        """Keep entries from being trimmed for a while, up to `PINNED_FACTOR` times the bound."""
        with self._lock:
            self._pins += 1
        try:
            yield
        finally:
            with self._lock:
                self._pins -= 1

    def trim(self) -> None:
        """Delete the oldest segments that are over the bounds; the newest always stays."""
        over = self._over_bounds()
        if over:
            self.sync_database()
        for segment in over:
            self.before_trim(segment)
            with self._lock:
                segment.path.unlink()
                self._segments.remove(segment)

    def give_back(self, *, newest: bool = False) -> bool:
        """The disk is full: delete the oldest segment, whoever has pinned it; False when there is none to spare. Of the
        only one a new one is begun first, if it is worth it, and it goes the next time, or with `newest` now."""
        if len(self._segments) == 1 and self._segments[0].end >= self._roll_bytes(WORTH_BYTES):
            self._roll(self.position.txid + 1)
            if not newest:
                return False
        with self._lock:
            if len(self._segments) < 2:
                return False
            oldest = self._segments[0]
        self.sync_database()
        self.before_trim(oldest)
        with self._lock:
            oldest.path.unlink()
            self._segments.remove(oldest)
        return True

    def _over_bounds(self) -> list[Segment]:
        oldest_ms = int((time.time() - self.max_age_s) * 1000)
        over: list[Segment] = []
        with self._lock:
            bound = self.max_bytes * (PINNED_FACTOR if self._pins else 1)
            total = sum(s.end for s in self._segments)
            for oldest in self._segments[:-1]:
                too_old = oldest.newest_ms < oldest_ms and not self._pins
                if total <= bound and not too_old:
                    break
                total -= oldest.end
                over.append(oldest)
        return over

    def close(self) -> None:
        """Give back what was allocated ahead; the log stays usable by a later `open`."""
        if self._segments and not self._rotten:
            self._segments[-1].seal()

    def let_go(self) -> None:
        """After `close`, where the process lives on and the files are to be deleted: their space is free then."""
        with self._lock:
            self._segments.clear()

    # Reading

    @property
    def size_bytes(self) -> int:
        """Bytes of all entries."""
        with self._lock:
            return sum(s.end for s in self._segments)

    @property
    def first(self) -> Position:
        """The oldest position a reader can go on from."""
        with self._lock:
            if not self._segments or not len(self._segments[0]):
                return self.position
            entry = self._segments[0].entry(0)
            return Position(entry.min_txid - 1, entry.pre_checksum)

    @property
    def last(self) -> Entry | None:
        """The newest entry."""
        with self._lock:
            for segment in reversed(self._segments):
                if len(segment):
                    return segment.entry(-1)
            return None

    def after(self, txid: int) -> Entry | None:
        """The entry that begins right behind `txid`; None at the end, and where no entry begins there."""
        with self._lock:
            for segment in reversed(self._segments):
                if len(segment) and segment.min_txids[0] <= txid + 1:
                    return segment.find(txid + 1)
            return None

    def bytes_after(self, txid: int) -> int | None:
        """How much of the log is behind `txid`, to the granularity of its entries; None where it does not reach back to
        it."""
        with self._lock:
            if txid >= self.position.txid:
                return 0
            after = 0
            for segment in reversed(self._segments):
                if not len(segment):
                    continue
                if segment.min_txids[0] > txid + 1:
                    after += segment.end
                    continue
                first = bisect_right(segment.max_txids, txid)
                return after + (segment.end - segment.offsets[first] if first < len(segment) else 0)
            return None

    def backwards(self) -> Iterator[Entry]:
        """Every entry, the newest first."""
        with self._lock:
            segments = list(self._segments)
        for segment in reversed(segments):
            for index in range(len(segment) - 1, -1, -1):
                yield segment.entry(index)

    def ending_at(self, txid: int) -> Entry | None:
        """The entry that ends with `txid`."""
        with self._lock:
            for segment in reversed(self._segments):
                if len(segment) and segment.min_txids[0] <= txid:
                    return segment.ending_at(txid)
            return None

    def named(self, checksum: int) -> tuple[int, Position] | None:
        """Term and newest position with this database checksum, of those that a copy can go on from. A millisecond at
        most: 8 bytes an entry are compared."""
        first = self.first
        with self._lock:
            for segment in reversed(self._segments):
                entry = segment.find_checksum(checksum) if len(segment) else None
                if entry is not None:
                    return entry.header().term or 1, entry.position
            oldest = self._segments[0].entry(0) if self._segments and len(self._segments[0]) else None
        if checksum != first.checksum or not first:
            return None
        # A copy there takes the oldest entry next, which may be the one that began its term.
        term = self.term if oldest is None else oldest.header().term or 1
        begins = oldest is not None and oldest.max_txid - first.txid >= TERM_TXIDS
        return max(1, term - 1) if begins else term, first

    def knows(self, position: Position) -> Known:
        """Can a copy at `position` go on from here?"""
        if position == self.position or position == self.first:
            return Known.YES
        if position.txid < self.first.txid:
            return Known.OLDER
        entry = self.after(position.txid)
        return Known.YES if entry and entry.pre_checksum == position.checksum else Known.DIVERGED


def _replay_entry(entry: Entry, checksums: PageChecksums) -> None:
    pgnos: list[int] = []
    sums: list[int] = []
    for page in entry.pages():
        pgnos.append(page.pgno)
        sums.append(page_checksum(page.pgno, page.data))
    commit_pages = entry.header().commit_pages
    numbers, values = np.array(pgnos, np.uint32), np.array(sums, np.uint64)
    if checksums.after(numbers, values, commit_pages) != entry.post_checksum:
        raise Corrupt(f"entry {entry.min_txid} does not lead to its checksum")
    checksums.apply(numbers, values, commit_pages)

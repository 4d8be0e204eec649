"""Capture: committed WAL frames → entries of the transaction log.

What is committed is read from the wal-index's header; the frames up to there stay readable because the anchor is held.
`Capture` remembers one place, `frame` of the WAL with `salt`: everything before it is in the log.

* same salts, higher mxFrame: new commits;
* other salts: the WAL was restarted, and by the anchor's invariant only after all its frames were captured. How they
  changed proves nothing: a restart adds one to salt-1, but a connection that finds the WAL truncated picks both at
  random. What could break the invariant is somebody removing the files under us, so that is looked for at each such
  change.

A WAL that is shorter than what was captured from it has lost its connection: `walcast_primary.recovery.resume`
compares all pages then.
"""

from __future__ import annotations

import os
import struct
from typing import Any

import apsw
import numpy as np
from numpy.typing import NDArray

from walcast import ltx
from walcast.dbfiles import DatabaseFiles, PageReader
from walcast.errors import LostContinuity, Stopped, Unavailable
from walcast.wal import FRAME_HEADER_SIZE, frame_offset
from walcast.walindex import IndexHeader
from walcast_primary.capture.broken_chain import are_of, is_indexed, say
from walcast_primary.capture.file_identity import check_same_files
from walcast_primary.capture.frame_groups import Group, group, unwritten_pages
from walcast_primary.transaction_log.log_entries import append_entry
from walcast_primary.transaction_log.segment import MARK, encode_marks
from walcast_primary.transaction_log.transaction_log import TransactionLog

BATCH_BYTES = 4 << 20
CKSUM_OFFSET = 16
CKSUM = struct.Struct(">2I")


class Capture:
    """The place in the WAL up to which everything is logged, and the way forward from it. Not thread-safe."""

    def __init__(self, files: DatabaseFiles, reader: apsw.Connection, log: TransactionLog, page_size: int) -> None:
        self.files = files
        self.log = log
        self.page_size = page_size
        self.frame = 0
        self.salt = (0, 0)
        self.lowest_pages = 0
        self._unchained: tuple[int, int] | None = None  # the salt of a WAL whose checksums do not chain
        self._durable: tuple[tuple[int, int], int] | None = None
        self.reader = reader
        self.frame_size = FRAME_HEADER_SIZE + page_size
        self._batch_frames = max(1, BATCH_BYTES // self.frame_size)
        # Not zeroed: memory that no batch ever filled is never taken, and a process may serve hundreds of databases.
        self._buffer = np.empty(self._batch_frames * self.frame_size, np.uint8)
        self._view = self._buffer.data

    def seek(self, frame: int, salt: tuple[int, int]) -> None:
        """Everything up to `frame` of the WAL with `salt` is in the log."""
        self.frame, self.salt = frame, salt

    def forget_lowest_pages(self) -> int:
        """The smallest commit size, pages, since the last call; 0 when commits went by that were not seen."""
        lowest = self.lowest_pages
        assert self.log.checksums is not None
        self.lowest_pages = self.log.checksums.commit_pages
        return lowest

    def capture(self) -> int:
        """Log every commit there is; the number of transactions. LostContinuity when the WAL does not connect."""
        header = self.files.index_header()
        if header is None:
            raise Unavailable(f"{self.files.path}-shm: a writer is between the two copies of the header")
        if header.salt != self.salt:
            check_same_files(self.files)
            self.seek(0, header.salt)
        if header.mx_frame < self.frame:
            raise LostContinuity(f"the WAL ends at frame {header.mx_frame}, {self.frame} were captured")
        if self.frame < header.mx_frame and self.frame_cksum(header.mx_frame) != header.frame_cksum:
            # A frame's checksum chains over all before it, so one comparison tells that these are the frames meant.
            check_same_files(self.files)
            self._take_unchained(header)
        if self.frame == 0 and header.mx_frame:
            # An app with synchronous=OFF does not sync the header of a WAL that begins again. Without it a power cut
            # may leave the first frames of the WAL before, which recovery would lay over the newer database file; that
            # has pages of them which the log may not have any more.
            os.fdatasync(self.files.wal_fd)
        transactions = 0
        while self.frame < header.mx_frame:
            transactions += self._one_group(header.mx_frame)
        return transactions

    def _take_unchained(self, header: IndexHeader) -> None:
        """Stopped unless these are the frames of the wal-index all the same, by a fault of the app's SQLite."""
        if not is_indexed(self.files, self.frame + 1, header, self.page_size):
            raise Stopped(f"{self.files.path}-wal: frame {header.mx_frame} is not the one that was committed")
        self._note_unchained(header)

    def _note_unchained(self, header: IndexHeader) -> None:
        if self._unchained != header.salt:
            self._unchained = header.salt
            say(self.files, header)

    @property
    def is_unchained(self) -> bool:
        """Would a recovery of the WAL lose commits? Then it is to begin anew."""
        return self._unchained == self.salt

    def settle(self) -> int:
        """`capture`, before the anchor lets go of a state. If the WAL is copied back completely it may restart then, so
        that the database file alone has what was copied: it is made durable first. SQLite does so itself, but not for
        an app with `synchronous=OFF`, and the log may not have those pages any more. OSError when that fails."""
        transactions = self.capture()
        copied = (self.salt, self.files.checkpoint_info().backfill)
        if copied[1] >= self.frame and copied != self._durable:
            os.fdatasync(self.files.db_fd)
            self._durable = copied
        return transactions

    def _one_group(self, mx_frame: int) -> int:
        count = min(mx_frame - self.frame, self._batch_frames)
        frames = self._read(self.frame + 1, count)
        found = group(frames["pgno"].astype(np.uint32), frames["commit"].astype(np.uint32))
        if found is None:
            found = self._long_transaction(mx_frame)
            pages = _FilePages(self.files, self.frame + 1, self.page_size)
            self._log_group(found, pages)
        else:
            marks = self._marks(frames, found) if found.commits > 1 else b""
            self._log_group(found, _BufferPages(self._view, self.page_size), marks)
        self.lowest_pages = min(self.lowest_pages, found.lowest_pages)
        self.frame += found.frame_count
        return found.commits

    def _read(self, first: int, count: int) -> NDArray[Any]:
        frames = self.files.read_frames(first, count, self.page_size, self._buffer)
        if not (frames["salt"] == self.salt).all() and not self._are_left_blank(frames, first):
            raise LostContinuity(f"frames from {first} on are not of the WAL with salts {self.salt}")
        return frames

    def _are_left_blank(self, frames: NDArray[Any], first: int) -> bool:
        """Return whether frames are of the wal-index, but were left without salt and checksum. Frames that SQLite
        appends to such ones chain again, so the newest frame does not tell."""
        if not are_of(frames, self.salt):
            return False
        if self.is_unchained:
            return True
        header = self.files.index_header()
        if header is None or header.salt != self.salt or not is_indexed(self.files, first, header, self.page_size):
            return False
        self._note_unchained(header)
        return True

    def _long_transaction(self, mx_frame: int) -> Group:
        """A transaction of more frames than the buffer holds: only page numbers are kept, pages are read again."""
        pgnos: list[NDArray[np.uint32]] = []
        commits: list[NDArray[np.uint32]] = []
        at = self.frame
        while at < mx_frame:
            count = min(mx_frame - at, self._batch_frames)
            frames = self._read(at + 1, count)
            ends = np.flatnonzero(frames["commit"])
            stop = int(ends[0]) + 1 if len(ends) else count
            pgnos.append(frames["pgno"][:stop].astype(np.uint32))
            commits.append(frames["commit"][:stop].astype(np.uint32))
            at += stop
            if len(ends):
                break
        found = group(np.concatenate(pgnos), np.concatenate(commits))
        if found is None:
            raise LostContinuity(f"frame {mx_frame} is committed but no frame up to it commits")
        return found

    def _marks(self, frames: NDArray[Any], found: Group) -> bytes:
        """Where each commit of the group ends, but for the last, which the header tells."""
        ends = np.flatnonzero(frames["commit"][: found.frame_count])[:-1]
        marks = np.empty(len(ends), MARK)
        marks["frame"] = self.frame + 1 + ends
        marks["cksum"] = frames["cksum"][ends]
        return encode_marks(marks)

    def _log_group(self, found: Group, pages: _BufferPages | _FilePages, marks: bytes = b"") -> None:
        log = self.log
        checksums = log.checksums
        assert checksums is not None
        extra = unwritten_pages(found, checksums.commit_pages, self.page_size)
        pgnos, sources = found.pgnos, found.frames
        if extra:
            pgnos = np.concatenate((pgnos, np.array(extra, np.uint32)))
            order = np.argsort(pgnos)
            sources = np.concatenate((sources, np.full(len(extra), -1)))[order]
            pgnos = pgnos[order]

        def page(index: int) -> ltx.Buffer:
            source = int(sources[index])
            return pages.page(source) if source >= 0 else self.database_page(int(pgnos[index]))

        append_entry(log, self._header(found), pgnos, page, marks)

    def _header(self, found: Group) -> ltx.Header:
        last = self.frame + found.frame_count
        start = frame_offset(self.frame + 1, self.page_size)
        position = self.log.position
        return ltx.Header(
            page_size=self.page_size,
            commit_pages=found.commit_pages,
            min_txid=position.txid + 1,
            max_txid=position.txid + found.commits,
            timestamp_ms=self.log.timestamp_ms(),
            pre_checksum=position.checksum,
            wal_offset=start,
            wal_size=found.frame_count * self.frame_size,
            wal_salt=self.salt,
            term=self.log.term,
            wal_cksum=self.frame_cksum(last),
        )

    def frame_cksum(self, frame: int) -> tuple[int, int]:
        """The checksum that frame `frame` carries, chained over all frames before it."""
        data = os.pread(self.files.wal_fd, CKSUM.size, frame_offset(frame, self.page_size) + CKSUM_OFFSET)
        if len(data) < CKSUM.size:
            raise Stopped(f"{self.files.path}-wal: ends before frame {frame}")
        first, second = CKSUM.unpack(data)
        return first, second

    def database_page(self, pgno: int) -> memoryview:
        """A page of the newest state; zeros past its end."""
        with PageReader(self.files, self.reader) as reader:
            if pgno > reader.header.commit_pages:
                return memoryview(bytes(self.page_size))
            return reader.read(pgno, 1)


class _BufferPages:
    """Pages of frames in the batch buffer."""

    def __init__(self, view: memoryview, page_size: int) -> None:
        self._view, self._size = view, page_size

    def page(self, index: int) -> memoryview:
        start = index * (FRAME_HEADER_SIZE + self._size) + FRAME_HEADER_SIZE
        return self._view[start : start + self._size]


class _FilePages:
    """Pages of frames in the WAL, read one at a time."""

    def __init__(self, files: DatabaseFiles, first_frame: int, page_size: int) -> None:
        self._files, self._first, self._size = files, first_frame, page_size

    def page(self, index: int) -> memoryview:
        frames = self._files.read_frames(self._first + index, 1, self._size)
        return memoryview(frames["page"][0])

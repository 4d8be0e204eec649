"""Writes one replica's WAL and wal-index as SQLite does, so that stock readers follow (sqlite.org/walformat.html).

A commit becomes visible in two ways, and both must show all of it or nothing:

* to **readers**, by the wal-index header: they see `mx_frame` frames and nothing after. It moves last, second copy
  first, when all frames and hash entries stand.
* to **recovery** (a reader that finds the wal-index torn or new, after we died), by the WAL file alone: it takes all
  frames up to the last one with a commit size whose checksums hold. So no frame with a commit size is written before
  the whole transaction is there and is known to be right: the last frame is held back until `publish`.

What a crash or a rollback leaves after frame `mx_frame`, frames without a commit size or (killed between the last frame
and the header) one whole commit, the next transaction overwrites from `mx_frame` + 1 on. If that is shorter, older
frames stay behind it, with the right salts. They cannot be taken for its continuation: a frame's checksum covers all
frames before it, and theirs covers others. (If they are the very same frames, up to and including a commit, then what
follows is what once followed the same state.)
"""

from __future__ import annotations

import os
import secrets
import struct
import threading
from array import array
from dataclasses import replace

import numpy as np

from walcast.dbfiles import DatabaseFiles
from walcast.errors import Corrupt, Unavailable
from walcast.filesystem import pwrite_all
from walcast.locks import try_lock, unlock
from walcast.wal import (
    FRAME_HEADER_SIZE,
    NATIVE_BIG_ENDIAN,
    WAL_HEADER_SIZE,
    WalHeader,
    frame_offset,
    record_checksums,
)
from walcast.walindex import (
    CKPT_INFO_OFFSET,
    HEADER_SIZE,
    LOCK_CHECKPOINT,
    LOCK_READ0,
    LOCK_WRITE,
    READ_MARK_UNUSED,
    WALINDEX_VERSION,
    HashBlock,
    IndexHeader,
    frame_block,
)

RETIRED_VERSION = 0  # no version of SQLite has such a wal-index
BUFFER_BYTES = 1 << 20  # frames are checksummed and written while they are still in the core's cache
TRUNCATE_BYTES = 64 << 20  # a WAL file larger than this is cut when it restarts
READ_LOCKS = 4  # read locks 1 to 4: readers that use the WAL
NBACKFILL_ATTEMPTED_OFFSET = 128

Page = bytes | bytearray | memoryview

_HEAD = struct.Struct(">6I")
_RESTARTED = struct.Struct("=6I")


class WalWriter:
    """SQLite's writer of one WAL, from the write lock on.

    For one thread; any may ask for `backfilled_frames`. `header` is what readers see. A transaction is any number of
    `append`, then `publish` or `discard`.
    """

    def __init__(self, files: DatabaseFiles, page_size: int, commit_pages: int) -> None:
        """The caller holds the write lock. `page_size` and `commit_pages` are used for a WAL that has no commit."""
        header = files.index_header()
        if header is None:
            raise Unavailable(f"{files.path}-shm: the header is torn")
        if header.mx_frame == 0:
            header = replace(header, page_size=page_size, commit_pages=header.commit_pages or commit_pages)
        self.header: IndexHeader = header
        self._files = files
        self._frame_size = FRAME_HEADER_SIZE + header.page_size
        self._capacity = max(2, BUFFER_BYTES // self._frame_size)
        self._buffer = np.zeros((self._capacity, self._frame_size), np.uint8)
        self._raw = self._buffer.data.cast("B")
        self._barrier = threading.Lock()
        self._blocks: list[HashBlock] = []
        self._wal_header = self._read_wal_header()
        self._wal_header_written = header.mx_frame > 0
        self._pgnos = array("I")  # of all frames of the transaction
        self.discard()
        if header.mx_frame:
            block, index = frame_block(header.mx_frame)
            self._block(block).clean(index + 1)

    def _read_wal_header(self) -> WalHeader:
        """The header of the WAL that the next frames belong to; a new one when it has no commit yet."""
        data = os.pread(self._files.wal_fd, WAL_HEADER_SIZE, 0)
        try:
            found = WalHeader.decode(data)
        except Corrupt:
            found = None
        same = found is not None and found.intact and found.salt == self.header.salt
        if self.header.mx_frame == 0:
            # As SQLite: the wal-index's salts, which a restart has already changed; new ones when there never were any.
            salt = self.header.salt if any(self.header.salt) else (secrets.randbits(32), secrets.randbits(32))
            seq = found.checkpoint_seq if found is not None and same else 0
            return WalHeader.new(self.header.page_size, salt, seq, big_endian=NATIVE_BIG_ENDIAN)
        if found is None or not same or found.page_size != self.header.page_size:
            raise Corrupt(f"{self._files.path}-wal: not the WAL that the wal-index describes")
        return found

    @staticmethod
    def lock(files: DatabaseFiles) -> bool:
        """Take SQLite's write lock, for as long as the files are open; False while another has it."""
        return try_lock(files.shm_fd, LOCK_WRITE)

    @staticmethod
    def unlock(files: DatabaseFiles) -> None:
        """Give the write lock back."""
        unlock(files.shm_fd, LOCK_WRITE)

    def close(self) -> None:
        """Give up the write lock. The caller closes the files, last of all."""
        self.release()
        self.unlock(self._files)

    def release(self) -> None:
        """End writing, and keep the write lock."""
        self._raw.release()
        for block in self._blocks:
            block.release()
        self._blocks.clear()

    # A transaction

    def append(self, pgno: int, page: Page) -> None:
        """One more frame. Bounded memory: a full buffer is written, but for its last frame."""
        if self._buffered == self._capacity:
            self._flush(self._capacity - 1)
        at = self._buffered * self._frame_size + FRAME_HEADER_SIZE
        self._raw[at : at + self.header.page_size] = page
        self._pgnos.append(pgno)
        self._buffered += 1

    def discard(self) -> None:
        """Forget the transaction. Its frames in the file are nobody's: see the head of this module."""
        self._buffered = 0
        del self._pgnos[:]
        self._chain = self.header.frame_cksum if self.header.mx_frame else self._wal_header.cksum

    def publish(self, commit_pages: int, page_one: Page) -> None:
        """Commit: the database has `commit_pages` pages then. `page_one` is its first page, for when no frame is left.

        Pages past the end that are not yet written are dropped, as SQLite does. Those already written stay, without a
        commit size: readers never ask for them and checkpoints skip them.
        """
        self._drop_buffered_past(commit_pages)
        if self._buffered == 0:
            self.append(1, page_one)
        mx_frame = self.header.mx_frame + len(self._pgnos)
        try:
            # What can fail comes before the frame with the commit size is in the file.
            self._insert_hashes()
            self._flush(self._buffered, commit_pages)
        except BaseException:
            self._clean_hashes()
            raise
        self._move_header(
            replace(
                self.header,
                change=(self.header.change + 1) & 0xFFFFFFFF,
                mx_frame=mx_frame,
                commit_pages=commit_pages,
                frame_cksum=self._chain,
                salt=self._wal_header.salt,
                big_endian_cksum=self._wal_header.big_endian,
            )
        )
        self.discard()

    def _drop_buffered_past(self, commit_pages: int) -> None:
        """Close the gaps that pages past the end leave in the buffer."""
        first = len(self._pgnos) - self._buffered
        pgnos = self._pgnos[first:]
        if max(pgnos, default=0) <= commit_pages:
            return
        keep = [i for i, pgno in enumerate(pgnos) if pgno <= commit_pages]
        self._buffer[: len(keep)] = self._buffer[keep]
        self._pgnos[first:] = array("I", [pgnos[i] for i in keep])
        self._buffered = len(keep)

    def _flush(self, count: int, commit_pages: int = 0) -> None:
        """Write the first `count` frames of the buffer; `commit_pages` goes into the last of them."""
        total, salt, size = len(self._pgnos), self._wal_header.salt, self._frame_size
        first = total - self._buffered
        for i in range(count):
            commit = commit_pages if i == count - 1 else 0
            _HEAD.pack_into(self._raw, i * size, self._pgnos[first + i], commit, *salt, 0, 0)
        frames = self._buffer[:count]
        sums = record_checksums(frames, self.header.page_size, self._chain, self._wal_header.big_endian)
        for i in range(count):
            struct.pack_into(">2I", self._raw, i * size + 16, *sums[i])
        if not self._wal_header_written:
            self._write_wal_header()
        offset = frame_offset(self.header.mx_frame + first + 1, self.header.page_size)
        _write(self._files.wal_fd, self._raw[: count * size], offset)
        self._chain = sums[-1]
        self._buffered -= count
        if self._buffered:
            self._raw[:size] = self._raw[count * size : (count + 1) * size]

    def _write_wal_header(self) -> None:
        """Durable before any frame: an old header before new frames would make recovery take old frames for commits."""
        _write(self._files.wal_fd, memoryview(self._wal_header.encode()), 0)
        os.fdatasync(self._files.wal_fd)
        self._wal_header_written = True

    # The wal-index

    def _block(self, index: int) -> HashBlock:
        while len(self._blocks) <= index:
            number = len(self._blocks)
            self._files.extend_index(number + 1)
            self._blocks.append(HashBlock.of(memoryview(self._files.block(number)), number == 0))
        return self._blocks[index]

    def _insert_hashes(self) -> None:
        """Readers do not look past `mx_frame`, so these may stand before the frames do."""
        done = 0
        while done < len(self._pgnos):
            number, index = frame_block(self.header.mx_frame + done + 1)
            block = self._block(number)
            room = len(block.pgnos) - index
            block.insert(index, self._pgnos[done : done + room])
            done += room

    def _clean_hashes(self) -> None:
        """A block that has no frame up to `mx_frame` needs nothing: its first entry clears it."""
        if self.header.mx_frame:
            number, index = frame_block(self.header.mx_frame)
            if number < len(self._blocks):
                self._blocks[number].clean(index + 1)

    def retire(self) -> None:
        """Another file is at the database's path by now. Connections that are still open to this one get
        SQLITE_CANTOPEN ("unable to open database file") from their next transaction on, as SQLite answers a wal-index
        of a version that it does not know: they would read an old state for ever."""
        self._move_header(self.header, RETIRED_VERSION)

    def _move_header(self, header: IndexHeader, version: int = WALINDEX_VERSION) -> None:
        """Second copy first: a reader reads the first one first, so when both are equal, they are whole."""
        data, block = header.encode(version), self._files.block(0)
        self._fence()
        block[HEADER_SIZE : 2 * HEADER_SIZE] = data
        self._fence()
        block[:HEADER_SIZE] = data
        self.header = header

    def _fence(self) -> None:
        """What was stored before is seen before what is stored after (SQLite also uses a mutex for it)."""
        with self._barrier:
            pass

    # Restart

    @property
    def backfilled_frames(self) -> int:
        """How many frames a checkpoint has copied into the database file."""
        return self._files.checkpoint_info().backfill

    def cut(self) -> None:
        """Give the part of the WAL file back that no commit uses: of a transaction that was dropped, of older rounds.
        Nobody reads behind `mx_frame`. Not while a transaction is open."""
        used = frame_offset(self.header.mx_frame + 1, self.header.page_size) if self.header.mx_frame else 0
        if not self._pgnos and os.fstat(self._files.wal_fd).st_size > used:
            os.ftruncate(self._files.wal_fd, used)
            self._wal_header_written = used > 0

    def restart(self, *, truncate: bool = False) -> bool:
        """Begin the WAL again at its first frame, if all of it is in the database file and no reader uses it.
        `truncate`: give its room on the disk back, too, as is done with a very long one.

        The checkpoint lock is taken too, which SQLite does not do: SQLite before 3.51.3 has a race in which a
        checkpoint that read the header before a restart marks frames of the new WAL as backfilled. Readers run what
        they run.
        """
        if self._pgnos or self.header.mx_frame == 0 or self.backfilled_frames != self.header.mx_frame:
            return False
        fd = self._files.shm_fd
        if not try_lock(fd, LOCK_CHECKPOINT):
            return False
        try:
            if not try_lock(fd, LOCK_READ0 + 1, READ_LOCKS):
                return False
            try:
                self._restart_locked(truncate)
            finally:
                unlock(fd, LOCK_READ0 + 1, READ_LOCKS)
        finally:
            unlock(fd, LOCK_CHECKPOINT)
        return True

    def _restart_locked(self, truncate: bool) -> None:
        salt = ((self._wal_header.salt[0] + 1) & 0xFFFFFFFF, secrets.randbits(32))
        seq = (self._wal_header.checkpoint_seq + 1) & 0xFFFFFFFF
        self._wal_header = WalHeader.new(self.header.page_size, salt, seq, big_endian=NATIVE_BIG_ENDIAN)
        self._wal_header_written = False
        # The header first: readers that still have the old one in hand look again after they have their lock.
        self._move_header(replace(self.header, mx_frame=0, salt=salt))
        block = self._files.block(0)
        marks = (0, 0, *[READ_MARK_UNUSED] * (READ_LOCKS - 1))
        block[CKPT_INFO_OFFSET : CKPT_INFO_OFFSET + _RESTARTED.size] = _RESTARTED.pack(0, *marks)
        block[NBACKFILL_ATTEMPTED_OFFSET : NBACKFILL_ATTEMPTED_OFFSET + 4] = bytes(4)
        self.discard()
        if os.fstat(self._files.wal_fd).st_size > (0 if truncate else TRUNCATE_BYTES):
            os.ftruncate(self._files.wal_fd, 0)

    # After a sync that failed

    def rewrite(self) -> None:
        """Write every committed frame to its own place once more, the same bytes. Corrupt when they are not what was
        committed. From any thread, while the WAL cannot restart; the owner may go on behind the last of them."""
        header = self.header
        if header.mx_frame == 0:
            return
        fd, size = self._files.wal_fd, header.page_size
        head = os.pread(fd, WAL_HEADER_SIZE, 0)
        if head != self._wal_header.encode():
            raise Corrupt(f"{self._files.path}-wal: its header is not the one that was written")
        _write(fd, memoryview(head), 0)
        chain = self._wal_header.cksum
        for first in range(1, header.mx_frame + 1, self._capacity):
            count = min(self._capacity, header.mx_frame + 1 - first)
            raw = np.empty((count, self._frame_size), np.uint8)
            frames = self._files.read_frames(first, count, size, raw)
            sums = record_checksums(raw, size, chain, self._wal_header.big_endian)
            if (frames["cksum"] != np.array(sums, np.uint32)).any() or (frames["salt"] != header.salt).any():
                raise Corrupt(f"{self._files.path}-wal: frames from {first} on are not those that were written")
            _write(fd, raw.data.cast("B"), frame_offset(first, size))
            chain = sums[-1]
        if chain != header.frame_cksum:
            raise Corrupt(f"{self._files.path}-wal: frame {header.mx_frame} is not the one that was written")

    def forget_backfill(self) -> bool:
        """Have the next checkpoint copy every page of the WAL, whatever was copied before; False while one is running.

        Nobody minds: a reader that uses the database file alone holds read lock 0, without which no checkpoint writes;
        for one that uses the WAL up to its mark a checkpoint writes pages as they are in the file already.
        """
        fd = self._files.shm_fd
        if not try_lock(fd, LOCK_CHECKPOINT):
            return False
        try:
            self._files.block(0)[CKPT_INFO_OFFSET : CKPT_INFO_OFFSET + 4] = bytes(4)
        finally:
            unlock(fd, LOCK_CHECKPOINT)
        return True


def _write(fd: int, data: memoryview, offset: int) -> None:
    """All of it; the kernel may take less at a time. OSError when the disk is full."""
    pwrite_all(fd, data, offset)

"""One WAL of an old archive on its way into a database: bytes in, verified and kept in a file, applied when whole.

What SQLite's recovery takes for the end of a WAL, a frame that does not continue the chain of checksums, is damage
here: recovery would restore less and not say so.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from walcast.errors import Corrupt
from walcast.permissions import open_or_create
from walcast.shortage import check_free
from walcast.wal import WAL_HEADER_SIZE, WalHeader, frame_dtype, record_checksums

_VERIFY_BYTES = 1 << 20  # frames verified at a time: what fits into a core's cache
# What a database can have grown by pages that were never written, as they were freed in the transaction that got them.
_GROWTH, _GROWTH_BYTES = 16, 256 << 20
_WRITE_BYTES = 4 << 20  # pages written at a time


class RestoredWal:
    """The WAL of one index, in a file until it is applied; nothing is in the file that was not verified."""

    def __init__(self, path: Path, page_size: int) -> None:
        self.size = 0  # bytes
        self.frames = 0
        self.committed = 0  # frames up to the last commit
        self._commit_pages = 0
        self._path = path
        self._page_size = page_size
        self._dtype = frame_dtype(page_size)
        self._header: WalHeader | None = None
        self._sum = (0, 0)
        self._rest = b""
        self._pgnos: list[NDArray[np.uint32]] = []
        self._descriptor = open_or_create(path, os.O_RDWR | os.O_TRUNC)

    @property
    def torn_bytes(self) -> int:
        """How much there is of a frame that is not complete, or of the header."""
        return len(self._rest)

    def close(self) -> None:
        """Remove its file."""
        os.close(self._descriptor)
        self._path.unlink(missing_ok=True)

    def feed(self, data: bytes) -> None:
        """Verify and keep. Raises Corrupt for what does not continue the WAL."""
        self.size += len(data)
        data = self._rest + data if self._rest else data
        at = 0
        if self._header is None:
            self._header = WalHeader.decode(data)
            if self._header is None:
                self._rest = data
                return
            if not self._header.intact:
                raise Corrupt("WAL header: its checksum does not hold")
            if self._header.page_size != self._page_size:
                raise Corrupt(
                    f"WAL header: page size {self._header.page_size}, but the database's is {self._page_size}"
                )
            self._sum, at = self._header.cksum, WAL_HEADER_SIZE
        whole = at + (len(data) - at) // self._dtype.itemsize * self._dtype.itemsize
        self._rest = data[whole:]
        step = max(1, _VERIFY_BYTES // self._dtype.itemsize) * self._dtype.itemsize
        for start in range(at, whole, step):
            raw = np.frombuffer(data[start : min(start + step, whole)], np.uint8).reshape(-1, self._dtype.itemsize)
            self._verify(raw, self._header)
            write_all(self._descriptor, raw.data, self.frames * self._dtype.itemsize)
            self.frames += len(raw)

    def _verify(self, raw: NDArray[np.uint8], header: WalHeader) -> None:
        frames = raw.view(self._dtype)[:, 0]
        sums = record_checksums(raw, self._page_size, self._sum, header.big_endian)
        holds = (frames["cksum"] == np.array(sums, np.uint32)).all(axis=1)
        holds &= (frames["salt"] == header.salt).all(axis=1) & (frames["pgno"] != 0)
        if not holds.all():
            bad = int(holds.argmin())
            raise Corrupt(f"frame {self.frames + bad + 1} of its WAL does not continue the checksums before it")
        self._sum = sums[-1]
        self._pgnos.append(frames["pgno"].astype(np.uint32))
        commits = np.flatnonzero(frames["commit"])
        if len(commits):
            self.committed = self.frames + int(commits[-1]) + 1
            self._commit_pages = int(frames["commit"][commits[-1]])

    def apply(self, database: int) -> None:
        """Write the last committed version of every page to the open file `database`, and cut it to its size."""
        if not self.committed:
            return
        written = os.fstat(database).st_blocks * 512  # as stat(2) counts
        check_free(self._path, self._commit_pages * self._page_size - written)
        there = os.fstat(database).st_size + self.frames * self._dtype.itemsize
        if (size := self._commit_pages * self._page_size) > _GROWTH * there + _GROWTH_BYTES:
            raise Corrupt(f"a WAL with {self.committed:,} frames makes a database of {size:,} bytes")
        pgnos = np.concatenate(self._pgnos)[: self.committed]
        changed, from_end = np.unique(pgnos[::-1], return_index=True)
        inside = changed <= self._commit_pages
        changed, last = changed[inside], self.committed - 1 - from_end[inside]
        frames = np.memmap(self._path, self._dtype, "r", shape=(self.committed,))
        step = max(1, _WRITE_BYTES // self._page_size)
        for start in range(0, len(changed), step):
            pages = np.ascontiguousarray(frames["page"][last[start : start + step]])
            _write_runs(database, changed[start : start + step], pages)
        os.ftruncate(database, self._commit_pages * self._page_size)


def _write_runs(descriptor: int, pgnos: NDArray[np.uint32], pages: NDArray[np.uint8]) -> None:
    """Ascending pages uint8[n, page_size], each run of neighbours with one call."""
    breaks = np.flatnonzero(np.diff(pgnos) != 1) + 1
    for first, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(pgnos)], strict=True):
        write_all(descriptor, pages[first:end].data, (int(pgnos[first]) - 1) * pages.shape[1])


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """All of it, however many calls that takes."""
    rest = memoryview(data).cast("B")
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count

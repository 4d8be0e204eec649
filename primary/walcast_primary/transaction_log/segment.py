"""One file of the transaction log: LTX files one after the other, each behind a 16-byte record prefix.

    magic "WLTX" · CRC-32 of (size ‖ LTX header), u32 · size of the LTX file, u64     big-endian, then the LTX file
    magic "WLTM" · the same, and behind the LTX file a table of commit marks:
                   count u32 · CRC-32 of the rows, u32 · rows of (frame u32, its checksum, two u32)

A commit mark says where in the database's WAL one commit ended. The LTX header has the mark of the last commit of an
entry; an entry that groups several has those before it in the table. A power cut may leave the database's WAL at any
of them, and the mark, whose checksum chains over all frames before, proves which one it is.

The file is allocated ahead in steps, so that a `fdatasync` has no metadata to write; the zeros after the last record
are no prefix and end it. A prefix alone proves nothing after a power loss: whoever opens the newest segment decodes
its tail.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walcast import ltx
from walcast.errors import Corrupt
from walcast.filesystem import pwrite_all
from walcast.permissions import open_or_create
from walcast.position import Position, format_txid
from walcast.shortage import FULL

PREFIX = struct.Struct(">4sIQ")
MAGIC = b"WLTX"
MARKED = b"WLTM"
MARKS_HEAD = struct.Struct(">II")
MARK = np.dtype([("frame", ">u4"), ("cksum", ">u4", 2)])
ALLOCATION_STEP_BYTES = 4 << 20
READ_BYTES = 1 << 20
FLUSH_BYTES = 1 << 20
SUFFIX = ".log"

_MAGICS = re.compile(re.escape(MAGIC) + b"|" + re.escape(MARKED))


@dataclass(frozen=True, slots=True)
class Entry:
    """One LTX file in the log: TXIDs `min_txid..max_txid`, `size` bytes at `offset` of its segment.

    `captured_ns` is the capture's monotonic clock, 0 when it is from before this process.
    """

    segment: Segment
    min_txid: int
    max_txid: int
    pre_checksum: int
    post_checksum: int
    offset: int
    size: int
    captured_ns: int
    marks_size: int = 0  # bytes of the table of commit marks behind it

    @property
    def position(self) -> Position:
        """Where a copy is once it has applied this."""
        return Position(self.max_txid, self.post_checksum)

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of the LTX file; Corrupt when the file is shorter than it was."""
        want = self.size - start if length is None else min(length, self.size - start)
        data = os.pread(self.segment.fd, want, self.offset + start)
        if len(data) != want:
            raise Corrupt(f"{self.segment.path}: {len(data)} of {want} bytes at {self.offset + start}")
        return data

    def pages(self) -> Iterator[ltx.Page]:
        """Every page, decoded; Corrupt at the end, at the latest, when the file is not what was written."""
        decoder = ltx.Decoder()
        for start in range(0, self.size, READ_BYTES):
            decoder.feed(self.read(start, READ_BYTES))
            while (event := decoder.next_event()) is not None:
                if isinstance(event, ltx.Page):
                    yield event
        decoder.close()

    def marks(self) -> NDArray[Any]:
        """The marks of all commits but the last, as records of `MARK`; Corrupt for a table that was not written so."""
        data = os.pread(self.segment.fd, self.marks_size, self.offset + self.size)
        marks = _decode_marks(data) if data else np.zeros(0, MARK)
        if marks is None:
            raise Corrupt(f"{self.segment.path}: no table of commit marks at {self.offset + self.size}")
        return marks

    def header(self) -> ltx.Header:
        """The LTX header."""
        header = ltx.Header.decode(self.read(0, ltx.HEADER_SIZE))
        if header is None:
            raise Corrupt(f"{self.segment.path}: no LTX header at {self.offset}")
        return header


class Segment:
    """An open segment and the index of its records, compact: a few words a record.

    The descriptor lives as long as anybody holds the segment, so a reader of a trimmed one is not cut off.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.end = 0
        self.newest_ms = 0
        self.lost_txid = 0
        self.allocated = os.fstat(fd).st_size
        self.min_txids = array("Q")
        self.max_txids = array("Q")
        self.pre_checksums = array("Q")
        self.post_checksums = array("Q")
        self.offsets = array("Q")
        self.sizes = array("Q")
        self.captured = array("Q")
        self.marks_sizes = array("I")

    def __del__(self) -> None:
        os.close(self.fd)

    def __len__(self) -> int:
        return len(self.min_txids)

    @classmethod
    def create(cls, directory: Path, min_txid: int) -> Segment:
        """A new, empty segment that will begin with `min_txid`."""
        path = directory / f"{format_txid(min_txid)}{SUFFIX}"
        return cls(path, open_or_create(path, os.O_RDWR | os.O_TRUNC))

    @classmethod
    def load(cls, path: Path) -> Segment:
        """An existing one, indexed up to the first thing that is no record."""
        segment = cls(path, os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
        while segment._load_one():
            pass
        segment.lost_txid = segment._newest_behind()
        return segment

    def _newest_behind(self) -> int:
        """The highest TXID of a whole prefix behind where loading stopped: 0 behind a torn tail, more behind rot."""
        newest, at = 0, self.end + 1
        while data := os.pread(self.fd, READ_BYTES, at):
            for found in _MAGICS.finditer(data):
                head = os.pread(self.fd, PREFIX.size + ltx.HEADER_SIZE, at + found.start())
                newest = max(newest, _max_txid(head))
            at += max(1, len(data) - len(MAGIC) + 1)
        return newest

    def _load_one(self) -> bool:
        head = os.pread(self.fd, PREFIX.size + ltx.HEADER_SIZE, self.end)
        if len(head) < PREFIX.size + ltx.HEADER_SIZE:
            return False
        magic, crc, size = PREFIX.unpack_from(head)
        if magic not in (MAGIC, MARKED) or crc != zlib.crc32(head[8:]):
            return False
        if self.end + PREFIX.size + size > self.allocated:
            return False
        try:
            header = ltx.Header.decode(head[PREFIX.size :])
        except Corrupt:
            return False
        tail = os.pread(self.fd, 16, self.end + PREFIX.size + size - 16)
        if header is None or len(tail) < 16:
            return False
        marks_size = self._marks_size(self.end + PREFIX.size + size, header) if magic == MARKED else 0
        if marks_size is None:
            return False
        self.append(header, int.from_bytes(tail[:8], "big"), size, 0, marks_size)
        return True

    def _marks_size(self, at: int, header: ltx.Header) -> int | None:
        """Bytes of the whole table of commit marks at `at`; None for what is none."""
        head = os.pread(self.fd, MARKS_HEAD.size, at)
        if len(head) < MARKS_HEAD.size:
            return None
        count = MARKS_HEAD.unpack(head)[0]
        if count > header.max_txid - header.min_txid:
            return None
        size = MARKS_HEAD.size + count * MARK.itemsize
        return size if _decode_marks(os.pread(self.fd, size, at)) is not None else None

    def append(self, header: ltx.Header, post_checksum: int, size: int, captured_ns: int, marks_size: int = 0) -> None:
        """Index the record that stands at `end`."""
        self.min_txids.append(header.min_txid)
        self.max_txids.append(header.max_txid)
        self.pre_checksums.append(header.pre_checksum)
        self.post_checksums.append(post_checksum)
        self.offsets.append(self.end + PREFIX.size)
        self.sizes.append(size)
        self.captured.append(captured_ns)
        self.marks_sizes.append(marks_size)
        self.newest_ms = header.timestamp_ms
        self.end += PREFIX.size + size + marks_size

    def entry(self, index: int) -> Entry:
        """Record number `index`; negative counts from the end."""
        return Entry(
            self,
            self.min_txids[index],
            self.max_txids[index],
            self.pre_checksums[index],
            self.post_checksums[index],
            self.offsets[index],
            self.sizes[index],
            self.captured[index],
            self.marks_sizes[index],
        )

    def find(self, min_txid: int) -> Entry | None:
        """The record that begins with `min_txid`."""
        index = bisect_left(self.min_txids, min_txid)
        if index == len(self) or self.min_txids[index] != min_txid:
            return None
        return self.entry(index)

    def ending_at(self, max_txid: int) -> Entry | None:
        """The record that ends with `max_txid`."""
        index = bisect_left(self.max_txids, max_txid)
        if index == len(self) or self.max_txids[index] != max_txid:
            return None
        return self.entry(index)

    def find_checksum(self, checksum: int) -> Entry | None:
        """The newest record after which the database has this checksum. Nothing may be appended meanwhile."""
        found = np.flatnonzero(np.frombuffer(self.post_checksums, np.uint64) == np.uint64(checksum))
        return self.entry(int(found[-1])) if len(found) else None

    def cut(self, count: int) -> None:
        """Keep the first `count` records."""
        if count < len(self) - 1:
            self.lost_txid = max(self.lost_txid, self.max_txids[-1])
        self.end = self.offsets[count] - PREFIX.size if count < len(self) else self.end
        columns = (self.min_txids, self.max_txids, self.pre_checksums, self.post_checksums)
        for column in (*columns, self.offsets, self.sizes, self.captured, self.marks_sizes):
            del column[count:]
        if not self.lost_txid:
            self.seal()

    def seal(self) -> None:
        """No more records will come: give back what was allocated ahead."""
        os.ftruncate(self.fd, self.end)
        self.allocated = self.end

    def reserve(self, size: int) -> None:
        """Have disk blocks for `size` bytes behind `end`; OSError (ENOSPC) when there are none."""
        need = self.end + PREFIX.size + size
        if need > self.allocated:
            step = -(-(need - self.allocated) // ALLOCATION_STEP_BYTES) * ALLOCATION_STEP_BYTES
            try:
                os.posix_fallocate(self.fd, self.allocated, step)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                os.ftruncate(self.fd, self.allocated)  # what was allocated of it
                step = need - self.allocated
                os.posix_fallocate(self.fd, self.allocated, step)
            self.allocated += step


def encode_marks(marks: NDArray[Any]) -> bytes:
    """The table of these records of `MARK`; nothing for none."""
    rows = marks.tobytes()
    return MARKS_HEAD.pack(len(marks), zlib.crc32(rows)) + rows if len(marks) else b""


def _decode_marks(data: bytes) -> NDArray[Any] | None:
    """From a whole table; None for what is none."""
    if len(data) < MARKS_HEAD.size:
        return None
    count, crc = MARKS_HEAD.unpack_from(data)
    rows = data[MARKS_HEAD.size :]
    if len(rows) != count * MARK.itemsize or crc != zlib.crc32(rows):
        return None
    return np.frombuffer(rows, MARK)


def _max_txid(head: bytes) -> int:
    """Of a record that begins with `head`; 0 when that is none."""
    if len(head) < PREFIX.size + ltx.HEADER_SIZE or PREFIX.unpack_from(head)[1] != zlib.crc32(head[8:]):
        return 0
    try:
        header = ltx.Header.decode(head[PREFIX.size :])
    except Corrupt:
        return 0
    return header.max_txid if header else 0


class Writer:
    """One LTX file on its way into the log; small ones are one write, big ones go to disk as they come."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._buffer = bytearray(PREFIX.size)
        self._flushed = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes of the LTX file."""
        self._buffer += data
        if len(self._buffer) >= FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._segment.reserve(self._flushed + len(self._buffer))
        pwrite_all(self._segment.fd, self._buffer, self._segment.end + self._flushed)
        self._flushed += len(self._buffer)
        self._buffer.clear()

    def finish(self, header: ltx.Header, size: int, marks: bytes = b"") -> None:
        """Write the rest, a table of commit marks, and the prefix that makes it a record; durable on return."""
        self.write(marks)
        tail = struct.pack(">Q", size) + header.encode()
        prefix = PREFIX.pack(MARKED if marks else MAGIC, zlib.crc32(tail), size)
        if self._flushed:
            self._flush()
            pwrite_all(self._segment.fd, prefix, self._segment.end)
        else:
            self._buffer[: PREFIX.size] = prefix
            self._flush()
        os.fdatasync(self._segment.fd)

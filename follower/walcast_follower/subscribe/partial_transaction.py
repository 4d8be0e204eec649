"""The first bytes of a transaction whose stream broke off inside it, so that the next stream can go on behind them.

They are the bytes of its LTX file as they came: up to `SPILL_BYTES` in memory, more in `transaction.partial` in the
state folder, where they outlive the process. There they stand in records, and what a power cut has left is used as far
as the records are whole:

    bytes u32, CRC-32 of them u32 (little-endian), the bytes

They prove nothing by themselves. They are fed to the receiver again, which takes them as if they had just come; the
transaction's own checksums decide at its end.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from walcast import ltx
from walcast.errors import Corrupt, Exhausted, ProtocolViolation, Unavailable, WalcastError
from walcast.filesystem import pwrite_all
from walcast.permissions import open_or_create
from walcast.position import Position
from walcast.shortage import disk_errors
from walcast.statedir import PARTIAL
from walcast_follower.bootstrap.partial_copy import PartialCopy
from walcast_follower.subscribe.page_growth import Growth

log = logging.getLogger("walcast.follower")

SPILL_BYTES = 1 << 20
RECORD_MOST_BYTES = 4 << 20
PAGES_AT_ONCE = 256

_RECORD = struct.Struct("<II")


class Begun(NamedTuple):
    """What there is of the next transaction: its LTX header, and how many bytes; nothing and 0 for none."""

    header: bytes = b""
    size: int = 0


NOTHING = Begun()


class PartialTransaction:
    """Of one follower. `size` is how many bytes there are; `on_whole` is called when transactions have ended."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / f"transaction{PARTIAL}"
        self.size = 0
        self._fd = -1
        self._end = 0  # of the records in the file
        self._memory: list[bytes] = []
        self._memory_bytes = 0
        self._spills = True
        self.on_whole: Callable[[], None] = lambda: None

    def load(self) -> None:
        """What a process before this one left. For a thread: all of it is read."""
        if self.size or not self.path.exists():
            return
        try:
            self._fd = open_or_create(self.path)
            for data in self._records(os.fstat(self._fd).st_size):
                self.size += len(data)
                self._end += _RECORD.size + len(data)
        except (OSError, Unavailable) as error:
            log.debug("cannot read what there is of a transaction", exc_info=error)
            self.clear()
        if not self.size:
            self.clear()  # no record is whole; nor is the file opened again for each try

    def add(self, data: bytes) -> None:
        """The next bytes. Where the disk does not take them, what came is forgotten: the stream goes on without."""
        if not self._spills:
            return
        self._memory.append(data)
        self._memory_bytes += len(data)
        self.size += len(data)
        if self._memory_bytes >= SPILL_BYTES:
            self._spill()

    def took(self, data: bytes, ends: Sequence[int]) -> None:
        """Bytes of the stream were received, in which transactions end at `ends`."""
        if ends:
            self.clear()
            self.on_whole()
            data = data[ends[-1] :]
        if data:
            self.add(data)

    @contextmanager
    def of_use(self) -> Iterator[None]:
        """What came is fed to the receiver. It is forgotten when that finds it wrong, and where there is no room."""
        try:
            yield
        except Exhausted:
            raise
        except WalcastError:
            self.clear()
            raise

    def _spill(self) -> None:
        data = b"".join(self._memory)
        try:
            if self._fd < 0:
                self._fd = open_or_create(self.path, os.O_RDWR | os.O_TRUNC)
            for start in range(0, len(data), RECORD_MOST_BYTES):
                piece = data[start : start + RECORD_MOST_BYTES]
                pwrite_all(self._fd, _RECORD.pack(len(piece), zlib.crc32(piece)) + piece, self._end)
                self._end += _RECORD.size + len(piece)
        except OSError as error:
            log.debug("cannot keep what there is of a transaction", exc_info=error)
            self.clear()
            self._spills = False
        else:
            self._memory, self._memory_bytes = [], 0

    def pieces(self) -> Iterator[bytes]:
        """All bytes, in order. Corrupt when the file is not what it was."""
        in_file = self.size - self._memory_bytes
        for data in self._records(self._end) if self._fd >= 0 else ():
            in_file -= len(data)
            yield data
        if in_file:
            raise Corrupt(f"{self.path}: is not what was written")
        yield from self._memory

    def _records(self, end: int) -> Iterator[bytes]:
        at = 0
        while at + _RECORD.size <= end:
            count, crc = _RECORD.unpack(self._read(_RECORD.size, at).ljust(_RECORD.size, b"\0"))
            at += _RECORD.size
            if not 0 < count <= min(RECORD_MOST_BYTES, end - at):
                return
            data = self._read(count, at)
            if len(data) != count or zlib.crc32(data) != crc:
                return
            yield data
            at += count

    def _read(self, count: int, at: int) -> bytes:
        with disk_errors(self.path):
            return os.pread(self._fd, count, at)

    def offer(self, position: Position) -> Begun:
        """For the hello of a stream from the position; what is of no transaction that follows it is forgotten. For a
        thread."""
        self.load()
        header = self._header_after(position)
        return Begun(header, self.size)

    def _header_after(self, position: Position) -> bytes:
        if self.size:
            try:
                head = next(self.pieces(), b"")[: ltx.HEADER_SIZE]
                header = ltx.Header.decode(head)
            except (Corrupt, Unavailable):
                header = None
            if header is not None and (header.min_txid, header.pre_checksum) == (position.txid + 1, position.checksum):
                return head
            self.clear()
        return b""

    def give_pages(self, partial: PartialCopy, have_pages: int) -> None:
        """For a copy, which is needed now: the pages that came need not come again. `have_pages`: the replica's
        size."""
        decoder, growth = ltx.Decoder(), Growth(partial.page_size, have_pages)
        pgnos: list[int] = []
        pages: list[bytes] = []
        try:
            for data in self.pieces():
                decoder.feed(data)
                while (event := decoder.next_event()) is not None:
                    if isinstance(event, ltx.Header) and event.page_size != partial.page_size:
                        return
                    if isinstance(event, ltx.Page):
                        growth.add(event.pgno)
                        pgnos.append(event.pgno)
                        pages.append(event.data)
                    if len(pages) >= PAGES_AT_ONCE:
                        partial.write(pgnos, pages)
                        pgnos, pages = [], []
        except (Corrupt, ProtocolViolation):
            pass  # what came before that is as good
        if pages:
            partial.write(pgnos, pages)

    def clear(self) -> None:
        """Forget it."""
        if self._fd >= 0:
            os.close(self._fd)
            self.path.unlink(missing_ok=True)
        self._fd, self._end, self.size = -1, 0, 0
        self._memory, self._memory_bytes, self._spills = [], 0, True

    def close(self) -> None:
        """It stays, for the next process."""
        if self._memory:
            self._spill()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

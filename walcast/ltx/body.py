"""The pages of an LTX file: what may come next, and what stands after them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from walcast.checksum import crc64_go_iso, lock_pgno, page_checksum
from walcast.ltx.header import HEADER_SIZE, PAGE_HEADER_SIZE, Buffer, Header
from walcast.position import CHECKSUM_FLAG

PAGE_FLAG_SIZE = 1 << 0

PREFIX = struct.Struct(">IHI")  # pgno, flags, size of the LZ4 block
TRAILER = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True)
class Page:
    """One page: `data` is `page_size` bytes, `block` its LZ4 block to use again, empty if the file had an LZ4 frame."""

    pgno: int
    data: bytes
    block: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Trailer:
    """The end of a complete and verified file; `size` is that of the whole file, bytes."""

    post_checksum: int
    file_checksum: int
    size: int


def block_max_bytes(page_size: int) -> int:
    """How large the LZ4 block of a page can be, by LZ4's own bound."""
    return page_size + page_size // 255 + 16


class Pages:
    """What writing and reading share: which page may come next, checksums so far, the page index. Raises ValueError."""

    __slots__ = ("_header", "_lock", "_next", "_summed", "block_max", "crc", "database", "index", "offset", "page_size")

    def __init__(self, header: Header, encoded: Buffer) -> None:
        self._header = header
        self._lock = lock_pgno(header.page_size)
        self._next = 1  # the smallest pgno that may follow
        self._summed = header.is_snapshot and not header.no_checksum
        self.page_size = header.page_size
        self.block_max = block_max_bytes(header.page_size)
        self.crc: int = crc64_go_iso(encoded)
        self.database = CHECKSUM_FLAG  # over the pages so far, if `_summed`
        self.index = bytearray()
        self.offset = HEADER_SIZE  # where the next page begins in the file

    def check(self, pgno: int) -> None:
        """May this page come now?"""
        header = self._header
        if not self._next <= pgno <= header.commit_pages:
            raise ValueError(f"page {pgno} where one from {self._next} to {header.commit_pages} must come")
        if pgno == self._lock:
            raise ValueError(f"page {pgno} is the lock page")
        if pgno != self._next and header.is_snapshot:
            raise ValueError(f"page {pgno} of a snapshot where page {self._next} must come")

    def add(self, pgno: int, prefix: Buffer, data: Buffer, size: int) -> None:
        """A page that passed `check`, stored in `size` bytes of which `prefix` is hashed as it is."""
        self.crc = crc64_go_iso(data, crc64_go_iso(prefix, self.crc))
        if self._summed:
            self.database = (self.database ^ page_checksum(pgno, data)) | CHECKSUM_FLAG
        self._next = pgno + 1 if pgno + 1 != self._lock else pgno + 2
        index = self.index
        for value in (pgno, self.offset, size):
            while value > 0x7F:
                index.append(value & 0x7F | 0x80)
                value >>= 7
            index.append(value)
        self.offset += size

    def end(self) -> bytes:
        """The bytes from the end of the pages to the trailer."""
        if self._header.is_snapshot and self._next <= self._header.commit_pages:
            raise ValueError(f"snapshot ends before page {self._next} of {self._header.commit_pages}")
        size = len(self.index) + 1
        return b"".join((bytes(PAGE_HEADER_SIZE), self.index, b"\0", size.to_bytes(8, "big")))

    def file_checksum(self, end: bytes, post_checksum: int) -> int:
        """Of the file with this post-apply checksum, which must be a possible one."""
        if self._header.no_checksum:
            if post_checksum:
                raise ValueError("post-apply checksum where there can be none")
        elif not CHECKSUM_FLAG <= post_checksum < CHECKSUM_FLAG << 1:
            raise ValueError(f"post-apply checksum {post_checksum:016x} without its top bit")
        elif (self._summed or not self._header.commit_pages) and post_checksum != self.database:
            raise ValueError(f"post-apply checksum {post_checksum:016x}, but the pages have {self.database:016x}")
        return int(crc64_go_iso(end + post_checksum.to_bytes(8, "big"), self.crc)) | CHECKSUM_FLAG

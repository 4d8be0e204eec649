"""Writing an LTX file."""

from __future__ import annotations

from collections.abc import Callable

import lz4.block

from walcast.ltx.body import PAGE_FLAG_SIZE, PREFIX, TRAILER, Pages, Trailer
from walcast.ltx.header import TRAILER_SIZE, Buffer, Header


class Encoder:
    """Write one file: `write` is called with its bytes, in order, one call for the header, each page and the rest."""

    __slots__ = ("_finished", "_pages", "_write")

    def __init__(self, header: Header, write: Callable[[bytes], object]) -> None:
        encoded = header.encode()
        self._pages = Pages(header, encoded)
        self._write = write
        self._finished = False
        write(encoded)

    def add(self, pgno: int, page: Buffer) -> None:
        """The next page, compressed here."""
        self.add_block(pgno, lz4.block.compress(page, store_size=False), page)

    def add_block(self, pgno: int, block: Buffer, page: Buffer) -> None:
        """The next page, with the LZ4 block already made of exactly these bytes (not checked)."""
        pages = self._pages
        if self._finished:
            raise ValueError("the file is finished")
        pages.check(pgno)
        if len(page) != pages.page_size:
            raise ValueError(f"page {pgno} has {len(page)} bytes, not {pages.page_size}")
        if not 0 < len(block) <= pages.block_max:
            raise ValueError(f"page {pgno} in a block of {len(block)} bytes")
        prefix = PREFIX.pack(pgno, PAGE_FLAG_SIZE, len(block))
        pages.add(pgno, prefix, page, len(prefix) + len(block))
        self._write(b"".join((prefix, block)))

    def finish(self, post_checksum: int = 0) -> Trailer:
        """Write the end. `post_checksum` is the database checksum after the file; 0 with FLAG_NO_CHECKSUM."""
        if self._finished:
            raise ValueError("the file is finished")
        end = self._pages.end()
        file_checksum = self._pages.file_checksum(end, post_checksum)
        self._finished = True
        self._write(end + TRAILER.pack(post_checksum, file_checksum))
        return Trailer(post_checksum, file_checksum, self._pages.offset + len(end) + TRAILER_SIZE)

"""LTX files decoded in bulk for a restore: bytes in, batches of pages with their checksums out. No I/O.

It is `walcast.ltx.Decoder` less what a restore does not need (the page index, blocks to use again, one object a page)
and with what it does (every page's checksum): a third of the time, and most of a bootstrap's. The same files are
refused, but for a page index that is covered by the file checksum and yet wrong: nothing here reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lz4.block
import numpy as np
from numpy.typing import NDArray

from walcast.checksum import crc64_go_iso, lock_pgno
from walcast.errors import Corrupt
from walcast.ltx import HEADER_SIZE, PAGE_HEADER_SIZE, TRAILER_SIZE, Decoder, Header, Page, Trailer
from walcast.ltx.body import PAGE_FLAG_SIZE, PREFIX, TRAILER
from walcast.ltx.possible import end_max
from walcast.position import CHECKSUM_FLAG

BATCH_PAGES = 256
_INDEX_SIZE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Batch:
    """Some pages of a file: ascending numbers, contents, checksums."""

    pgnos: NDArray[np.uint32]
    pages: list[bytes]
    sums: NDArray[np.uint64]


class FilePages:
    """One file: `feed` its bytes in order, then `finish`. Batches go to `emit`; they are proven only by `finish`.

    With `part_of` only some pages of the file with that header, from the beginning of one to the end of one; then
    `finish_part`.
    """

    def __init__(self, emit: Callable[[Header, Batch], None], part_of: Header | None = None) -> None:
        self.header = part_of
        self._emit = emit
        self._rest = b""
        self._crc = 0
        self._last_pgno = 0
        self.count = 0
        self._end: bytearray | None = None  # what comes after the pages
        self._frames: Decoder | None = None
        self._framed: list[Page] = []
        self._trailer: Trailer | None = None
        self.fed_bytes = 0

    def feed(self, data: bytes) -> None:
        """The next bytes. Raises Corrupt."""
        self.fed_bytes += len(data)
        if self._frames is not None:
            self._feed_frames(data)
            return
        if self._end is not None:
            self._feed_end(data)
            return
        buffer = self._rest + data if self._rest else data
        at = 0
        if self.header is None:
            if len(buffer) < HEADER_SIZE + PREFIX.size:
                self._rest = buffer
                return
            self.header = Header.decode(buffer)
            if buffer[HEADER_SIZE : HEADER_SIZE + 4] != bytes(4) and buffer[HEADER_SIZE + 4 : HEADER_SIZE + 6] == bytes(
                2
            ):
                # Pages as LZ4 frames, as older Litestreams wrote them: the careful way.
                self._frames = Decoder()
                self._feed_frames(buffer)
                return
            at = HEADER_SIZE
            self._crc = crc64_go_iso(buffer[:at])
        at = self._pages(buffer, at, self.header)  # type: ignore[arg-type]
        if self._end is None:
            self._rest = buffer[at:]
        else:
            self._rest = b""
            self._feed_end(buffer[at:])

    def finish_part(self) -> int:
        """The part has ended: the CRC-64 of it, pages uncompressed. Raises Corrupt when it is not some whole pages."""
        if self._rest or self._end is not None:
            raise Corrupt("LTX file: a part that does not end with a page")
        return self._crc

    def finish(self) -> Trailer:
        """The file has ended. Raises Corrupt when it is not all there, or not what its checksums say."""
        header = self.header
        if self._frames is not None:
            self._frames.close()
            assert self._trailer is not None  # `close` says so
            return self._trailer
        if (
            header is None
            or self._end is None
            or len(self._end) < PAGE_HEADER_SIZE + 1 + _INDEX_SIZE_BYTES + TRAILER_SIZE
        ):
            raise Corrupt(f"LTX file, byte {self.fed_bytes}: not complete")
        if header.is_snapshot and self.count != header.commit_pages - (
            header.commit_pages >= lock_pgno(header.page_size)
        ):
            raise Corrupt(f"LTX file: snapshot with {self.count} of {header.commit_pages} pages")
        covered = self._end[: len(self._end) - TRAILER_SIZE]
        index_size = int.from_bytes(covered[-_INDEX_SIZE_BYTES:], "big")
        if index_size != len(covered) - PAGE_HEADER_SIZE - _INDEX_SIZE_BYTES:
            raise Corrupt("LTX file: the page index has not the size that it says")
        post_checksum, stored = TRAILER.unpack(self._end[-TRAILER_SIZE:])
        computed = crc64_go_iso(covered + post_checksum.to_bytes(8, "big"), self._crc) | CHECKSUM_FLAG
        if stored != computed:
            raise Corrupt(f"LTX file: file checksum {stored:016x}, but the file has {computed:016x}")
        if bool(post_checksum & CHECKSUM_FLAG) == header.no_checksum:
            raise Corrupt(f"LTX file: post-apply checksum {post_checksum:016x} cannot be one")
        return Trailer(post_checksum, stored, self.fed_bytes)

    def _feed_end(self, data: bytes) -> None:
        assert self._end is not None
        if len(self._end) + len(data) > end_max(self.count):
            raise Corrupt(f"LTX file: more bytes after its {self.count:,} pages than there can be")
        self._end += data

    def _pages(self, buffer: bytes, at: int, header: Header) -> int:
        """Decode the whole pages from `at`; where it stopped. The loop that a restore spends its time in."""
        page_size, commit, lock = header.page_size, header.commit_pages, lock_pgno(header.page_size)
        block_max = page_size + page_size // 255 + 16
        view, size_of_buffer = memoryview(buffer), len(buffer)
        unpack, decompress, crc64, crc = PREFIX.unpack_from, lz4.block.decompress, crc64_go_iso, self._crc
        last, pgnos, pages, sums = self._last_pgno, list[int](), list[bytes](), list[int]()
        try:
            while at + 10 <= size_of_buffer:
                pgno, flags, size = unpack(buffer, at)
                if not pgno and not flags:
                    self._end = bytearray()
                    break
                if not last < pgno <= commit or pgno == lock or flags != PAGE_FLAG_SIZE or not 0 < size <= block_max:
                    raise Corrupt(f"LTX file: page {pgno} (flags {flags:#x}, {size} bytes) cannot come after {last}")
                start = at + 10
                end = start + size
                if end > size_of_buffer:
                    break
                page = decompress(view[start:end], uncompressed_size=page_size)
                if len(page) != page_size:
                    raise Corrupt(f"LTX file: page {pgno} has {len(page)} bytes, not {page_size}")
                crc = crc64(page, crc64(buffer[at:start], crc))
                sums.append(crc64(page, crc64(buffer[at : at + 4])) | CHECKSUM_FLAG)
                pgnos.append(pgno)
                pages.append(page)
                last = pgno
                at = end
                if len(pages) == BATCH_PAGES:
                    self._emit_batch(header, pgnos, pages, sums)
                    pgnos, pages, sums = [], [], []
        except lz4.block.LZ4BlockError as error:
            raise Corrupt(f"LTX file: page {pgno}: LZ4 block: {error}") from error
        if pages:
            self._emit_batch(header, pgnos, pages, sums)
        self._crc, self._last_pgno = crc, last
        return at

    def _emit_batch(self, header: Header, pgnos: list[int], pages: list[bytes], sums: list[int]) -> None:
        self.count += len(pages)
        self._emit(header, Batch(np.array(pgnos, np.uint32), pages, np.array(sums, np.uint64)))

    def _feed_frames(self, data: bytes) -> None:
        decoder = self._frames
        assert decoder is not None
        decoder.feed(data)
        while (event := decoder.next_event()) is not None:
            if isinstance(event, Page):
                self._framed.append(event)
            elif isinstance(event, Trailer):
                self._trailer = event
            if len(self._framed) == BATCH_PAGES or (self._trailer and self._framed):
                pages, self._framed = self._framed, []
                self._emit_framed(pages)
        if decoder.unused:
            raise Corrupt("LTX file: more bytes after the trailer")

    def _emit_framed(self, pages: list[Page]) -> None:
        assert self.header is not None
        sums = [crc64_go_iso(page.data, crc64_go_iso(page.pgno.to_bytes(4, "big"))) | CHECKSUM_FLAG for page in pages]
        self._emit_batch(self.header, [page.pgno for page in pages], [page.data for page in pages], sums)

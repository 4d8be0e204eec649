"""Reading an LTX file, without I/O."""

from __future__ import annotations

import struct

import lz4.block
import lz4.frame

from walcast.errors import Corrupt
from walcast.ltx.body import PAGE_FLAG_SIZE, PREFIX, TRAILER, Page, Pages, Trailer
from walcast.ltx.header import HEADER_SIZE, PAGE_HEADER_SIZE, TRAILER_SIZE, Buffer, Header

_FRAME_MAGIC = 0x184D2204
_FRAME_BLOCKS_MAX = 16  # a page is one block in practice; the bound keeps a hostile frame from being walked for long
_FRAME_OVERHEAD_MAX = 15 + 8 * _FRAME_BLOCKS_MAX + 8


class Decoder:
    """Read one file: feed bytes in any pieces, take events until None; after the input has ended, `close`."""

    __slots__ = ("_at", "_buffer", "_end", "_failed", "_need", "_pages", "_trailer")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0  # where in the buffer the next part of the file begins
        self._need = HEADER_SIZE  # bytes from there without which there is nothing to do
        self._pages: Pages | None = None  # once the header is read
        self._end: bytes | None = None  # what must stand between pages and trailer, once the pages are read
        self._trailer: Trailer | None = None
        self._failed: Corrupt | None = None

    @property
    def unused(self) -> bytes:
        """After the trailer: the bytes that were fed beyond the end of the file."""
        return bytes(memoryview(self._buffer)[self._at :]) if self._trailer else b""

    def feed(self, data: Buffer) -> None:
        """More bytes of the file; they are copied."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next_event(self) -> Header | Page | Trailer | None:
        """The header, every page, the trailer; None when more bytes are needed, and for ever after the trailer."""
        if self._failed:
            raise self._failed
        if len(self._buffer) - self._at < self._need or self._trailer:
            return None
        try:
            if self._pages is None:
                return self._header()
            if self._end is None:
                event = self._page(self._pages)
                if event is not None or self._end is None or len(self._buffer) - self._at < self._need:
                    return event
            return self._finish(self._pages, self._end)
        except ValueError as error:
            offset = self._pages.offset if self._pages else 0
            self._failed = Corrupt(f"LTX file, byte {offset}: {error}")
            raise self._failed from error
        except Corrupt as error:
            self._failed = error
            raise

    def close(self) -> None:
        """The input has ended and all events are taken. Raises Corrupt if there was no trailer."""
        if self._failed:
            raise self._failed
        if self._trailer is None:
            size = (self._pages.offset if self._pages else 0) + len(self._buffer) - self._at
            part = "header" if self._pages is None else "pages" if self._end is None else "page index and trailer"
            raise Corrupt(f"LTX file, byte {size}: not complete: it ends inside its {part}")

    def _header(self) -> Header:
        header = Header.decode(self._buffer)
        assert header is not None  # `_need` says so
        self._pages = Pages(header, self._buffer[:HEADER_SIZE])
        self._at = HEADER_SIZE
        self._need = PREFIX.size  # the end of the pages has more than that behind it, too
        return header

    def _page(self, pages: Pages) -> Page | None:
        buffer, at = self._buffer, self._at
        pgno, flags, size = PREFIX.unpack_from(buffer, at)
        if not pgno and not flags:
            self._end = pages.end()
            self._need = len(self._end) + TRAILER_SIZE
            return None
        pages.check(pgno)
        if flags == PAGE_FLAG_SIZE:
            start = PREFIX.size
            if not 0 < size <= pages.block_max:
                raise ValueError(f"page {pgno} in a block of {size} bytes")
        elif flags == 0:
            start = PAGE_HEADER_SIZE
            size = _frame_extent(buffer, at + start, pages.block_max + _FRAME_OVERHEAD_MAX)
        else:
            raise ValueError(f"page {pgno} with unknown flags {flags:#x}")
        if len(buffer) - at < start + size:
            self._need = start + size
            return None
        packed = bytes(memoryview(buffer)[at + start : at + start + size])
        data = (_unpack_block if flags else _unpack_frame)(packed, pages.page_size)
        if len(data) != pages.page_size:
            raise ValueError(f"page {pgno} has {len(data)} bytes, not {pages.page_size}")
        pages.add(pgno, buffer[at : at + start], data, start + size)
        self._at = at + start + size
        self._need = PREFIX.size
        return Page(pgno, data, packed if flags else b"")

    def _finish(self, pages: Pages, end: bytes) -> Trailer:
        found = self._buffer[self._at : self._at + len(end)]
        if found != end:
            differs = next(i for i, (a, b) in enumerate(zip(found, end, strict=True)) if a != b)
            raise ValueError(f"the page index is not that of the pages: differs at byte {pages.offset + differs}")
        post_checksum, stored = TRAILER.unpack_from(self._buffer, self._at + len(end))
        computed = pages.file_checksum(end, post_checksum)
        if stored != computed:
            raise ValueError(f"file checksum {stored:016x}, but the file has {computed:016x}")
        self._at += len(end) + TRAILER_SIZE
        self._trailer = Trailer(post_checksum, stored, pages.offset + len(end) + TRAILER_SIZE)
        return self._trailer


def _unpack_block(block: bytes, page_size: int) -> bytes:
    try:
        data: bytes = lz4.block.decompress(block, uncompressed_size=page_size)
    except lz4.block.LZ4BlockError as error:
        raise ValueError(f"LZ4 block: {error}") from error
    return data


def _unpack_frame(frame: bytes, page_size: int) -> bytes:
    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        data: bytes = decompressor.decompress(frame, max_length=page_size + 1)
    except RuntimeError as error:
        raise ValueError(f"LZ4 frame: {error}") from error
    if not decompressor.eof:
        raise ValueError("LZ4 frame: does not end with its page")
    return data


def _frame_extent(buffer: bytearray, at: int, size_max: int) -> int:
    """How many bytes the LZ4 frame at `at` has, as far as the buffer tells: its size if they are all there."""
    have = len(buffer) - at
    if have < 7:
        return 7
    magic, flags = struct.unpack_from("<IB", buffer, at)
    if magic != _FRAME_MAGIC or flags & 0b11000011 != 0b01000000:  # version 1, no dictionary
        raise ValueError("not an LZ4 frame")
    extent = 15 if flags & 0b1000 else 7  # with the content's size or without
    for _ in range(_FRAME_BLOCKS_MAX + 1):
        extent += 4
        if have < extent:
            return extent
        size = int.from_bytes(buffer[at + extent - 4 : at + extent], "little") & 0x7FFFFFFF
        if size == 0:
            return extent + (4 if flags & 0b100 else 0)  # with a checksum of the content or without
        extent += size + (4 if flags & 0b10000 else 0)  # with a checksum of each block or without
        if extent > size_max:
            raise ValueError("LZ4 frame: longer than a page can be")
    raise ValueError(f"LZ4 frame: more than {_FRAME_BLOCKS_MAX} blocks")


def decode_file(data: Buffer) -> tuple[Header, list[Page], Trailer]:
    """A whole file at once. Raises Corrupt, also for bytes after its end."""
    decoder = Decoder()
    decoder.feed(data)
    header = decoder.next_event()
    pages = []
    while isinstance(event := decoder.next_event(), Page):
        pages.append(event)
    decoder.close()
    assert isinstance(header, Header)  # `close` says so
    assert isinstance(event, Trailer)
    if event.size != len(data):
        raise Corrupt(f"LTX file, byte {event.size}: more bytes after the trailer")
    return header, pages, event

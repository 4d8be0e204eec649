"""LTX version 3, as Litestream 0.5 writes it (superfly/ltx: `ltx.go`, `encoder.go`, `decoder.go`). Bytes in, bytes out.

    header, 100 bytes       0  magic "LTX1"           32  timestamp, ms, i64      72  node id, u64
    (big-endian)            4  flags, u32             40  pre-apply checksum, u64 80  walcast: database checksum, u64
                            8  page size, u32         48  WAL offset, i64         88  walcast: term, u32
                           12  commit, pages, u32     56  WAL size, i64           92  walcast: checksum-1 and -2 of the
                           16  min TXID, u64          64  WAL salt-1, u32             last WAL frame covered, u32 each
                           24  max TXID, u64          68  WAL salt-2, u32
    page, ascending pgno    0  pgno, u32            4  flags, u16: 1 = LZ4 block    6  block size, u32    10  LZ4 block
                            0  pgno, u32            4  flags, u16: 0 = LZ4 frame    6  LZ4 frame          (older files)
    end of pages            0  six zero bytes
    page index              uvarints: pgno, offset, size of every page as stored, prefix included; then one 0
                            u64: bytes of the index up to here
    trailer, 16 bytes       0  post-apply checksum, u64    8  file checksum, u64

A file takes a database from min TXID - 1 to max TXID. One that begins at TXID 1 is a snapshot: it has every page from 1
to `commit_pages`; any other has the pages that changed. The lock page at 1 GiB is in none. The file checksum is
CRC-64/GO-ISO, top bit set, over everything before it with the pages *uncompressed*: other LZ4 bytes for the same pages
are the same file. With FLAG_NO_CHECKSUM both database checksums are zero; otherwise they have the top bit set, and a
snapshot's post-apply checksum is the XOR of its page checksums. Offsets 80 to 100 are reserved: others write zeros.

`Encoder` raises ValueError for what must not be written. `Decoder` answers an event, or None for "need more", or
raises Corrupt; the pages it has handed out are proven only when it has answered the `Trailer`. What it holds is bounded
by what was fed, plus some 8 bytes a page; no size is believed before it is compared with what the page size allows.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

import lz4.block
import lz4.frame

from walcast.checksum import crc64_go_iso, lock_pgno, page_checksum
from walcast.errors import Corrupt
from walcast.position import CHECKSUM_FLAG

MAGIC = b"LTX1"
HEADER_SIZE = 100
TRAILER_SIZE = 16
PAGE_HEADER_SIZE = 6
FLAG_NO_CHECKSUM = 1 << 1
PAGE_FLAG_SIZE = 1 << 0

Buffer: TypeAlias = bytes | bytearray | memoryview

_HEADER = struct.Struct(">4sIIIQQqQqqIIQQIII")
_PREFIX = struct.Struct(">IHI")  # page header and block size
_TRAILER = struct.Struct(">QQ")
_END_OF_PAGES = bytes(PAGE_HEADER_SIZE)
_PAGE_SIZES = frozenset(1 << n for n in range(9, 17))

_FRAME_MAGIC = 0x184D2204
_FRAME_BLOCKS_MAX = 16  # a page is one block in practice; the bound keeps a hostile frame from being walked for long
_FRAME_OVERHEAD_MAX = 15 + 8 * _FRAME_BLOCKS_MAX + 8

_FILENAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.ltx")


def format_filename(min_txid: int, max_txid: int) -> str:
    """The name of a file in an archive."""
    return f"{min_txid:016x}-{max_txid:016x}.ltx"


def parse_filename(name: str) -> tuple[int, int]:
    """Min and max TXID. Raises ValueError for anything `format_filename` does not answer for some file."""
    match = _FILENAME.fullmatch(name)
    if match is None or not 0 < int(match[1], 16) <= int(match[2], 16):
        raise ValueError(f"not the name of an LTX file: {name!r}")
    return int(match[1], 16), int(match[2], 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 100 bytes of a file; the last three fields are walcast's own."""

    page_size: int
    commit_pages: int
    min_txid: int
    max_txid: int
    timestamp_ms: int
    pre_checksum: int = 0
    flags: int = 0
    wal_offset: int = 0
    wal_size: int = 0
    wal_salt: tuple[int, int] = (0, 0)
    node_id: int = 0
    database_checksum: int = 0  # after the file is applied; 0: not known. For files with FLAG_NO_CHECKSUM
    term: int = 0
    wal_cksum: tuple[int, int] = (0, 0)

    @property
    def is_snapshot(self) -> bool:
        """Does the file hold the whole database?"""
        return self.min_txid == 1

    @property
    def no_checksum(self) -> bool:
        """Are the pre- and post-apply checksums left out?"""
        return bool(self.flags & FLAG_NO_CHECKSUM)

    def validate(self) -> None:
        """Raises ValueError for what Litestream would refuse, and for a database checksum that cannot be one."""
        if self.page_size not in _PAGE_SIZES:
            raise ValueError(f"page size {self.page_size}")
        if self.flags & ~FLAG_NO_CHECKSUM:
            raise ValueError(f"unknown flags {self.flags:#x}")
        if not 0 < self.min_txid <= self.max_txid:
            raise ValueError(f"TXIDs from {self.min_txid} to {self.max_txid}")
        if self.wal_offset < 0 or self.wal_size < 0:
            raise ValueError(f"WAL offset {self.wal_offset}, size {self.wal_size}")
        if self.wal_offset == 0 and (self.wal_size or any(self.wal_salt)):
            raise ValueError("WAL size or salt without a WAL offset")
        if self.is_snapshot or self.no_checksum:
            if self.pre_checksum:
                raise ValueError("pre-apply checksum where there can be none")
        elif not self.pre_checksum & CHECKSUM_FLAG:
            raise ValueError(f"pre-apply checksum {self.pre_checksum:016x} without its top bit")
        if self.database_checksum and not self.database_checksum & CHECKSUM_FLAG:
            raise ValueError(f"database checksum {self.database_checksum:016x} without its top bit")

    def encode(self) -> bytes:
        """100 bytes. Raises ValueError for a header that `decode` would refuse."""
        self.validate()
        try:
            return _HEADER.pack(
                MAGIC,
                self.flags,
                self.page_size,
                self.commit_pages,
                self.min_txid,
                self.max_txid,
                self.timestamp_ms,
                self.pre_checksum,
                self.wal_offset,
                self.wal_size,
                *self.wal_salt,
                self.node_id,
                self.database_checksum,
                self.term,
                *self.wal_cksum,
            )
        except struct.error as error:
            raise ValueError(f"a field out of range: {error}") from error

    @classmethod
    def decode(cls, data: Buffer) -> Self | None:
        """From the beginning of a file; None with fewer than 100 bytes. Raises Corrupt."""
        if len(data) < HEADER_SIZE:
            return None
        fields = _HEADER.unpack_from(data)
        if fields[0] != MAGIC:
            raise Corrupt(f"LTX file, byte 0: not an LTX file: begins with {fields[0].hex()}")
        header = cls(
            flags=fields[1],
            page_size=fields[2],
            commit_pages=fields[3],
            min_txid=fields[4],
            max_txid=fields[5],
            timestamp_ms=fields[6],
            pre_checksum=fields[7],
            wal_offset=fields[8],
            wal_size=fields[9],
            wal_salt=fields[10:12],
            node_id=fields[12],
            database_checksum=fields[13],
            term=fields[14],
            wal_cksum=fields[15:17],
        )
        try:
            header.validate()
        except ValueError as error:
            raise Corrupt(f"LTX file, byte 0: header: {error}") from error
        return header


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


class _Pages:
    """What writing and reading share: which page may come next, checksums so far, the page index. Raises ValueError."""

    __slots__ = ("_header", "_lock", "_next", "_summed", "block_max", "crc", "database", "index", "offset", "page_size")

    def __init__(self, header: Header, encoded: Buffer) -> None:
        self._header = header
        self._lock = lock_pgno(header.page_size)
        self._next = 1  # the smallest pgno that may follow
        self._summed = header.is_snapshot and not header.no_checksum
        self.page_size = header.page_size
        self.block_max = header.page_size + header.page_size // 255 + 16  # LZ4's own bound
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
        return b"".join((_END_OF_PAGES, self.index, b"\0", size.to_bytes(8, "big")))

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


class Encoder:
    """Write one file: `write` is called with its bytes, in order, one call for the header, each page and the rest."""

    __slots__ = ("_finished", "_pages", "_write")

    def __init__(self, header: Header, write: Callable[[bytes], object]) -> None:
        encoded = header.encode()
        self._pages = _Pages(header, encoded)
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
        prefix = _PREFIX.pack(pgno, PAGE_FLAG_SIZE, len(block))
        pages.add(pgno, prefix, page, len(prefix) + len(block))
        self._write(b"".join((prefix, block)))

    def finish(self, post_checksum: int = 0) -> Trailer:
        """Write the end. `post_checksum` is the database checksum after the file; 0 with FLAG_NO_CHECKSUM."""
        if self._finished:
            raise ValueError("the file is finished")
        end = self._pages.end()
        file_checksum = self._pages.file_checksum(end, post_checksum)
        self._finished = True
        self._write(end + _TRAILER.pack(post_checksum, file_checksum))
        return Trailer(post_checksum, file_checksum, self._pages.offset + len(end) + TRAILER_SIZE)


class Decoder:
    """Read one file: feed bytes in any pieces, take events until None; after the input has ended, `close`."""

    __slots__ = ("_at", "_buffer", "_end", "_failed", "_need", "_pages", "_trailer")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0  # where in the buffer the next part of the file begins
        self._need = HEADER_SIZE  # bytes from there without which there is nothing to do
        self._pages: _Pages | None = None  # once the header is read
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
        self._pages = _Pages(header, self._buffer[:HEADER_SIZE])
        self._at = HEADER_SIZE
        self._need = _PREFIX.size  # the end of the pages has more than that behind it, too
        return header

    def _page(self, pages: _Pages) -> Page | None:
        buffer, at = self._buffer, self._at
        pgno, flags, size = _PREFIX.unpack_from(buffer, at)
        if not pgno and not flags:
            self._end = pages.end()
            self._need = len(self._end) + TRAILER_SIZE
            return None
        pages.check(pgno)
        if flags == PAGE_FLAG_SIZE:
            start = _PREFIX.size
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
        self._need = _PREFIX.size
        return Page(pgno, data, packed if flags else b"")

    def _finish(self, pages: _Pages, end: bytes) -> Trailer:
        found = self._buffer[self._at : self._at + len(end)]
        if found != end:
            differs = next(i for i, (a, b) in enumerate(zip(found, end, strict=True)) if a != b)
            raise ValueError(f"the page index is not that of the pages: differs at byte {pages.offset + differs}")
        post_checksum, stored = _TRAILER.unpack_from(self._buffer, self._at + len(end))
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
    if not decompressor.eof or decompressor.unused_data:
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
            break
    raise ValueError("LZ4 frame: longer than a page can be")


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


_INDEX_TAIL_SIZE: Final = 8 + TRAILER_SIZE


def page_index_size(tail: Buffer) -> int:
    """How many of a file's last bytes `decode_page_index` needs, from its last 24 bytes or more. Raises Corrupt."""
    if len(tail) < _INDEX_TAIL_SIZE:
        raise Corrupt(f"LTX page index: {len(tail)} bytes are no tail of an LTX file")
    at = len(tail) - _INDEX_TAIL_SIZE
    return int.from_bytes(tail[at : at + 8], "big") + _INDEX_TAIL_SIZE


def decode_page_index(tail: Buffer) -> dict[int, tuple[int, int]]:
    """pgno → (offset, size) of each page as stored, bytes, from at least a file's last `page_index_size` bytes.

    Nothing here has a checksum: what is read at these offsets must be checked against the page and its number.
    """
    size = page_index_size(tail)
    if size > len(tail):
        raise Corrupt(f"LTX page index: {size} bytes from the end, of which {len(tail)} are here")
    data = memoryview(tail)[len(tail) - size : len(tail) - _INDEX_TAIL_SIZE]
    values: list[int] = []
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            values.append(value)
            value = shift = 0
        elif (shift := shift + 7) > 63:
            raise Corrupt("LTX page index: a number of more than 64 bits")
    if shift or len(values) % 3 != 1 or values.pop() != 0:
        raise Corrupt("LTX page index: has no end")
    index: dict[int, tuple[int, int]] = {}
    last, next_offset = 0, HEADER_SIZE
    for pgno, offset, stored in zip(values[::3], values[1::3], values[2::3], strict=True):
        if not last < pgno < 1 << 32 or offset != next_offset or stored <= PAGE_HEADER_SIZE:
            raise Corrupt(f"LTX page index: page {pgno} with {stored} bytes at byte {offset} cannot come here")
        index[pgno] = (offset, stored)
        last, next_offset = pgno, offset + stored
    return index

"""A large snapshot cut into parts that can be decoded anywhere, in any order, and proven together. No I/O.

The page index at the tail says where each page is; parts are cut between pages. A part's proof is the CRC-64 of what
the file checksum covers of it; those of all parts, with the header and the page index, make that of the file. So the
same files are refused as when a file is read from its beginning to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from walcast.archive.files import ArchiveFile
from walcast.checksum import crc64_go_iso, lock_pgno
from walcast.errors import Corrupt
from walcast.ltx import HEADER_SIZE, PAGE_HEADER_SIZE, TRAILER_SIZE, Header, Trailer
from walcast.ltx.body import PREFIX, TRAILER
from walcast.ltx.possible import TAIL_BYTES, snapshot_pages, stored_max
from walcast.position import CHECKSUM_FLAG
from walcast.restore.crc_parts import crc64_of_parts
from walcast.restore.pages import Batch, FilePages

PART_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `start` to `end` of the file: pages `pgnos`, uint32[n]."""

    start: int
    end: int
    pgnos: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Divided:
    """A snapshot: its header, as it is and decoded, its parts, and all that comes after its pages."""

    file: ArchiveFile
    header: Header
    head: bytes
    parts: list[Part]
    tail: bytes


@dataclass(frozen=True, slots=True)
class Decoded:
    """What was found in a part: its pages' checksums, uint64[n], and the CRC-64 of what the file checksum covers."""

    sums: NDArray[np.uint64]
    crc: int


def cut(header: Header, size: int, tail: bytes) -> list[Part]:
    """The parts of a snapshot of `size` bytes that ends with `tail`. Raises Corrupt."""
    index = tail[PAGE_HEADER_SIZE:-TAIL_BYTES]
    values = _uvarints(index)
    pages = snapshot_pages(header)
    if not pages or len(values) != 3 * pages + 1 or values[-1] != 0:
        raise Corrupt(f"LTX file: a page index of {len(values)} numbers for {pages} pages")
    pgnos, offsets, sizes = (values[column:-1:3] for column in range(3))
    expected = np.arange(1, pages + 1, dtype=np.int64)
    expected[expected >= lock_pgno(header.page_size)] += 1
    end = size - len(tail)
    ends = offsets + sizes
    if (
        not np.array_equal(pgnos, expected)
        or int(offsets[0]) != HEADER_SIZE
        or not np.array_equal(offsets[1:], ends[:-1])
        or int(ends[-1]) != end
        or bool((sizes <= PREFIX.size).any())
        or bool((sizes > stored_max(header.page_size)).any())
    ):
        raise Corrupt("LTX file: the page index is not that of its pages")
    parts: list[Part] = []
    first = 0
    while first < pages:
        last = int(np.searchsorted(offsets, offsets[first] + PART_BYTES))
        stop = int(offsets[last]) if last < pages else end
        parts.append(Part(int(offsets[first]), stop, pgnos[first:last].astype(np.uint32)))
        first = last
    return parts


def decode(header: Header, part: Part, data: bytes, write: Callable[[Batch], None]) -> Decoded:
    """Decode a part: its pages to `write`, in batches. Raises Corrupt."""
    if len(data) != part.end - part.start:
        raise Corrupt(f"LTX file: ends at byte {part.start + len(data)}")
    batches: list[Batch] = []

    def emit(_: Header, batch: Batch) -> None:
        batches.append(Batch(batch.pgnos, [], batch.sums))
        write(batch)

    pages = FilePages(emit, part_of=header)
    pages.feed(data)
    crc = pages.finish_part()
    if not np.array_equal(np.concatenate([batch.pgnos for batch in batches]), part.pgnos):
        raise Corrupt(f"LTX file, byte {part.start}: other pages than the page index says")
    return Decoded(np.concatenate([batch.sums for batch in batches]), crc)


def finish(divided: Divided, crcs: Sequence[int]) -> Trailer:
    """All parts are decoded, with these CRCs: is the file what its checksum says? Raises Corrupt."""
    header, tail = divided.header, divided.tail
    crc: int = crc64_go_iso(divided.head[:HEADER_SIZE])
    for part, of_part in zip(divided.parts, crcs, strict=True):
        crc = crc64_of_parts(crc, of_part, len(part.pgnos) * (PREFIX.size + header.page_size))
    if any(tail[:PAGE_HEADER_SIZE]):
        raise Corrupt("LTX file: the pages have no end")
    post_checksum, stored = TRAILER.unpack(tail[-TRAILER_SIZE:])
    computed = crc64_go_iso(tail[: -TRAILER_SIZE + 8], crc) | CHECKSUM_FLAG
    if stored != computed:
        raise Corrupt(f"LTX file: file checksum {stored:016x}, but the file has {computed:016x}")
    if bool(post_checksum & CHECKSUM_FLAG) == header.no_checksum:
        raise Corrupt(f"LTX file: post-apply checksum {post_checksum:016x} cannot be one")
    return Trailer(post_checksum, stored, divided.file.size)


def _uvarints(data: bytes) -> NDArray[np.int64]:
    """Numbers of seven bits a byte, the lowest first; the last byte of each is below 128. Raises Corrupt."""
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    if not len(ends) or int(ends[-1]) != len(octets) - 1:
        raise Corrupt("LTX file: the page index has no end")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if int(lengths.max()) > 8:
        raise Corrupt("LTX file: a number of more than 56 bits in the page index")
    values = np.zeros(len(ends), np.int64)
    for at in range(int(lengths.max())):
        longer = lengths > at
        values[longer] |= (octets[starts[longer] + at].astype(np.int64) & 0x7F) << (7 * at)
    return values

"""The page index of an LTX file: where each page is, read from the file's tail."""

from __future__ import annotations

from walcast.errors import Corrupt
from walcast.ltx.header import HEADER_SIZE, PAGE_HEADER_SIZE, TRAILER_SIZE, Buffer

_TAIL_SIZE = 8 + TRAILER_SIZE


def page_index_size(tail: Buffer) -> int:
    """How many of a file's last bytes `decode_page_index` needs, from its last 24 bytes or more. Raises Corrupt.

    The answer is not checked: one larger than the file is the caller's to refuse before it reads that much.
    """
    if len(tail) < _TAIL_SIZE:
        raise Corrupt(f"LTX page index: {len(tail)} bytes are no tail of an LTX file")
    at = len(tail) - _TAIL_SIZE
    return int.from_bytes(tail[at : at + 8], "big") + _TAIL_SIZE


def decode_page_index(tail: Buffer) -> dict[int, tuple[int, int]]:
    """pgno → (offset, size) of each page as stored, bytes, from at least a file's last `page_index_size` bytes.

    Nothing here has a checksum: what is read at these offsets must be checked against the page and its number.
    """
    size = page_index_size(tail)
    if size > len(tail):
        raise Corrupt(f"LTX page index: {size} bytes from the end, of which {len(tail)} are here")
    data = memoryview(tail)[len(tail) - size : len(tail) - _TAIL_SIZE]
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

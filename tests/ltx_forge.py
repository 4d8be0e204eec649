"""LTX files put together by hand: an oracle kept dumb, and a forger who gets every checksum right."""

from __future__ import annotations

import struct
from collections.abc import Iterable


def crc64(data: bytes) -> int:
    """CRC-64/GO-ISO, a bit at a time."""
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
    return crc ^ (1 << 64) - 1


def uvarint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    if value < 128:
        return bytes([value])
    return bytes([value % 128 + 128]) + uvarint(value // 128)


def stored_block(page: bytes) -> bytes:
    """An LZ4 block of literals only, for a page of 512 bytes: 512 = 15 + 255 + 242."""
    return b"\xf0\xff\xf2" + page


def page_entry(pgno: int, flags: int, packed: bytes, page: bytes) -> tuple[int, bytes, bytes, bytes]:
    """A page as `forge` takes it: its number, its prefix, its stored bytes, its content."""
    prefix = struct.pack(">IH", pgno, flags) + (struct.pack(">I", len(packed)) if flags else b"")
    return pgno, prefix, packed, page


def forge(
    header: bytes,
    entries: Iterable[tuple[int, bytes, bytes, bytes]],
    *,
    post_checksum: int = 0,
    index: bytes | None = None,
) -> bytes:
    """A file of these parts; the file checksum is right, the page index too unless another is given."""
    body = hashed = header
    right_index = b""
    for pgno, prefix, packed, page in entries:
        right_index += uvarint(pgno) + uvarint(len(body)) + uvarint(len(prefix) + len(packed))
        body += prefix + packed
        hashed += prefix + page
    index = right_index + b"\0" if index is None else index
    end = bytes(6) + index + struct.pack(">QQ", len(index), post_checksum)
    return body + end + struct.pack(">Q", crc64(hashed + end) | 1 << 63)

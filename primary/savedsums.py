"""The page checksums of a database at one position, in a file: what a primary compares with after it was away.

    magic "WALCASTP" · page size u32 · term u32 · TXID u64 · database checksum u64 · pages u64     big-endian, then the
    page checksums, little-endian u64, page 1 first

The XOR of all must be the database checksum, so a damaged file is found out.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from walcast.checksum import PageChecksums
from walcast.filesystem import write_durably
from walcast.position import Position

NAME = "checksums"

_HEADER = struct.Struct(">8sIIQQQ")
_MAGIC = b"WALCASTP"


def save(directory: Path, checksums: PageChecksums, position: Position, term: int) -> None:
    """Replace the file, atomically and durably."""
    pages = checksums.pages[: checksums.commit_pages].astype("<u8")
    head = _HEADER.pack(_MAGIC, checksums.page_size, term, position.txid, position.checksum, len(pages))
    write_durably(directory / NAME, head, pages.data)


def load(directory: Path) -> tuple[PageChecksums, Position, int] | None:
    """None when there is none, or it is not what it claims."""
    try:
        data = (directory / NAME).read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _HEADER.size:
        return None
    magic, page_size, term, txid, checksum, count = _HEADER.unpack_from(data)
    if magic != _MAGIC or len(data) != _HEADER.size + 8 * count:
        return None
    pages = np.frombuffer(data, "<u8", offset=_HEADER.size).astype(np.uint64)
    checksums = PageChecksums(page_size, pages)
    return (checksums, Position(txid, checksum), term) if checksums.database == checksum else None

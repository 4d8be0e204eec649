"""The `-wal` file (sqlite.org/fileformat2.html#the_write_ahead_log).

    header, 32 bytes, big-endian u32: magic 0x377f0682 or …83, version 3007000, page size, checkpoint sequence,
                                      salt-1, salt-2, checksum-1, checksum-2
    frame, 24 bytes + page:           pgno, database pages after the commit or 0, salt-1, salt-2, checksum-1, checksum-2

The magic's last bit says how the words are read for the checksums: 1 big-endian, 0 little-endian. Frames count from 1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from walcast.errors import Corrupt

WAL_HEADER_SIZE = 32
FRAME_HEADER_SIZE = 24
MAGIC_LITTLE = 0x377F0682
WAL_VERSION = 3007000

_HEADER = struct.Struct(">8I")


def frame_offset(frame: int, page_size: int) -> int:
    """Where frame number `frame` (from 1) begins in the file, bytes."""
    return WAL_HEADER_SIZE + (frame - 1) * (FRAME_HEADER_SIZE + page_size)


def frame_dtype(page_size: int) -> np.dtype[Any]:
    """One frame as a NumPy record: pgno, commit (database pages, 0 inside a transaction), salt (2), cksum (2), page."""
    return np.dtype(
        [
            ("pgno", ">u4"),
            ("commit", ">u4"),
            ("salt", ">u4", 2),
            ("cksum", ">u4", 2),
            ("page", "u1", page_size),
        ]
    )


@dataclass(frozen=True, slots=True)
class WalHeader:
    """The first 32 bytes of a `-wal` file. `big_endian` is the byte order of checksummed words."""

    page_size: int
    checkpoint_seq: int
    salt: tuple[int, int]
    cksum: tuple[int, int]
    big_endian: bool = False

    @classmethod
    def decode(cls, data: bytes) -> Self | None:
        """None when fewer than 32 bytes are there; Corrupt when they are no WAL header."""
        if len(data) < WAL_HEADER_SIZE:
            return None
        magic, version, page_size, seq, salt1, salt2, ck1, ck2 = _HEADER.unpack_from(data)
        if magic & ~1 != MAGIC_LITTLE or version != WAL_VERSION:
            raise Corrupt(f"not a WAL header: magic {magic:#x}, version {version}")
        if not 512 <= page_size <= 65536 or page_size & (page_size - 1):
            raise Corrupt(f"not a WAL header: page size {page_size}")
        return cls(page_size, seq, (salt1, salt2), (ck1, ck2), bool(magic & 1))

"""The wal-index, the `-shm` file (sqlite.org/walformat.html), in the machine's byte order.

    0..48     header, first copy       48..96    header, second copy: a reader trusts it only when both are equal
    96..136   checkpoint information: nBackfill, aReadMark[5], aLock[8], nBackfillAttempted, unused
    136..     page numbers of frames 1..4062, then at 16384 a hash table of 8192 u16; every further 32 KiB block has
              4096 page numbers and 8192 hash slots
    120..128  are lock bytes: write, checkpoint, recover, read 0..4; 128 is the dead man's switch
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

BLOCK_SIZE = 32768
HEADER_SIZE = 48
CKPT_INFO_OFFSET = 96
INDEX_HEADER_SIZE = 136
FRAMES_FIRST_BLOCK = 4062
FRAMES_PER_BLOCK = 4096
HASH_SLOTS = 8192
READ_MARK_UNUSED = 0xFFFFFFFF
WALINDEX_VERSION = 3007000

LOCK_WRITE, LOCK_CHECKPOINT, LOCK_RECOVER, LOCK_READ0 = 120, 121, 122, 123
LOCK_DMS = 128

_HEADER = struct.Struct("=IIIBBHII2I2I2I")
_CKPT_INFO = struct.Struct("=I5I")


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """What is committed: `mx_frame` frames of the WAL with these salts, `commit_pages` database pages.

    `salt` is as the WAL's header has it (big-endian words). `change` counts commits. `frame_cksum` is the checksum of
    frame `mx_frame`.
    """

    change: int
    page_size: int
    mx_frame: int
    commit_pages: int
    frame_cksum: tuple[int, int]
    salt: tuple[int, int]
    big_endian_cksum: bool = False

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Self | None:
        """From the first 96 bytes; None while a writer is between its two copies, or before the first is written."""
        first = bytes(data[:HEADER_SIZE])
        if first != bytes(data[HEADER_SIZE : 2 * HEADER_SIZE]):
            return None
        _, _, change, is_init, big, size, mx, pages, f1, f2, s1, s2, *_ = _HEADER.unpack(first)
        if not is_init:
            return None
        salt = struct.unpack(">2I", first[32:40])
        page_size = (size & 0xFE00) + ((size & 1) << 16)
        return cls(change, page_size, mx, pages, (f1, f2), (salt[0], salt[1]), bool(big))


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """How far the WAL is copied into the database, and the snapshots that readers hold (frame numbers)."""

    backfill: int
    read_marks: tuple[int, int, int, int, int]

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Self:
        """From the bytes that begin at 96."""
        backfill, *marks = _CKPT_INFO.unpack_from(data, CKPT_INFO_OFFSET)
        return cls(backfill, (marks[0], marks[1], marks[2], marks[3], marks[4]))

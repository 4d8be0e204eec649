"""The `-wal` file (sqlite.org/fileformat2.html#the_write_ahead_log).

    header, 32 bytes, big-endian u32: magic 0x377f0682 or …83, version 3007000, page size, checkpoint sequence,
                                      salt-1, salt-2, checksum-1, checksum-2
    frame, 24 bytes + page:           pgno, database pages after the commit or 0, salt-1, salt-2, checksum-1, checksum-2

The magic's last bit says how the words are read for the checksums: 1 big-endian, 0 little-endian. Frames count from 1.

**Checksums.** Two sums run over pairs of words (a, b), mod 2^32: s1 += a + s2, then s2 += b + s1. The header's begin
at (0, 0) and cover its first 24 bytes; a frame's begin where the one before it (or the header) ended, and cover the
first 8 bytes of its header, then its page. A step is linear: with M = [[1, 1], [1, 2]], (s1, s2) becomes M·(s1, s2) +
(a, a + b). So what a frame adds is the product of its words with a fixed matrix, all frames at once; only the chain
from frame to frame is a loop, of four multiplications a frame.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from walcast.errors import Corrupt

WAL_HEADER_SIZE = 32
FRAME_HEADER_SIZE = 24
MAGIC_LITTLE = 0x377F0682
WAL_VERSION = 3007000

MASK = 0xFFFFFFFF
NATIVE_BIG_ENDIAN = sys.byteorder == "big"

_HEADER = struct.Struct(">8I")
_HEADER_WORDS = FRAME_HEADER_SIZE // 4
_VERIFY_BYTES = 1 << 20  # frames verified at a time: what fits into a core's cache


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

    @classmethod
    def new(cls, page_size: int, salt: tuple[int, int], seq: int, *, big_endian: bool = NATIVE_BIG_ENDIAN) -> Self:
        """With its checksum; `seq` is the checkpoint sequence."""
        blank = cls(page_size, seq, salt, (0, 0), big_endian)
        return cls(page_size, seq, salt, blank._own_checksum(), big_endian)

    def encode(self) -> bytes:
        """The 32 bytes that `decode` reads."""
        magic = MAGIC_LITTLE | self.big_endian
        return _HEADER.pack(magic, WAL_VERSION, self.page_size, self.checkpoint_seq, *self.salt, *self.cksum)

    @property
    def intact(self) -> bool:
        """Whether its checksum holds; SQLite takes a WAL whose header's does not for empty."""
        return self.cksum == self._own_checksum()

    def _own_checksum(self) -> tuple[int, int]:
        return checksum(self.encode()[:24], (0, 0), self.big_endian)


def checksum(data: bytes | memoryview, seed: tuple[int, int] = (0, 0), big_endian: bool = False) -> tuple[int, int]:
    """SQLite's checksum of a few bytes (a multiple of 8): headers. Pages go in bulk, through `frame_checksums`."""
    words = struct.unpack(f"{'>' if big_endian else '<'}{len(data) // 4}I", data)
    s1, s2 = seed
    for i in range(0, len(words), 2):
        s1 = (s1 + words[i] + s2) & MASK
        s2 = (s2 + words[i + 1] + s1) & MASK
    return s1, s2


@cache
def _coefficients(page_size: int) -> tuple[NDArray[np.uint32], tuple[int, int, int, int]]:
    """What a frame does to the running checksum.

    uint32[2, 6 + page words]: how much of each of the frame's words goes into s1 and s2 (of salts and checksums:
    nothing); and the matrix that the checksum before it is multiplied with.
    """
    words = page_size // 4
    columns = np.zeros((2, _HEADER_WORDS + words), np.uint32)
    m00, m01, m10, m11 = 1, 0, 0, 1  # M to the power of the pairs that still follow
    for word in (*range(_HEADER_WORDS + words - 2, _HEADER_WORDS - 1, -2), 0):
        columns[:, word] = (m00 + m01) & MASK, (m10 + m11) & MASK
        columns[:, word + 1] = m01, m11
        m00, m01, m10, m11 = (m00 + m01) & MASK, (m00 + 2 * m01) & MASK, (m10 + m11) & MASK, (m10 + 2 * m11) & MASK
    return columns, (m00, m01, m10, m11)


def _words(data: NDArray[np.uint8], big_endian: bool) -> NDArray[np.uint32]:
    """The words as the checksum reads them: uint8[n, 4 m] as uint32[n, m], no copy in the machine's own order."""
    return data.view(">u4" if big_endian else "<u4").astype(np.uint32, copy=False)


def _chain(
    shares: NDArray[np.uint32], power: tuple[int, int, int, int], seed: tuple[int, int]
) -> list[tuple[int, int]]:
    """The checksum after each frame, from what each adds."""
    p00, p01, p10, p11 = power
    s1, s2 = seed
    sums = []
    for add1, add2 in shares.tolist():
        s1, s2 = (p00 * s1 + p01 * s2 + add1) & MASK, (p10 * s1 + p11 * s2 + add2) & MASK
        sums.append((s1, s2))
    return sums


def record_checksums(
    frames: NDArray[np.uint8], page_size: int, seed: tuple[int, int], big_endian: bool = False
) -> list[tuple[int, int]]:
    """The checksums of whole frames as they lie in the file, uint8[n, 24 + page_size]; `seed`: of what comes before."""
    columns, power = _coefficients(page_size)
    return _chain(np.einsum("ij,kj->ik", _words(frames, big_endian), columns), power, seed)


def frame_checksums(
    page_size: int,
    pgnos: NDArray[np.uint32],
    commits: NDArray[np.uint32],
    pages: NDArray[np.uint8],
    seed: tuple[int, int],
    big_endian: bool = False,
) -> NDArray[np.uint32]:
    """The checksums of frames that follow what has checksum `seed`: uint32[n, 2] for pages uint8[n, page_size]."""
    columns, power = _coefficients(page_size)
    shares = np.einsum("ij,kj->ik", _words(pages, big_endian), columns[:, _HEADER_WORDS:])
    head = np.empty((len(pgnos), 2), ">u4")  # a frame's header is big-endian whatever the checksum's order
    head[:, 0], head[:, 1] = pgnos, commits
    shares += np.einsum("ij,kj->ik", _words(head.view(np.uint8), big_endian), columns[:, :2])
    return np.array(_chain(shares, power, seed), np.uint32).reshape(-1, 2)


def valid_frames(data: bytes | bytearray | memoryview | NDArray[Any], header: WalHeader) -> int:
    """How many frames SQLite's recovery finds: up to the last commit before anything that does not hold.

    `data` is what follows the header, of any length (a torn frame at the end does not count), or a record array of
    frames. A frame holds when its salts are the header's, its page number is not 0, and its checksum continues the
    chain.
    """
    if not header.intact:
        return 0
    dtype = frame_dtype(header.page_size)
    flat = data.reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    count = len(flat) // dtype.itemsize
    raw = flat[: count * dtype.itemsize].reshape(count, dtype.itemsize)
    committed, seed, step = 0, header.cksum, max(1, _VERIFY_BYTES // dtype.itemsize)
    for first in range(0, count, step):
        part = np.ascontiguousarray(raw[first : first + step])
        frames = part.view(dtype)[:, 0]
        sums = record_checksums(part, header.page_size, seed, header.big_endian)
        holds = (frames["cksum"] == np.array(sums, np.uint32)).all(axis=1)
        holds &= (frames["salt"] == header.salt).all(axis=1) & (frames["pgno"] != 0)
        good = len(part) if holds.all() else int(holds.argmin())
        commits = np.flatnonzero(frames["commit"][:good])
        if len(commits):
            committed = first + int(commits[-1]) + 1
        if good < len(part):
            break
        seed = sums[-1]
    return committed

"""The wal-index, the `-shm` file (sqlite.org/walformat.html), in the machine's byte order.

0..48     header, first copy       48..96    header, second copy: a reader trusts it only when both are equal
96..136   checkpoint information: nBackfill, aReadMark[5], aLock[8], nBackfillAttempted, unused
136..     page numbers of frames 1..4062, then at 16384 a hash table of 8192 u16; every further 32 KiB block has
          4096 page numbers and 8192 hash slots
120..128  are lock bytes: write, checkpoint, recover, read 0..4; 128 is the dead man's switch
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np

from walcast.errors import Corrupt
from walcast.wal import NATIVE_BIG_ENDIAN, checksum

BLOCK_SIZE = 32768
HEADER_SIZE = 48
CKPT_INFO_OFFSET = 96
INDEX_HEADER_SIZE = 136
FRAMES_FIRST_BLOCK = 4062
FRAMES_PER_BLOCK = 4096
HASH_SLOTS = 8192
READ_MARK_UNUSED = 0xFFFFFFFF
READ_MARKS = 5  # the first of them is not used
WALINDEX_VERSION = 3007000

LOCK_WRITE, LOCK_CHECKPOINT, LOCK_RECOVER, LOCK_READ0 = 120, 121, 122, 123
LOCK_DMS = 128

_HEADER = struct.Struct("=IIIBBHII2I2I2I")
_CKPT_INFO = struct.Struct("=I5I")
_CKSUM = struct.Struct("=2I")
_CKSUM_OFFSET = 40
HASH_OFFSET = BLOCK_SIZE - 2 * HASH_SLOTS
_HASH_PRIME = 383
_PROBES = 12


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
        # Equal copies can still be torn, if two commits follow each other closely enough.
        if _CKSUM.unpack_from(first, _CKSUM_OFFSET) != checksum(first[:_CKSUM_OFFSET], (0, 0), NATIVE_BIG_ENDIAN):
            return None
        _, _, change, is_init, big, size, mx, pages, f1, f2, *_ = _HEADER.unpack(first)
        if not is_init:
            return None
        salt = struct.unpack(">2I", first[32:40])
        page_size = (size & 0xFE00) + ((size & 1) << 16)
        return cls(change, page_size, mx, pages, (f1, f2), (salt[0], salt[1]), bool(big))

    def encode(self, version: int = WALINDEX_VERSION) -> bytes:
        """One copy, 48 bytes, with its checksum."""
        size = (self.page_size & 0xFFFF) | (self.page_size >> 16)
        counts = (self.change, 1, self.big_endian_cksum, size, self.mx_frame, self.commit_pages, *self.frame_cksum)
        salt = struct.unpack("=2I", struct.pack(">2I", *self.salt))
        data = _HEADER.pack(version, 0, *counts, *salt, 0, 0)[:_CKSUM_OFFSET]
        return data + _CKSUM.pack(*checksum(data, (0, 0), NATIVE_BIG_ENDIAN))


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


def frame_block(frame: int) -> tuple[int, int]:
    """Where frame number `frame` (from 1) stands: block, and index in it (both from 0)."""
    if frame <= FRAMES_FIRST_BLOCK:
        return 0, frame - 1
    block, index = divmod(frame - 1 - FRAMES_FIRST_BLOCK, FRAMES_PER_BLOCK)
    return block + 1, index


@dataclass(frozen=True, slots=True)
class HashBlock:
    """One block's page numbers and hash table, as views of the mapped block.

    `pgnos` (u32) has the page number of each frame of the block, in order. `slots` (u16) has index + 1 of a frame at
    the first free slot from (pgno * 383) mod 8192 on, 0 for free: a page's newest frame is the last one found before
    a free slot. Readers ignore frames past the mxFrame of their snapshot, so whatever is inserted past the header's
    is not seen.
    """

    pgnos: memoryview
    slots: memoryview

    @classmethod
    def of(cls, block: memoryview, first: bool) -> Self:
        """Views of a 32 KiB block; the first one begins with the headers."""
        start = INDEX_HEADER_SIZE if first else 0
        return cls(block[start:HASH_OFFSET].cast("I"), block[HASH_OFFSET:].cast("H"))

    def insert(self, first_index: int, pgnos: Sequence[int]) -> None:
        """Append frames at `first_index` and on; see `hash_insert`."""
        hash_insert(self.pgnos, self.slots, first_index, pgnos)

    def clean(self, keep: int) -> None:
        """Forget all frames but the first `keep`: what a writer that died inside a transaction left."""
        slots = np.frombuffer(self.slots, np.uint16)
        slots[slots > keep] = 0
        np.frombuffer(self.pgnos, np.uint32)[keep:] = 0

    def find(self, pgno: int, keep: int) -> int:
        """Index + 1 of the newest of the first `keep` frames that is page `pgno`, or 0: a reader's lookup. Corrupt for
        a table without a free slot, which a reader would search for ever."""
        first = (pgno * _HASH_PRIME) % HASH_SLOTS
        keep = min(keep, len(self.pgnos))
        found = 0
        for slot in chain(range(first, HASH_SLOTS), range(first)):
            entry = self.slots[slot]
            if not entry:
                return found
            if entry <= keep and self.pgnos[entry - 1] == pgno:
                found = entry
        raise Corrupt("the wal-index: a hash table without a free slot")

    def release(self) -> None:
        """Give the mapping back, so that it can be closed."""
        self.slots.release()
        self.pgnos.release()


def hash_insert(pgnos_block: memoryview, slots: memoryview, first_idx: int, pgnos: Sequence[int]) -> None:
    """Append the page numbers `pgnos` at index `first_idx` (from 0) of one block, and enter them into its hash table.

    As in SQLite, the first entry of a block clears it: nobody can be reading a block that no header has reached, but
    there may be leftovers of the WAL before this one. What is left over *inside* a block must be cleaned before.
    """
    if first_idx == 0:
        pgnos_block[:] = array("I", bytes(pgnos_block.nbytes))
        slots[:] = array("H", bytes(slots.nbytes))
    # The page number first: a reader that finds the slot must find it there.
    pgnos_block[first_idx : first_idx + len(pgnos)] = array("I", pgnos)
    mask = HASH_SLOTS - 1
    for entry, pgno in enumerate(pgnos, first_idx + 1):
        slot = (pgno * _HASH_PRIME) & mask
        probes = 0
        while slots[slot]:
            slot = (slot + 1) & mask
            probes += 1
            if probes == _PROBES:
                # A page written in every commit makes a run of thousands.
                slot = _next_free(slots, slot)
                break
        slots[slot] = entry


def _next_free(slots: memoryview, slot: int) -> int:
    """The first free slot from `slot` on; half of them are free, so there is one."""
    free = np.frombuffer(slots, np.uint16) == 0
    ahead = int(free[slot:].argmax())
    return slot + ahead if free[slot + ahead] else int(free.argmax())

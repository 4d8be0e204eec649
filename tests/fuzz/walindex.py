"""The wal-index: headers and checkpoint information, and the hash table of a block that somebody filled as he likes."""

from __future__ import annotations

import struct

from fuzz.wal import files
from walcast.wal import NATIVE_BIG_ENDIAN, checksum
from walcast.walindex import (
    BLOCK_SIZE,
    CKPT_INFO_OFFSET,
    FRAMES_FIRST_BLOCK,
    FRAMES_PER_BLOCK,
    HEADER_SIZE,
    INDEX_HEADER_SIZE,
    CheckpointInfo,
    HashBlock,
    IndexHeader,
)


def seeds() -> list[bytes]:
    found = [bytes([kind]) + files(size)[2][: INDEX_HEADER_SIZE + 64] for size in (512, 1024) for kind in (0, 1)]
    full = struct.pack("=H", 1) * 200
    return [*found, b"\2" + files(512)[2][:2000], b"\2" + full, b"\3" + full]


def target(data: bytes) -> None:
    kind, data = data[:1], data[1:]
    if kind in (b"\2", b"\3"):
        _block(data, first=kind == b"\2")
        return
    data = data.ljust(INDEX_HEADER_SIZE, b"\0")
    if kind == b"\1":
        head = data[: HEADER_SIZE - 8]
        head += struct.pack("=2I", *checksum(head, (0, 0), NATIVE_BIG_ENDIAN))
        data = head * 2 + data[CKPT_INFO_OFFSET:]
    header = IndexHeader.decode(data)
    CheckpointInfo.decode(data)
    if header is not None:
        header.encode()


def _block(data: bytes, *, first: bool) -> None:
    whole = bytearray((data * (BLOCK_SIZE // max(1, len(data)) + 1))[:BLOCK_SIZE].ljust(BLOCK_SIZE, b"\0"))
    block = HashBlock.of(memoryview(whole), first)
    keep = FRAMES_FIRST_BLOCK if first else FRAMES_PER_BLOCK
    try:
        for pgno in (0, 1, 0xFFFFFFFF, int.from_bytes(data[:4], "little")):
            assert 0 <= block.find(pgno, keep) <= keep
        block.clean(len(data) % keep)
        block.insert(0, [1, 2, 3, 0xFFFFFFFF])
        assert block.find(3, keep) == 3
    finally:
        block.release()

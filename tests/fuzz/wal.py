"""The `-wal` file: as SQLite left it, mutated; for some inputs the checksums are made right again."""

from __future__ import annotations

import sqlite3
import struct
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path

from walcast.wal import FRAME_HEADER_SIZE, WAL_HEADER_SIZE, WalHeader, checksum, frame_offset, valid_frames

SHORT = 1500


@cache
def files(page_size: int) -> tuple[bytes, bytes, bytes]:
    """A database, its `-wal` and its `-shm`, as they are while it is open."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as one:
            one.execute(f"PRAGMA page_size={page_size}")
            one.execute("PRAGMA journal_mode=WAL")
            one.execute("PRAGMA wal_autocheckpoint=0")
            one.execute("CREATE TABLE t (a, b)")
            for i in range(5):
                one.execute("INSERT INTO t VALUES (?, ?)", (i, "x" * 100 * i))
            one.execute("UPDATE t SET b = a")
            read = (path, Path(f"{path}-wal"), Path(f"{path}-shm"))
            database, wal, shm = (file.read_bytes() for file in read)
    return database, wal, shm


def forged(data: bytes) -> bytes:
    """With right checksums, as far as there are whole frames."""
    header = WalHeader.decode(data)
    if header is None:
        return data
    header = WalHeader.new(header.page_size, header.salt, header.checkpoint_seq, big_endian=header.big_endian)
    out, seed, size = bytearray(header.encode()), header.cksum, FRAME_HEADER_SIZE + header.page_size
    for at in range(WAL_HEADER_SIZE, len(data) - size + 1, size):
        head, page = data[at : at + 8], data[at + FRAME_HEADER_SIZE : at + size]
        seed = checksum(page, checksum(head, seed, header.big_endian), header.big_endian)
        out += head + struct.pack(">4I", *header.salt, *seed) + page
    return bytes(out)


def seeds() -> list[bytes]:
    return [bytes([kind]) + files(size)[1] for size in (512, 1024) for kind in (0, 1)]


def target(data: bytes) -> None:
    data = forged(data[1:]) if data[:1] == b"\1" else data[1:]
    header = WalHeader.decode(data)
    if header is None:
        return
    assert WalHeader.decode(header.encode()) == header
    count = valid_frames(data[WAL_HEADER_SIZE:], header)
    assert frame_offset(count + 1, header.page_size) <= len(data)

"""The position journal of a replica: which database checksum is which position.

    record, 40 bytes, big-endian: term u32, flags u32 (0), txid u64, checksum u64, timestamp u64 (milliseconds),
                                  crc-32 of all that u32, zero u32

A record is appended before its commit becomes visible, so whatever a replica's file holds after a crash, its checksum
is here. The journal says what a state is called and never which state the file is in: it can lag behind or run ahead
of the file, be cut short or be lost, and the worst that follows is that a position is not known and pages are
compared.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from pathlib import Path
from typing import NamedTuple

from walcast.position import Position

RECORD_SIZE = 40
COMPACT_BYTES = 1 << 20
KEEP_RECORDS = 8192

_BODY = struct.Struct(">IIQQQ")
_CRC = struct.Struct(">II")


class _Record(NamedTuple):
    term: int
    position: Position
    data: bytes


def _encode(term: int, position: Position, timestamp_ms: int) -> bytes:
    body = _BODY.pack(term, 0, position.txid, position.checksum, timestamp_ms)
    return body + _CRC.pack(zlib.crc32(body), 0)


def _decode(data: bytes) -> list[_Record]:
    """What is whole, oldest first; torn and damaged records are left out."""
    records = []
    for at in range(0, len(data) - RECORD_SIZE + 1, RECORD_SIZE):
        record = data[at : at + RECORD_SIZE]
        crc, zero = _CRC.unpack_from(record, _BODY.size)
        if zero == 0 and crc == zlib.crc32(record[: _BODY.size]):
            term, _, txid, checksum, _ = _BODY.unpack_from(record)
            records.append(_Record(term, Position(txid, checksum), record))
    return records


class Journal:
    """The file `<dir>/positions`. One appends; `sync` may be called from another thread."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "positions"
        self._lock = threading.Lock()  # a sync against the exchange of the descriptor
        self._fd = self._open()
        self._records = _decode(self._path.read_bytes())
        # A torn tail would shift all records that follow it.
        self._size = os.fstat(self._fd).st_size // RECORD_SIZE * RECORD_SIZE
        os.ftruncate(self._fd, self._size)

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def append(self, term: int, position: Position, timestamp_ms: int) -> None:
        """Not synced: after a power loss the tail may be missing, and so may the commits it names."""
        if self._size >= COMPACT_BYTES:
            self._compact()
        data = _encode(term, position, timestamp_ms)
        # At a place of its own and not at the end: a short write is overwritten by the next.
        if os.pwrite(self._fd, data, self._size) != RECORD_SIZE:
            raise OSError(f"{self._path}: short write")
        self._size += RECORD_SIZE
        self._records.append(_Record(term, position, data))

    def find(self, checksum: int) -> tuple[int, Position] | None:
        """Term and position of the newest record with this database checksum."""
        for record in reversed(self._records):
            if record.position.checksum == checksum:
                return record.term, record.position
        return None

    def last(self) -> tuple[int, Position] | None:
        """Term and position of the newest record."""
        return self._records[-1][:2] if self._records else None

    def sync(self) -> None:
        """Make durable what was appended."""
        with self._lock:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """What was appended stays; nothing can be appended any more."""
        with self._lock:
            os.close(self._fd)

    def _compact(self) -> None:
        """Keep the newest records, in a new file that takes the old one's name once it is durable."""
        records = self._records[-KEEP_RECORDS:]
        temporary = self._path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(b"".join(record.data for record in records))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        with self._lock:
            os.close(self._fd)
            self._fd = self._open()
        self._records = records
        self._size = len(records) * RECORD_SIZE

"""The position journal of a replica: which database checksum is which position.

    record, 40 bytes, big-endian: term u32, flags u32 (0), txid u64, checksum u64, timestamp u64 (milliseconds),
                                  crc-32 of all that u32, zero u32

A record is appended before its commit becomes visible, so whatever a replica's file holds after a crash of the process,
its checksum is here. After a power failure the tail may be missing, but not what was synced: `Applier.sync` syncs the
journal before the WAL, so a state that was confirmed as durable has its name.

The journal says what a state is called and never which state the file is in: it can lag behind the file or run ahead of
it, be cut short or be lost. The worst that follows is that a state has no name here; then the primary is asked for it,
and where that does not know it either, pages are compared.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from pathlib import Path
from typing import NamedTuple

from walcast.filesystem import fsync_directory, make_directory, pwrite_all, write_durably
from walcast.permissions import open_or_create
from walcast.position import Position
from walcast.statedir import open_state_file

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


def find_position(directory: Path, checksum: int) -> tuple[int, Position] | None:
    """As `Journal.find`, for whoever only reads: nothing is created."""
    try:
        with open_state_file(directory, "positions") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    found = (record for record in reversed(_decode(data)) if record.position.checksum == checksum)
    return next(((record.term, record.position) for record in found), None)


class Journal:
    """The file `<dir>/positions`. One thread appends; `sync` may be called from another."""

    def __init__(self, directory: Path) -> None:
        make_directory(directory, parents=True)
        self._path = directory / "positions"
        self._syncing = threading.Lock()  # a sync against the exchange of the descriptor; taken before the other
        self._changing = threading.Lock()  # an append against a rewrite by the thread that syncs
        self._doubtful = False  # a sync failed: what it was to write may be lost, though a later one succeeds
        known = self._path.exists()
        self._fd = self._open()
        if not known:
            fsync_directory(directory)
        self._records = _decode(self._path.read_bytes())
        # A torn tail would shift all records that follow it.
        self._size = os.fstat(self._fd).st_size // RECORD_SIZE * RECORD_SIZE
        os.ftruncate(self._fd, self._size)

    def _open(self) -> int:
        return open_or_create(self._path)

    def append(self, term: int, position: Position, timestamp_ms: int) -> None:
        """Not synced: after a power loss the tail may be missing, and so may the commits it names."""
        if self._size >= COMPACT_BYTES:
            with self._syncing, self._changing:
                self._rewrite()
        data = _encode(term, position, timestamp_ms)
        with self._changing:
            # At a place of its own and not at the end: what a full disk cut off is overwritten by the next.
            pwrite_all(self._fd, data, self._size)
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
        """Make durable what was appended. OSError when it is not: then the next sync writes a new file, because the
        kernel forgets what it could not write and would report another sync of the old one as a success."""
        with self._syncing:
            if self._doubtful:
                with self._changing:
                    self._rewrite()
            try:
                os.fdatasync(self._fd)
            except OSError:
                self._doubtful = True
                raise

    def doubt(self) -> None:
        """An earlier process could not sync it: the next sync writes a new file."""
        self._doubtful = True

    def close(self) -> None:
        """What was appended stays; nothing can be appended any more."""
        with self._syncing:
            os.close(self._fd)

    def _rewrite(self) -> None:
        """Keep the newest records, in a new file that takes the old one's name once it is durable; with both locks."""
        records = self._records[-KEEP_RECORDS:]
        durable = False
        try:
            write_durably(self._path, b"".join(record.data for record in records))
            durable = True
        finally:
            # Also where only the last step failed: an append to the old file would be lost with it.
            if not os.path.samestat(self._path.stat(), os.fstat(self._fd)):
                os.close(self._fd)
                self._fd = self._open()
                self._records = records
                self._size = len(records) * RECORD_SIZE
                self._doubtful = not durable

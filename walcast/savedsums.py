"""The page checksums of a database at one position, in a file: what a primary compares with after it was away.

    magic "WALCASTP" · page size u32 · term u32 · TXID u64 · database checksum u64 · pages u64     big-endian, then the
    page checksums, little-endian u64, page 1 first

The XOR of all must be the database checksum, so a damaged file is found out.

A restore leaves the same behind, with the time of the newest transaction (milliseconds, i64) before it: a primary that
has no log yet goes on from that position, whatever was changed in the database since.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from walcast.checksum import PageChecksums
from walcast.filesystem import write_durably
from walcast.position import Position
from walcast.statedir import open_state_file

NAME = "checksums"
RESTORED = "restored"

_TIME = struct.Struct(">q")
_HEADER = struct.Struct(">8sIIQQQ")
_MAGIC = b"WALCASTP"


def save(directory: Path, checksums: PageChecksums, position: Position, term: int) -> None:
    """Replace the file, atomically and durably."""
    write_durably(directory / NAME, *_encode(checksums, position, term))


def load(directory: Path) -> tuple[PageChecksums, Position, int] | None:
    """None when there is none, or it is not what it claims."""
    try:
        return _decode((directory / NAME).read_bytes())
    except FileNotFoundError:
        return None


def _encode(checksums: PageChecksums, position: Position, term: int) -> Iterable[bytes | memoryview]:
    pages = checksums.pages[: checksums.commit_pages].astype("<u8")
    yield _HEADER.pack(_MAGIC, checksums.page_size, term, position.txid, position.checksum, len(pages))
    yield pages.data


def _decode(data: bytes | memoryview) -> tuple[PageChecksums, Position, int] | None:
    if len(data) < _HEADER.size:
        return None
    magic, page_size, term, txid, checksum, count = _HEADER.unpack_from(data)
    if magic != _MAGIC or len(data) != _HEADER.size + 8 * count:
        return None
    pages = np.frombuffer(data, "<u8", offset=_HEADER.size).astype(np.uint64)
    checksums = PageChecksums(page_size, pages)
    return (checksums, Position(txid, checksum), term) if checksums.database == checksum else None


@dataclass(frozen=True, slots=True)
class RestoredState:
    """Where a restore ended, and the time and the term of its newest transaction."""

    checksums: PageChecksums
    position: Position
    term: int
    timestamp_ms: int


def save_restored(folder: Path, state: RestoredState) -> None:
    """Leave it in the state folder, atomically and durably."""
    time = _TIME.pack(state.timestamp_ms)
    write_durably(folder / RESTORED, time, *_encode(state.checksums, state.position, state.term))


def load_restored(folder: Path) -> RestoredState | None:
    """None when there is none, or it is not what it claims."""
    try:
        with open_state_file(folder, RESTORED) as file:
            data = file.read()
    except FileNotFoundError:
        return None
    found = _decode(memoryview(data)[_TIME.size :]) if len(data) >= _TIME.size else None
    return RestoredState(*found, *_TIME.unpack_from(data)) if found is not None else None


def forget_restored(folder: Path) -> None:
    """It is in the log now, or of another database."""
    (folder / RESTORED).unlink(missing_ok=True)

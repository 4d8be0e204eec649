"""The files of a folder over a database: what this node had, as a database again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from walcast import ltx
from walcast.checksum import PageChecksums, page_checksum
from walcast.errors import ConfigError, Corrupt
from walcast.filesystem import SQLITE_MAGIC, pwrite_all
from walcast.permissions import OWNER_ONLY, create_file, inherit
from walcast.position import Position

READ_BYTES = 1 << 20

_PAGE_SIZE_AT = 16


def rebuild(folder: Path, base: Path, target: Path, *, anyway: bool = False) -> Position:
    """Write `target`, a new file: `base`, a database nobody has open, with the LTX files of `folder` over it.

    The database checksum is compared before the first file and after each, unless `anyway`. Answers the position.
    Raises ConfigError, also when `base` is another state than the one the files apply to, and Corrupt.
    """
    files = sorted(folder.glob("*.ltx"))
    if not files:
        raise ConfigError(f"{folder}: no LTX files; give a folder of APP.db-walcast/discarded/")
    if target.exists():
        raise ConfigError(f"{target}: exists; give the name of a new file")
    wal = Path(f"{base}-wal")
    if wal.exists() and wal.stat().st_size:
        raise ConfigError(f"{base}: has a WAL; run sqlite3 {base} 'PRAGMA wal_checkpoint(TRUNCATE)' first")
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with (
            base.open("rb") as source,
            open(create_file(temporary, os.O_WRONLY), "wb") as copy,  # noqa: PTH123 - a descriptor
        ):
            shutil.copyfileobj(source, copy)
        inherit(temporary, base, OWNER_ONLY)
        position = _lay_over(files, temporary, base, anyway=anyway)
        temporary.rename(target)
    except OSError as error:
        raise ConfigError(f"{error.filename or target}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return position


def _lay_over(files: list[Path], temporary: Path, base: Path, *, anyway: bool) -> Position:
    descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        checksums = _scan(descriptor, base)
        position = Position()
        for file in files:
            position = _one(file, descriptor, checksums, base, anyway=anyway)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return position


def _scan(descriptor: int, base: Path) -> PageChecksums:
    head = os.pread(descriptor, 100, 0)
    page_size = int.from_bytes(head[_PAGE_SIZE_AT : _PAGE_SIZE_AT + 2], "big")
    page_size = 1 << 16 if page_size == 1 else page_size
    if not head.startswith(SQLITE_MAGIC) or page_size not in [1 << n for n in range(9, 17)]:
        raise ConfigError(f"{base}: not a SQLite database")
    pages = os.fstat(descriptor).st_size // page_size
    step = max(1, READ_BYTES // page_size)
    pieces = ((n, os.pread(descriptor, step * page_size, (n - 1) * page_size)) for n in range(1, pages + 1, step))
    return PageChecksums.scan(page_size, pieces)


def _one(file: Path, descriptor: int, checksums: PageChecksums, base: Path, *, anyway: bool) -> Position:
    """Write the pages of one file and cut the database to its size."""
    decoder = ltx.Decoder()
    header: ltx.Header | None = None
    trailer: ltx.Trailer | None = None
    pgnos: list[int] = []
    sums: list[int] = []
    with file.open("rb") as source:
        while data := source.read(READ_BYTES):
            decoder.feed(data)
            while (event := decoder.next_event()) is not None:
                if isinstance(event, ltx.Page):
                    pwrite_all(descriptor, event.data, (event.pgno - 1) * len(event.data))
                    pgnos.append(event.pgno)
                    sums.append(page_checksum(event.pgno, event.data))
                elif isinstance(event, ltx.Header):
                    header = event
                    _check_base(header, file, checksums, base, anyway=anyway)
                else:
                    trailer = event
    decoder.close()
    assert header is not None  # `close` says so
    assert trailer is not None
    os.ftruncate(descriptor, header.commit_pages * header.page_size)
    checksums.apply(np.array(pgnos, np.uint32), np.array(sums, np.uint64), header.commit_pages)
    if checksums.database != trailer.post_checksum and not anyway:
        raise Corrupt(f"{file}: leads to database checksum {checksums.database:016x}, not {trailer.post_checksum:016x}")
    return Position(header.max_txid, checksums.database)


def _check_base(header: ltx.Header, file: Path, checksums: PageChecksums, base: Path, *, anyway: bool) -> None:
    if header.page_size != checksums.page_size:
        raise ConfigError(f"{base}: its page size is {checksums.page_size}, {file.name} has {header.page_size}")
    if header.pre_checksum != checksums.database and not anyway:
        raise ConfigError(
            f"{base}: its database checksum is {checksums.database:016x}, {file.name} applies to one with "
            f"{header.pre_checksum:016x}; see summary.txt for the state to restore"
        )

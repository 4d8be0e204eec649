"""An exact snapshot that never blocks a writer: copy pages as they come, then replay the log over them.

The scratch file is built like a new follower's copy: pages read in short transactions from a position on, then every
entry since. Its checksum proves it before anything is uploaded. Disk: the database once, and once compressed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from primary.database import Database
from primary.segment import Entry
from walcast import ltx
from walcast.checksum import PageChecksums, lock_pgno, page_checksum
from walcast.errors import Corrupt, Unavailable
from walcast.filesystem import pwrite_all
from walcast.position import CHECKSUM_FLAG, Position

PIECE_BYTES = 1 << 20
BARRIER_TIMEOUT_S = 60.0


@contextmanager
def snapshot(database: Database, directory: Path) -> Iterator[tuple[ltx.Header, BinaryIO]]:
    """The database at some position at or after now, as an LTX snapshot in Litestream's form, to be read once."""
    scratch, encoded = directory / "snapshot.db.tmp", directory / "snapshot.ltx.tmp"
    try:
        with database.log.pin(), scratch.open("w+b") as file:
            position, commit_pages = _build(database, file.fileno())
            header = ltx.Header(
                page_size=database.page_size,
                commit_pages=commit_pages,
                min_txid=1,
                max_txid=position.txid,
                timestamp_ms=_timestamp_ms(database),
                flags=ltx.FLAG_NO_CHECKSUM,
                database_checksum=position.checksum,
                term=database.log.term,
            )
            with encoded.open("w+b") as out:
                _encode(header, file.fileno(), out)
                scratch.unlink()
                out.seek(0)
                yield header, out
    finally:
        scratch.unlink(missing_ok=True)
        encoded.unlink(missing_ok=True)


def _timestamp_ms(database: Database) -> int:
    last = database.log.last
    if last is not None and (header := last.header()).max_txid == database.log.position.txid:
        return header.timestamp_ms
    return int(database.path.stat().st_mtime * 1000)


def _build(database: Database, fd: int) -> tuple[Position, int]:
    start = database.loop.barrier().result(BARRIER_TIMEOUT_S)
    checksums = PageChecksums(database.page_size)
    _copy(database, fd, start.commit_pages, checksums)
    end = database.loop.barrier().result(BARRIER_TIMEOUT_S)
    position, commit_pages = start.position, start.commit_pages
    while position.txid < end.position.txid:
        entry = database.log.after(position.txid)
        if entry is None:
            raise Unavailable("the log moved on while a snapshot was being made")
        commit_pages = _replay(entry, fd, checksums)
        position = entry.position
    if checksums.database != position.checksum:
        database.loop.recheck("a snapshot did not have the log's checksum")
        raise Corrupt(f"the snapshot's checksum is {checksums.database:016x}, the log says {position}")
    os.ftruncate(fd, commit_pages * database.page_size)
    return position, commit_pages


def _copy(database: Database, fd: int, commit_pages: int, checksums: PageChecksums) -> None:
    """Pages 1 to `commit_pages`, as they are when each piece is read; fewer when the database shrinks meanwhile."""
    size = database.page_size
    step = max(1, PIECE_BYTES // size)
    with database.reading() as read:
        for first in range(1, commit_pages + 1, step):
            pages = read(first, min(step, commit_pages + 1 - first))
            pwrite_all(fd, pages, (first - 1) * size)
            _note(checksums, first, pages)


def _note(checksums: PageChecksums, first: int, pages: memoryview) -> None:
    size, skip = checksums.page_size, lock_pgno(checksums.page_size)
    pgnos = [pgno for pgno in range(first, first + len(pages) // size) if pgno != skip]
    sums = [page_checksum(pgno, pages[(pgno - first) * size : (pgno - first + 1) * size]) for pgno in pgnos]
    end = max(checksums.commit_pages, first - 1 + len(pages) // size)
    checksums.apply(np.array(pgnos, np.uint32), np.array(sums, np.uint64), end)


def _replay(entry: Entry, fd: int, checksums: PageChecksums) -> int:
    size = checksums.page_size
    pgnos: list[int] = []
    sums: list[int] = []
    for page in entry.pages():
        pwrite_all(fd, page.data, (page.pgno - 1) * size)
        pgnos.append(page.pgno)
        sums.append(page_checksum(page.pgno, page.data))
    commit_pages = entry.header().commit_pages
    checksums.apply(np.array(pgnos, np.uint32), np.array(sums, np.uint64), commit_pages)
    return commit_pages


def _encode(header: ltx.Header, fd: int, out: BinaryIO) -> None:
    size, skip = header.page_size, lock_pgno(header.page_size)
    encoder = ltx.Encoder(header, out.write)
    step = max(1, PIECE_BYTES // size)
    checksum = 0
    for first in range(1, header.commit_pages + 1, step):
        pages = memoryview(os.pread(fd, min(step, header.commit_pages + 1 - first) * size, (first - 1) * size))
        for i in range(len(pages) // size):
            if first + i != skip:
                page = pages[i * size : (i + 1) * size]
                checksum ^= page_checksum(first + i, page)
                encoder.add(first + i, page)
    encoder.finish()
    if checksum | CHECKSUM_FLAG != header.database_checksum:
        raise Corrupt("the snapshot's file is not what was written to it")

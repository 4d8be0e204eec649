"""An exact copy that never blocks a writer, as one LTX file: all pages, or those that changed since a position.

The scratch file is built like a new follower's copy: pages read in short transactions from a position on, then every
entry of the log since. Its checksum proves it before anything is encoded. Disk: the database once, and the file once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from walcast import ltx
from walcast.checksum import PageChecksums, lock_pgno, page_checksum
from walcast.errors import Corrupt, DiskFull, Unavailable
from walcast.filesystem import pwrite_all
from walcast.position import Position
from walcast.shortage import free_bytes
from walcast_primary.archiving.compaction import Written
from walcast_primary.database import Database
from walcast_primary.transaction_log.segment import Entry

PIECE_BYTES = 1 << 20
BARRIER_TIMEOUT_S = 60.0
SPARE_BYTES = 64 << 20  # that are left to the app, at most
SPARE_LEAST_BYTES = 1 << 20
TICK_S = 0.5

Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Copy:
    """The scratch file: the database at `position`, proven."""

    fd: int
    position: Position
    timestamp_ms: int
    checksums: PageChecksums


@contextmanager
def snapshot(database: Database, tick: Tick = lambda: None) -> Iterator[tuple[Written, BinaryIO]]:
    """The database at some position at or after now, as an LTX snapshot in Litestream's form, to be read once."""
    with _temporary(database) as out:
        with _alone(database, tick), _temporary(database) as scratch:
            with database.log.pin():
                copy = _build(database, scratch.fileno(), tick)
            written = _encode(_header(database, copy, 1), copy, None, out, tick)
        out.seek(0)
        yield written, out


@contextmanager
def difference(
    database: Database,
    after_txid: int,
    changed: Callable[[int], NDArray[np.uint32] | None],
    tick: Tick = lambda: None,
) -> Iterator[tuple[Written, BinaryIO]]:
    """From `after_txid` to some position at or after now: the pages that `changed(max TXID)` answers."""
    with _temporary(database) as out:
        with _alone(database, tick), _temporary(database) as scratch:
            with database.log.pin():
                copy = _build(database, scratch.fileno(), tick)
                pgnos = changed(copy.position.txid)
            if pgnos is None:
                raise Unavailable("the log moved on while a difference was being made")
            pgnos = pgnos if len(pgnos) else np.array([1], np.uint32)  # a file has a page
            written = _encode(_header(database, copy, after_txid + 1), copy, pgnos, out, tick)
        out.seek(0)
        yield written, out


@contextmanager
def _alone(database: Database, tick: Tick) -> Iterator[None]:
    """One at a time, for the disk's sake. `tick` ends the waiting, too."""
    while not database.snapshotting.acquire(timeout=TICK_S):
        tick()
    try:
        yield
    finally:
        database.snapshotting.release()


def _temporary(database: Database) -> BinaryIO:
    """A file without a name beside the database: whatever ends the process, it is gone."""
    return cast(BinaryIO, tempfile.TemporaryFile(dir=database.state.path))


def _header(database: Database, copy: _Copy, min_txid: int) -> ltx.Header:
    return ltx.Header(
        page_size=database.page_size,
        commit_pages=copy.checksums.commit_pages,
        min_txid=min_txid,
        max_txid=copy.position.txid,
        timestamp_ms=copy.timestamp_ms,
        flags=ltx.FLAG_NO_CHECKSUM,
        database_checksum=copy.position.checksum,
        term=database.log.term,
    )


def _build(database: Database, fd: int, tick: Tick) -> _Copy:
    start = database.loop.barrier().result(BARRIER_TIMEOUT_S)
    _check_space(database, start.commit_pages)
    timestamp_ms = _timestamp_ms(database, start.position)
    checksums = PageChecksums(database.page_size)
    _copy(database, fd, start.commit_pages, checksums, tick)
    end = database.loop.barrier().result(BARRIER_TIMEOUT_S)
    position, commit_pages = start.position, start.commit_pages
    while position.txid < end.position.txid:
        tick()
        entry = database.log.after(position.txid)
        if entry is None:
            raise Unavailable("the log moved on while a snapshot was being made")
        commit_pages = _replay(entry, fd, checksums)
        position, timestamp_ms = entry.position, entry.header().timestamp_ms
    if checksums.database != position.checksum:
        database.loop.recheck("a snapshot did not have the log's checksum")
        raise Corrupt(f"the snapshot's checksum is {checksums.database:016x}, the log says {position}")
    os.ftruncate(fd, commit_pages * database.page_size)
    return _Copy(fd, position, timestamp_ms, checksums)


def with_spare(needed_bytes: int) -> int:
    """So much must be free for work that needs `needed_bytes`: what is left to the app is in proportion to it."""
    return needed_bytes + max(SPARE_LEAST_BYTES, min(SPARE_BYTES, needed_bytes))


def _check_space(database: Database, commit_pages: int) -> None:
    """The app's disk is not ours to fill."""
    need = with_spare(2 * commit_pages * database.page_size)
    free = free_bytes(database.state.path, for_anybody=True)
    if free is not None and free < need:
        raise DiskFull(database.state.path, "no room for a snapshot", free_bytes=free, needed_bytes=need)


def _timestamp_ms(database: Database, position: Position) -> int:
    entry = database.log.ending_at(position.txid)
    if entry is not None:
        return entry.header().timestamp_ms
    files = (database.path, Path(f"{database.path}-wal"))
    return int(max(file.stat().st_mtime for file in files if file.exists()) * 1000)


def _copy(database: Database, fd: int, commit_pages: int, checksums: PageChecksums, tick: Tick) -> None:
    """Pages 1 to `commit_pages`, as they are when each piece is read; fewer when the database shrinks meanwhile."""
    size = database.page_size
    step = max(1, PIECE_BYTES // size)
    with database.reading() as read:
        for first in range(1, commit_pages + 1, step):
            tick()
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


def _encode(header: ltx.Header, copy: _Copy, pgnos: NDArray[np.uint32] | None, out: BinaryIO, tick: Tick) -> Written:
    size = header.page_size
    encoder = ltx.Encoder(header, out.write)
    for first, count in _runs(header, pgnos):
        tick()
        pages = memoryview(os.pread(copy.fd, count * size, (first - 1) * size))
        for pgno in range(first, first + len(pages) // size):
            page = pages[(pgno - first) * size : (pgno - first + 1) * size]
            if page_checksum(pgno, page) != copy.checksums.get(pgno):
                raise Corrupt(f"page {pgno} of the snapshot's scratch file is not what was written to it")
            encoder.add(pgno, page)
    return Written(header, encoder.finish())


def _runs(header: ltx.Header, pgnos: NDArray[np.uint32] | None) -> Iterable[tuple[int, int]]:
    """The pages to write, as (first, count) of neighbours, a piece each at most; never the lock page."""
    step, lock = max(1, PIECE_BYTES // header.page_size), lock_pgno(header.page_size)
    if pgnos is None:
        pgnos = np.arange(1, header.commit_pages + 1, dtype=np.uint32)
    pgnos = pgnos[(pgnos >= 1) & (pgnos <= header.commit_pages) & (pgnos != lock)]
    breaks = np.flatnonzero(np.diff(pgnos) != 1) + 1
    bounds = [0, *breaks.tolist(), len(pgnos)]
    for start, end in pairwise(bounds):
        for at in range(start, end, step):
            yield int(pgnos[at]), min(step, end - at)

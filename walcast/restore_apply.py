"""The files of a restore plan → a database file: download in parallel, decode in order, write, prove.

The files are one sequence of bytes cut into pieces of some MiB. Threads fetch the pieces a bounded way ahead, the
calling thread decodes them in order (a later file overwrites pages of an earlier one), one thread writes the pages.
Memory is the window of pieces, some batches of pages, and 8 bytes a page of checksums.

Every file is proven by its own checksum, and the database by its checksum wherever a file carries one. A database
checksum that two files agree about also proves that they are of one database.

A restore may take longer than an archive keeps its small files: when one is gone as its turn comes, the caller is
asked for other files that go on from the TXID reached.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from walcast.archive import ArchiveFile
from walcast.checksum import PageChecksums
from walcast.damage import Contradiction, DamagedFile, check_header
from walcast.download import downloading
from walcast.errors import Corrupt
from walcast.ltx import Header, Trailer
from walcast.position import Position
from walcast.restore_pages import Batch, FilePages
from walcast.store.base import ObjectMissing, Store

__all__ = ["DamagedFile", "GoOn", "Progress", "Restored", "restore_to"]

Progress = Callable[[int, int], None]
GoOn = Callable[[int, ObjectMissing], Sequence[ArchiveFile]]

_WRITES_AHEAD = 8
_NO_PGNOS = np.zeros(0, np.uint32)
_NO_SUMS = np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a plan made: the position's checksum is computed from the pages written.

    `applied` are the files, in order. `agreeing` is how many of them said the database checksum that the pages had
    then; `unconfirmed` are those that none but themselves say to be of this database: all where files carry no database
    checksum, as Litestream's, and a snapshot alone. What was there before a file that holds all pages does not count.
    """

    position: Position
    term: int
    page_size: int
    commit_pages: int
    bytes_downloaded: int
    files: int
    checksums: PageChecksums
    timestamp_ms: int
    applied: tuple[ArchiveFile, ...] = ()
    agreeing: int = 0
    unconfirmed: tuple[ArchiveFile, ...] = ()


def restore_to(
    store: Store,
    plan: Sequence[ArchiveFile],
    target: Path,
    *,
    parallelism: int = 4,
    progress: Progress | None = None,
    go_on: GoOn | None = None,
) -> Restored:
    """Write the database of a plan to `target`, a temporary path, and fsync it.

    `go_on(txid, error)`, if given, answers the files to go on with from TXID `txid` when the next one of the plan is
    gone, or raises.

    A target that an error leaves behind is not a database; the caller removes it. Raises DamagedFile and ObjectMissing
    that name the file, and whatever else the store raises.
    """
    if not plan or not plan[0].is_snapshot:
        raise ValueError("a restore begins with a file that holds the whole database")
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        with _Writer(descriptor) as writer:
            while plan:
                try:
                    _apply(store, plan, writer, parallelism, progress)
                    break
                except _Gone as gone:
                    if go_on is None or not writer.applied:
                        raise gone.error from None
                    plan = go_on(writer.applied[-1].max_txid, gone.error)
            restored = writer.restored()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return restored


class _Gone(Exception):
    """The next file is not there, and nothing of it was applied."""

    def __init__(self, error: ObjectMissing) -> None:
        self.error = error


def _apply(
    store: Store, plan: Sequence[ArchiveFile], writer: _Writer, parallelism: int, progress: Progress | None
) -> None:
    """Decode the plan's files in order into `writer`, which hears of each once it is proven."""
    done = sum(file.size for file in writer.applied)
    total = done + sum(file.size for file in plan)
    pages = FilePages(writer.write)
    with downloading(store, plan, parallelism) as pieces:
        while (piece := _next(pieces, pages)) is not None:
            file, data, is_last = piece
            writer.file = file
            try:
                pages.feed(data)
                if pages.header is not None:
                    check_header(pages.header, file)
                done += len(data)
                if progress is not None:
                    progress(done, total)
                if not is_last:
                    continue
                trailer = pages.finish()
                assert pages.header is not None  # `finish` says so
                writer.file_done(pages.header, trailer, pages.count)
            except DamagedFile:
                raise
            except Corrupt as error:
                raise DamagedFile(file, str(error)) from error
            pages = FilePages(writer.write)


def _next(
    pieces: Iterator[tuple[ArchiveFile, bytes, bool]], pages: FilePages
) -> tuple[ArchiveFile, bytes, bool] | None:
    """The next piece; _Gone for one that is missing where a file begins."""
    try:
        return next(pieces, None)
    except ObjectMissing as error:
        if pages.fed_bytes:
            raise
        raise _Gone(error) from error


class _Writer:
    """Pages → the target, one thread writing behind; keeps the page checksums and compares them with the files'."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="walcast-write")
        self._writes: deque[Future[None]] = deque()
        self._sums: PageChecksums | None = None
        self._pages = 0
        self._last: Header | None = None
        self._agreeing = 0
        self._unconfirmed: list[ArchiveFile] = []
        self.applied: list[ArchiveFile] = []
        self.file: ArchiveFile | None = None  # whose pages come now

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def write(self, header: Header, batch: Batch) -> None:
        """Queue a batch; waits while too many are queued."""
        sums = self._of_file(header)
        sums.apply(batch.pgnos, batch.sums, header.commit_pages)
        while len(self._writes) >= _WRITES_AHEAD:
            self._writes.popleft().result()
        self._writes.append(self._pool.submit(_write_pages, self._descriptor, header.page_size, batch))

    def file_done(self, header: Header, trailer: Trailer, pages: int) -> None:
        """A proven file of this many pages is all written: the database must have the checksum that the file says."""
        sums = self._of_file(header)
        whole = pages >= header.commit_pages - 1
        if whole:
            self._agreeing = 0
            self._unconfirmed.clear()
        expected = header.database_checksum if header.no_checksum else trailer.post_checksum
        if expected and expected != sums.database:
            raise self._contradiction(
                f"database checksum {expected:016x}, but the pages restored have {sums.database:016x}"
            )
        assert self.file is not None
        self._unconfirmed.append(self.file)
        self.applied.append(self.file)
        if expected:
            self._agreeing += 1
            if not whole:
                self._unconfirmed.clear()  # the checksum is right also for pages that others brought
        self._last = header

    def restored(self) -> Restored:
        """Wait for the last page; then the facts."""
        self._drain()
        last, sums = self._last, self._sums
        assert last is not None  # a plan is not empty
        assert sums is not None
        return Restored(
            position=Position(last.max_txid, sums.database),
            term=last.term,
            page_size=last.page_size,
            commit_pages=last.commit_pages,
            bytes_downloaded=sum(file.size for file in self.applied),
            files=len(self.applied),
            checksums=sums,
            timestamp_ms=last.timestamp_ms,
            applied=tuple(self.applied),
            agreeing=self._agreeing,
            unconfirmed=tuple(self._unconfirmed),
        )

    def _contradiction(self, what: str) -> Contradiction:
        assert self.file is not None
        return Contradiction(self.file, what, (self.file, *reversed(self._unconfirmed)))

    def _of_file(self, header: Header) -> PageChecksums:
        """Resize the target for a file: what a smaller commit cut off must not come back as it was."""
        if self._sums is None:
            self._sums = PageChecksums(header.page_size)
        if header.page_size != self._sums.page_size:
            raise self._contradiction(f"page size {header.page_size} after {self._sums.page_size}")
        if header.commit_pages != self._pages:
            self._drain()
            os.ftruncate(self._descriptor, header.commit_pages * header.page_size)
            self._pages = header.commit_pages
            self._sums.apply(_NO_PGNOS, _NO_SUMS, header.commit_pages)
        return self._sums

    def _drain(self) -> None:
        while self._writes:
            self._writes.popleft().result()


def _write_pages(descriptor: int, page_size: int, batch: Batch) -> None:
    """Each run of neighbouring pages with one call."""
    breaks = np.flatnonzero(np.diff(batch.pgnos) != 1) + 1
    first = 0
    for end in [*breaks.tolist(), len(batch.pages)]:
        run = batch.pages[first:end]
        offset = (int(batch.pgnos[first]) - 1) * page_size
        written = os.pwritev(descriptor, run, offset)
        if written != page_size * len(run):
            rest = b"".join(run)[written:]
            while rest:
                count = os.pwrite(descriptor, rest, offset + written)
                rest, written = rest[count:], written + count
        first = end

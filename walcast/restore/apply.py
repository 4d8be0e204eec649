"""The files of a restore plan → a database file: download in parallel, decode in order, write, prove.

The files are one sequence of bytes cut into pieces of some MiB. Threads fetch the pieces a bounded way ahead, the
calling thread decodes them in order (a later file overwrites pages of an earlier one), one thread writes the pages.
Memory is the window of pieces, some batches of pages, and 8 bytes a page of checksums. A large plan is
divided among processes where that can be (`restore/division.py`).

Every file is proven by its own checksum, and the database by its checksum wherever a file carries one. A database
checksum that two files agree about also proves that they are of one database.

A restore may take longer than an archive keeps its small files: when one is gone as its turn comes, the caller is
asked for other files that go on from the TXID reached.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from walcast.archive.damage import DamagedFile, check_header
from walcast.archive.files import ArchiveFile
from walcast.errors import Corrupt
from walcast.permissions import open_or_create
from walcast.restore.division import Division, NotDivided, divide, is_worth_it
from walcast.restore.download import downloading
from walcast.restore.pages import FilePages
from walcast.restore.workers import Workers
from walcast.restore.writer import Restored, Writer
from walcast.store.base import ObjectMissing, Store

__all__ = ["DamagedFile", "GoOn", "Progress", "Restored", "restore_to"]

Progress = Callable[[int, int], None]
GoOn = Callable[[int, ObjectMissing], Sequence[ArchiveFile]]

log = logging.getLogger("walcast.restore")


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
    descriptor = open_or_create(target)
    try:
        if os.fstat(descriptor).st_size:  # not always: ext4 writes out a file that was truncated when it is closed
            os.ftruncate(descriptor, 0)
        with Writer(descriptor, target) as writer:
            _apply_all(_Source(store, parallelism, progress), plan, target, writer, go_on)
            restored = writer.restored()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return restored


@dataclass(frozen=True, slots=True)
class _Source:
    """Where files come from, and how."""

    store: Store
    parallelism: int
    progress: Progress | None

    def counter(self, plan: Sequence[ArchiveFile], writer: Writer) -> Callable[[int], None]:
        """What to call with bytes as they come, for the progress of a plan after what was applied already."""
        done = sum(file.size for file in writer.applied)
        total = done + sum(file.size for file in plan)

        def fetched(size: int) -> None:
            nonlocal done
            done += size
            if self.progress is not None:
                self.progress(done, total)

        return fetched


class _Gone(Exception):
    """The next file is not there, and nothing of it was applied."""

    def __init__(self, error: ObjectMissing) -> None:
        self.error = error


def _apply_all(source: _Source, plan: Sequence[ArchiveFile], target: Path, writer: Writer, go_on: GoOn | None) -> None:
    """The plan, and where files are gone meanwhile other ways on from there."""
    alone = not is_worth_it(plan, source.parallelism)
    while plan:
        before = len(writer.applied)
        try:
            (_apply if alone else _apply_divided)(source, plan, target, writer)
            return
        except NotDivided as error:
            log.info("going on in one process", extra={"url": source.store.url, "error": str(error)})
            plan = plan[len(writer.applied) - before :]
        except _Gone as gone:
            if go_on is None or not writer.applied:
                raise gone.error from None
            plan = go_on(writer.applied[-1].max_txid, gone.error)
        alone = True


def _apply(source: _Source, plan: Sequence[ArchiveFile], target: Path, writer: Writer) -> None:
    """In this process. `writer` hears of each file once it is proven."""
    fetched = source.counter(plan, writer)
    with downloading(source.store, plan, source.parallelism) as pieces:
        _decode(pieces, writer, fetched)


def _apply_divided(source: _Source, plan: Sequence[ArchiveFile], target: Path, writer: Writer) -> None:
    """With several processes. Raises NotDivided, too."""
    fetched = source.counter(plan, writer)
    divided = divide(source.store, plan[0])
    rest = plan[1:] if divided else plan
    if divided:
        writer.file = divided.file
        writer.begin(divided.header)  # before anybody writes
    with Workers(source.store, target, divided, source.parallelism) as workers:
        division = Division(workers, divided, rest, source.parallelism)
        division.apply_parts(writer, fetched)
        _decode(division.pieces(), writer, fetched)


def _decode(pieces: Iterator[tuple[ArchiveFile, bytes, bool]], writer: Writer, fetched: Callable[[int], None]) -> None:
    pages = FilePages(writer.write)
    while (piece := _next(pieces, pages)) is not None:
        file, data, is_last = piece
        writer.file = file
        try:
            pages.feed(data)
            if pages.header is not None:
                check_header(pages.header, file)
            fetched(len(data))
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

"""The plan of an archive that Litestream 0.3 wrote → a database file: the snapshot, then one WAL after the other.

Threads fetch pieces of the files a bounded way ahead, as in `walcast.restore.apply`; the calling thread decompresses
them in order. The segments of one index make one WAL, which lies in a file beside the target until it is whole; then
the last committed version of every page is written, and the target cut to the last commit's size.

A frame that does not hold is damage (see `walcast.restore.wal`), and so is a WAL that ends without a commit, unless it
is the plan's last: then what follows its last commit is left out. From one WAL to the next nothing chains, for salts
and sequence numbers depend on which connection began it.

Memory is the window of pieces, some MiB of frames, 4 bytes a frame of the largest WAL and 8 bytes a page of checksums.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import lz4.frame

from walcast.archive.damage import DamagedFile
from walcast.archive.generations import (
    GenerationFile,
    GenerationGap,
    hint_before,
    list_generations,
    plan_to,
    segment_key,
)
from walcast.checksum import PageChecksums
from walcast.errors import ConfigError, Corrupt, WalcastError
from walcast.permissions import open_or_create
from walcast.position import Position
from walcast.restore.apply import Progress, Restored
from walcast.restore.download import downloading
from walcast.restore.wal import RestoredWal, write_all
from walcast.shortage import check_free
from walcast.store.base import ObjectMissing, Store

log = logging.getLogger("walcast.restore")

_UNPACK_BYTES = 4 << 20
_READ_BYTES = 4 << 20  # pages read back for their checksums at a time
_LISTINGS_MAX = 8
_WARNINGS_MAX = 3
_HEAD_BYTES = 100  # of a database file
_EXPANDS = 255
_RESERVE_BYTES = 1 << 20  # that others on this disk keep, whatever a file unpacks to
_BEYOND_FACTOR, _BEYOND_BYTES = 16, 1 << 30  # by how much a database file may be longer than its header says
_SQLITE_MAGIC = b"SQLite format 3\0"
_AGE_MAGIC = b"age-encryption.org/"


def restore_generation(
    store: Store,
    plan: Sequence[GenerationFile],
    target: Path,
    *,
    parallelism: int = 4,
    progress: Progress | None = None,
) -> tuple[Restored, tuple[str, ...]]:
    """Carry out the plan, or another one to the same segment from an older snapshot where the snapshot is damaged.

    Answers what it made, and the keys that it went around. Raises as `generation_to`; the error says up to what time
    the archive restores without the file.
    """
    goal, avoid = plan[-1], dict[str, None]()
    files = list[GenerationFile]()
    first: DamagedFile | ObjectMissing | GenerationGap | None = None
    while True:
        try:
            return generation_to(store, plan, target, parallelism=parallelism, progress=progress), tuple(avoid)
        except (DamagedFile, ObjectMissing, GenerationGap) as error:
            # Not after each of many damaged snapshots: to list them takes longer than to try one.
            if len(avoid) < _LISTINGS_MAX or isinstance(error, ObjectMissing):
                files = list_generations(store)
            files = [file for file in files if file.key not in avoid]
            bad = _bad_file(error, plan)
            if bad is not plan[0]:
                raise _last_words(error, hint_before(files, plan[plan.index(bad) - 1], bad)) from error
            avoid[bad.key] = None
            try:
                plan = plan_to([file for file in files if file.key != bad.key], goal)
            except WalcastError:
                raise first or error from None
            first = first or error
            level = logging.WARNING if len(avoid) <= _WARNINGS_MAX else logging.DEBUG
            log.log(level, "going around a file of the archive", extra={"url": store.url, "error": str(error)})


def generation_to(
    store: Store,
    plan: Sequence[GenerationFile],
    target: Path,
    *,
    parallelism: int = 4,
    progress: Progress | None = None,
) -> Restored:
    """Write the database of a plan to `target`, a temporary path, and fsync it; `<target>-wal` holds one WAL meanwhile.

    The position has TXID 0, for these archives know none, and the checksum of the pages. What an error leaves behind is
    the caller's to remove. Raises DamagedFile, ObjectMissing and GenerationGap that name the file, ConfigError for an
    encrypted one, and whatever else the store raises.
    """
    if not plan or not plan[0].is_snapshot:
        raise ValueError("a restore begins with a file that holds the whole database")
    total, done = sum(file.size for file in plan), 0
    with _Making(target) as making, downloading(store, plan, parallelism) as pieces:
        for file, of_file in groupby(pieces, key=lambda piece: piece[0]):
            making.begin(file)
            frame = _Frame(file)
            for _, data, _ in of_file:
                for unpacked in frame.feed(data):
                    making.feed(unpacked)
                done += len(data)
                if progress is not None:
                    progress(done, total)
            frame.finish()
        return making.finish(plan)


class _Frame:
    """One LZ4 frame: the whole of a file. Its end mark and its content's checksum must be there and right."""

    def __init__(self, file: GenerationFile) -> None:
        self._file = file
        self._lz4 = lz4.frame.LZ4FrameDecompressor()
        self._head = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompressed, in pieces of bounded size. Raises DamagedFile."""
        self._head = self._head or data[: len(_AGE_MAGIC)]
        try:
            while data or not (self._lz4.eof or self._lz4.needs_input):
                if self._lz4.eof:
                    raise DamagedFile(self._file, "more bytes after the LZ4 frame")
                yield self._lz4.decompress(data, max_length=_UNPACK_BYTES)
                data = b""
        except RuntimeError as error:
            if self._head == _AGE_MAGIC:
                what = "is encrypted with age, which walcast does not read: restore it with Litestream 0.3 and its key"
                raise ConfigError(f"{self._file.key} {what}") from error
            raise DamagedFile(self._file, f"LZ4 frame: {error}") from error

    def finish(self) -> None:
        """The file has ended."""
        if not self._lz4.eof:
            raise DamagedFile(self._file, "the LZ4 frame is not complete")
        if self._lz4.unused_data:
            raise DamagedFile(self._file, "more bytes after the LZ4 frame")


class _Making:
    """The target while files go into it, in the plan's order."""

    def __init__(self, target: Path) -> None:
        self._wal_path = target.with_name(target.name + "-wal")
        self._descriptor = open_or_create(target, os.O_RDWR | os.O_TRUNC)
        self._file: GenerationFile | None = None
        self._wal: RestoredWal | None = None
        self._target = target
        self._head = b""  # of the snapshot, while it is not complete
        self._size = 0
        self._size_max: int | None = None  # of the snapshot, as the database's own header says; None: it does not
        self._beyond = 0
        self._page_size = 0

    def __enter__(self) -> _Making:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        if self._wal is not None:
            self._wal.close()

    def begin(self, file: GenerationFile) -> None:
        """The next file of the plan; what came before it must reach up to it."""
        last, self._file = self._file, file
        if last is None:
            return
        if last.is_snapshot:
            self._end_snapshot(last)
        elif self._wal is not None:
            self._check_end(last, self._wal, file)
        if file.offset == 0:
            if self._wal is not None:
                self._wal.apply(self._descriptor)
                self._wal.close()
                self._wal = None
            self._wal = RestoredWal(self._wal_path, self._page_size)

    def feed(self, data: bytes) -> None:
        """The next bytes of the file."""
        assert self._file is not None
        if self._wal is None:
            self._feed_snapshot(self._file, data)
            return
        check_free(self._target, len(data) + _RESERVE_BYTES)
        try:
            self._wal.feed(data)
        except Corrupt as error:
            raise DamagedFile(self._file, str(error)) from error

    def finish(self, plan: Sequence[GenerationFile]) -> Restored:
        """All files are in: the last WAL applied, the target synced, its pages read for their checksums."""
        if self._wal is None:
            self._end_snapshot(plan[0])
        else:
            self._wal.apply(self._descriptor)
        os.fsync(self._descriptor)
        page_size, size = self._page_size, os.fstat(self._descriptor).st_size
        if size % page_size:
            raise DamagedFile(plan[0], f"holds {size} bytes, which are no number of pages of {page_size}")
        sums = PageChecksums.scan(page_size, _chunks(self._descriptor, page_size))
        return Restored(
            position=Position(0, sums.database),
            term=0,
            page_size=page_size,
            commit_pages=sums.commit_pages,
            bytes_downloaded=sum(file.size for file in plan),
            files=len(plan),
            checksums=sums,
            timestamp_ms=plan[-1].timestamp_ms,
            applied=tuple(plan),
            unconfirmed=tuple(plan),
        )

    def _feed_snapshot(self, snapshot: GenerationFile, data: bytes) -> None:
        if not self._page_size:
            self._head += data
            if len(self._head) < _HEAD_BYTES:
                return
            data, self._head = self._head, b""
            self._begin_snapshot(snapshot, data)
        kept = data if self._size_max is None else data[: self._size_max - self._size]
        check_free(self._target, len(kept) + _RESERVE_BYTES)
        write_all(self._descriptor, kept, self._size)
        self._size += len(kept)
        # A database that shrank keeps the longer file until a checkpoint is complete: none of its pages.
        self._beyond += len(data) - len(kept)
        if self._size_max is not None and self._beyond > _BEYOND_FACTOR * self._size_max + _BEYOND_BYTES:
            raise DamagedFile(snapshot, f"unpacks to far more than the {self._size_max:,} bytes of its database")

    def _begin_snapshot(self, snapshot: GenerationFile, head: bytes) -> None:
        """What the database's header says, before anything is written; see SQLite's file format, 1.3."""
        page_size = {1: 65536}.get(stored := int.from_bytes(head[16:18], "big"), stored)
        if head[:16] != _SQLITE_MAGIC or not 512 <= page_size <= 65536 or page_size & (page_size - 1):
            raise DamagedFile(snapshot, f"holds no SQLite database: begins with {head[:18].hex()}")
        self._page_size = page_size
        pages = int.from_bytes(head[28:32], "big")
        if pages and head[24:28] == head[92:96]:  # else an old SQLite wrote last, which does not keep it
            self._size_max = pages * page_size
            check_free(self._target, self._least(self._size_max, snapshot) + _RESERVE_BYTES)

    @staticmethod
    def _least(announced: int, snapshot: GenerationFile) -> int:
        """Of what is announced, what the file can hold at all: LZ4 expands 255 times."""
        return min(announced, snapshot.size * _EXPANDS)

    def _end_snapshot(self, snapshot: GenerationFile) -> None:
        if not self._page_size:
            raise DamagedFile(snapshot, f"holds no SQLite database: begins with {self._head[:18].hex()}")

    def _check_end(self, last: GenerationFile, wal: RestoredWal, file: GenerationFile) -> None:
        """`last` is over and `file` comes next. Within a WAL a segment may end anywhere, its end is a commit."""
        if not file.offset:
            if wal.torn_bytes or wal.frames != wal.committed:
                raise DamagedFile(last, f"its WAL ends here without a commit, but {file.key} goes on after it")
        elif file.offset > wal.size:
            raise GenerationGap(segment_key(file.generation, file.index, wal.size), file)
        elif file.offset < wal.size:
            raise DamagedFile(last, f"reaches byte {wal.size} of its WAL, but {file.key} begins before")


def _chunks(descriptor: int, page_size: int) -> Iterator[tuple[int, bytes]]:
    """A database's pages, in order, some MiB at a time, with the number of the first."""
    offset = 0
    while data := os.pread(descriptor, _READ_BYTES, offset):
        yield offset // page_size + 1, data
        offset += len(data)


def _bad_file(error: DamagedFile | ObjectMissing | GenerationGap, plan: Iterable[GenerationFile]) -> GenerationFile:
    """The file of the plan that an error is about."""
    if isinstance(error, DamagedFile):
        key = error.file.key
    else:
        key = error.after.key if isinstance(error, GenerationGap) else error.key
    return next(file for file in plan if file.key == key)


def _last_words(error: DamagedFile | ObjectMissing | GenerationGap, hint: str) -> WalcastError:
    """The error, with how far the archive reaches without the file."""
    if isinstance(error, DamagedFile):
        return error.retold(hint)
    return GenerationGap(error.missing, error.after, hint) if isinstance(error, GenerationGap) else error

"""Restore a database from an archive, all or nothing; read what an archive has after a TXID.

Nothing is ever seen at the output path but a whole, proven database.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from walcast.archive import ArchiveFile, ArchiveGap, list_files, restorable_txids
from walcast.archive_times import read_headers, timed
from walcast.damage import DamagedFile, check_header
from walcast.errors import ConfigError, Corrupt
from walcast.generations import list_generations, plan_generation
from walcast.ltx import Decoder, Header, Page, Trailer
from walcast.position import Position, format_txid
from walcast.restore_apply import GoOn, Progress, Restored, restore_to
from walcast.restore_around import Around, Goal
from walcast.restore_generations import restore_generation
from walcast.restore_target import check_output, put_in_place, temporary_beside
from walcast.store.base import Store

__all__ = [
    "DamagedFile",
    "IntegrityCheck",
    "Planned",
    "Progress",
    "RestoreReport",
    "Restored",
    "check_integrity",
    "pages_after",
    "restore",
    "restore_to",
]

IntegrityCheck = Literal["none", "quick", "full"]


@dataclass(frozen=True, slots=True)
class Planned:
    """Where a plan leads, from the headers of its files: `times_ms[i]` is the time of the i-th."""

    position: Position
    timestamp_ms: int
    page_size: int
    commit_pages: int
    times_ms: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What `restore` did, or with `dry_run` would do. `went_around` names files that were damaged or gone.

    `obstacle` is what a restore would say about the output path, if a dry run found something in the way.
    """

    output: Path
    plan: tuple[ArchiveFile, ...]
    restored: Restored | None
    skipped: str | None = None
    went_around: tuple[str, ...] = ()
    planned: Planned | None = None
    obstacle: str | None = None


def restore(
    store: Store,
    output: Path,
    *,
    txid: int | None = None,
    timestamp_ms: int | None = None,
    force: bool = False,
    if_db_not_exists: bool = False,
    if_replica_exists: bool = False,
    dry_run: bool = False,
    parallelism: int = 4,
    integrity_check: IntegrityCheck = "none",
    progress: Progress | None = None,
) -> RestoreReport:
    """Restore to `output`, all or nothing: a temporary file beside it, then a rename.

    Never over an existing file without `force`, which also removes its -wal, -shm and -journal. A file of the archive
    that turns out damaged or removed is gone around when others cover its transactions, never by restoring less. A
    dry run reads the header of each file of the plan, and writes nothing.

    An archive without LTX files that Litestream 0.3 wrote is restored too, to the times of `plan_generation` and with
    no TXID.

    Raises ConfigError, the errors of `walcast.archive`, Corrupt, Unavailable; the output is then as it was before.
    """
    place = Path(os.path.realpath(output))  # through a symbolic link, as SQLite names the side files
    if if_db_not_exists and os.path.lexists(place):
        return RestoreReport(output, (), None, skipped="the database exists")
    obstacle = _obstacle(place, force=force)
    if obstacle is not None and not dry_run:
        raise obstacle
    goal = Goal(txid, timestamp_ms)
    files = list_files(store)
    older = [] if files else list_generations(store)  # what Litestream 0.3 wrote
    if not files and not older and if_replica_exists:
        return RestoreReport(output, (), None, skipped="the archive is empty")
    if older:
        old_plan = plan_generation(older, txid=txid, timestamp_ms=timestamp_ms)
        if dry_run:
            return RestoreReport(output, tuple(old_plan), None, obstacle=str(obstacle) if obstacle else None)
        with temporary_beside(place) as temporary:
            restored, went = restore_generation(store, old_plan, temporary, parallelism=parallelism, progress=progress)
            check_integrity(temporary, integrity_check)
            put_in_place(temporary, place, force=force)
        return RestoreReport(output, restored.applied, restored, went_around=went)
    if timestamp_ms is not None:
        files = timed(store, files, timestamp_ms)
    around = Around(store, goal, files)
    try:
        if dry_run:
            plan, planned = around.carry_out(lambda plan, _: (tuple(plan), _look_ahead(store, plan)))
            return RestoreReport(output, plan, None, None, around.keys, planned, str(obstacle) if obstacle else None)
        with temporary_beside(place) as temporary:

            def attempt(plan: Sequence[ArchiveFile], go_on: GoOn) -> Restored:
                done = restore_to(store, plan, temporary, parallelism=parallelism, progress=progress, go_on=go_on)
                around.confirm(done)
                return done

            restored = around.carry_out(attempt)
            check_integrity(temporary, integrity_check)
            put_in_place(temporary, place, force=force)
    except ArchiveGap as gap:
        raise _with_hint(gap, files, txid) from gap
    return RestoreReport(output, restored.applied, restored, went_around=around.keys)


def pages_after(store: Store, plan: Sequence[ArchiveFile]) -> Iterator[tuple[Header, Iterator[Page]]]:
    """The files of a plan, decoded in order and in bounded memory.

    A file's pages are proven when its iterator has ended without an error; one left unfinished is read to its end.
    """
    for file in plan:
        events = _events(store, file)
        header = next(events)
        assert isinstance(header, Header)  # `_events` begins with it
        pages = (event for event in events if isinstance(event, Page))
        yield header, pages
        for _ in pages:
            pass


def _events(store: Store, file: ArchiveFile) -> Iterator[Header | Page]:
    decoder = Decoder()
    try:
        for chunk in store.chunks(file.key):
            decoder.feed(chunk)
            while (event := decoder.next_event()) is not None:
                if isinstance(event, Header):
                    check_header(event, file)
                if not isinstance(event, Trailer):
                    yield event
        decoder.close()
    except DamagedFile:
        raise
    except Corrupt as error:
        raise DamagedFile(file, str(error)) from error
    if decoder.unused:
        raise DamagedFile(file, "more bytes after the trailer")


def _obstacle(output: Path, *, force: bool) -> ConfigError | None:
    try:
        check_output(output, force=force)
    except ConfigError as error:
        return error
    return None


def _look_ahead(store: Store, plan: Sequence[ArchiveFile]) -> Planned:
    """Read the headers of a plan's files. Raises DamagedFile and ObjectMissing, as restoring would."""
    headers: list[Header] = []
    for answer in read_headers(store, plan):
        if not isinstance(answer, Header):
            raise answer
        headers.append(answer)
    last = headers[-1]
    times_ms = tuple(header.timestamp_ms for header in headers)
    position = Position(last.max_txid, last.database_checksum)
    return Planned(position, last.timestamp_ms, last.page_size, last.commit_pages, times_ms)


def _with_hint(gap: ArchiveGap, files: Sequence[ArchiveFile], txid: int | None) -> ArchiveGap:
    """The gap, with the newest TXID that can be restored in spite of it."""
    newest = max((end for end in restorable_txids(files) if txid is None or end <= txid), default=0)
    gap.args = (f"{gap}; the archive restores to --txid {format_txid(newest)}",) if newest else gap.args
    return gap


def check_integrity(path: Path, kind: IntegrityCheck) -> None:
    """Let SQLite read a database that nobody else has open, without leaving a trace. Raises Corrupt."""
    if kind == "none":
        return
    pragma = "integrity_check" if kind == "full" else "quick_check"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            found = [str(row[0]) for row in db.execute(f"pragma {pragma}(10)")]
    except sqlite3.Error as error:
        raise Corrupt(f"the restored database fails SQLite's {pragma}: {error}") from error
    if found != ["ok"]:
        raise Corrupt(f"the restored database fails SQLite's {pragma}: {'; '.join(found)}")

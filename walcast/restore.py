"""Restore a database from an archive, all or nothing; read what an archive has after a TXID.

Nothing is ever seen at the output path but a whole, proven database.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from walcast.archive import ArchiveFile, ArchiveGap, TxidNotAvailable, list_files, plan_restore
from walcast.errors import ConfigError, Corrupt, Unavailable, WalcastError
from walcast.filesystem import fsync_directory
from walcast.ltx import Decoder, Header, Page, Trailer
from walcast.position import format_txid
from walcast.restore_apply import DamagedFile, Progress, Restored, check_header, restore_to
from walcast.store.base import ObjectMissing, Store

__all__ = [
    "DamagedFile",
    "IntegrityCheck",
    "Progress",
    "RestoreReport",
    "Restored",
    "pages_after",
    "restore",
    "restore_to",
]

log = logging.getLogger("walcast.restore")

IntegrityCheck = Literal["none", "quick", "full"]

_SIDE_FILES = ("-wal", "-shm", "-journal")
_WRONG_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST}


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What `restore` did, or with `dry_run` would do. `went_around` names files that were damaged or gone."""

    output: Path
    plan: tuple[ArchiveFile, ...]
    restored: Restored | None
    skipped: str | None = None
    went_around: tuple[str, ...] = ()


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
    that turns out damaged or removed is gone around when others cover its transactions, never by restoring less.

    Raises ConfigError, the errors of `walcast.archive`, Corrupt, Unavailable; the output is then as it was before.
    """
    if not dry_run and os.path.lexists(output) and if_db_not_exists:
        return RestoreReport(output, (), None, skipped="the database exists")
    if not dry_run:
        _check_output(output, force=force)
    files = list_files(store, header_times=timestamp_ms is not None)
    if not files and if_replica_exists:
        return RestoreReport(output, (), None, skipped="the archive is empty")
    plan = plan_restore(files, txid=txid, timestamp_ms=timestamp_ms)
    if dry_run:
        return RestoreReport(output, tuple(plan), None)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.walcast-restore")
    with _disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            plan, restored, around = _restore_around(store, plan, temporary, parallelism, progress)
            _check_integrity(temporary, integrity_check)
            _put_in_place(temporary, output, force=force)
        finally:
            temporary.unlink(missing_ok=True)
            for suffix in _SIDE_FILES:
                temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
    return RestoreReport(output, tuple(plan), restored, went_around=tuple(around))


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


def _restore_around(
    store: Store, plan: list[ArchiveFile], temporary: Path, parallelism: int, progress: Progress | None
) -> tuple[list[ArchiveFile], Restored, list[str]]:
    """Carry out the plan, or another one to the same TXID that avoids what turned out damaged or missing."""
    goal = plan[-1].max_txid
    avoid: list[str] = []
    while True:
        try:
            return plan, restore_to(store, plan, temporary, parallelism=parallelism, progress=progress), avoid
        except (DamagedFile, ObjectMissing) as error:
            avoid.append(error.file.key if isinstance(error, DamagedFile) else error.key)
            # Listed again: what compaction removed since then is now part of another file.
            files = [file for file in list_files(store) if file.key not in avoid]
            try:
                plan = plan_restore(files, txid=goal)
            except WalcastError as no_other:
                raise _last_words(error, no_other) from error
            log.warning("going around a file of the archive", extra={"url": store.url, "error": str(error)})


def _last_words(error: DamagedFile | ObjectMissing, no_other: WalcastError) -> WalcastError:
    """The error, with how far the archive reaches without the file."""
    reached = no_other.have if isinstance(no_other, ArchiveGap) else 0
    if isinstance(no_other, TxidNotAvailable):
        reached = no_other.reached
    if isinstance(error, DamagedFile) and reached:
        return DamagedFile(
            error.file, f"{error.what}; without it the archive restores to --txid {format_txid(reached)}"
        )
    return error


def _check_output(output: Path, *, force: bool) -> None:
    if output.is_dir():
        raise ConfigError(f"{output} is a directory: give the path of the database file")
    for path in (output, *_side_files(output)):
        if os.path.lexists(path) and not force:
            raise ConfigError(f"{path} exists: give another output path, or --force to replace the database")


def _side_files(output: Path) -> list[Path]:
    return [output.with_name(output.name + suffix) for suffix in _SIDE_FILES]


def _check_integrity(path: Path, kind: IntegrityCheck) -> None:
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


def _put_in_place(temporary: Path, output: Path, *, force: bool) -> None:
    """The rename. Old side files go first: SQLite would play an old WAL or journal into the new database."""
    if force:
        for path in _side_files(output):
            path.unlink(missing_ok=True)
        fsync_directory(output.parent)
        temporary.replace(output)
    else:
        _check_output(output, force=False)
        try:
            output.hardlink_to(temporary)  # unlike a rename, never over a file that came meanwhile
        except FileExistsError:
            raise ConfigError(f"{output} was made by somebody else meanwhile") from None
        except OSError:  # a file system without hard links
            temporary.replace(output)
    fsync_directory(output.parent)


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"cannot write {output}: {error.strerror}"
        if error.errno in _WRONG_PLACE:
            raise ConfigError(what) from error
        raise Unavailable(what) from error

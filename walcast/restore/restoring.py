"""Restore a database from an archive, all or nothing.

Nothing is ever seen at the output path but a whole, proven database.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from walcast.archive.clocks import ClockStep, read_clock_steps
from walcast.archive.files import ArchiveFile, ArchiveGap, list_files, restorable_txids
from walcast.archive.generations import GenerationFile, list_generations, plan_generation
from walcast.archive.identity import read_archive_id
from walcast.archive.reading import read_headers
from walcast.errors import ConfigError, Corrupt, WalcastError
from walcast.filesystem import is_missing
from walcast.identity import DatabaseId, forget_database_id, write_database_id
from walcast.ltx import Header
from walcast.permissions import OWNER_ONLY
from walcast.planted import check_not_planted
from walcast.position import Position, format_txid
from walcast.restore.apply import GoOn, Progress, Restored, restore_to
from walcast.restore.around import Around, Attempt, Goal
from walcast.restore.generations import restore_generation
from walcast.restore.target import check_output, put_in_place, temporary_beside
from walcast.savedsums import RestoredState, forget_restored, save_restored
from walcast.statedir import state_dir
from walcast.store.base import Store

log = logging.getLogger("walcast.restore")

T = TypeVar("T")

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

    `clock_steps`: the primary's clock was set back, and showed the time that was asked for while the timestamps were
    ahead of it; transactions that were made before that time, by that clock, may have later timestamps.
    """

    output: Path
    plan: tuple[ArchiveFile, ...]
    restored: Restored | None
    skipped: str | None = None
    went_around: tuple[str, ...] = ()
    planned: Planned | None = None
    obstacle: str | None = None
    clock_steps: tuple[ClockStep, ...] = ()


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
    parallelism: int = 16,
    integrity_check: IntegrityCheck = "none",
    progress: Progress | None = None,
    mode: int = OWNER_ONLY,
) -> RestoreReport:
    """Restore to `output`, all or nothing: a temporary file beside it, then a rename.

    Never over an existing file without `force`, which also removes its -wal, -shm and -journal, and keeps its owner and
    mode; a new file has `mode`. A file of zero bytes is no database: with `if_db_not_exists` it is replaced. A file of
    the archive that turns out damaged or removed is gone around when others cover its transactions, never by restoring
    less. A dry run reads the header of each file of the plan, and writes nothing.

    An archive without LTX files that Litestream 0.3 wrote is restored too, to the times of `plan_generation` and with
    no TXID.

    Raises ConfigError, the errors of `walcast.archive`, Corrupt, Unavailable; the output is then as it was before.
    """
    place = Path(os.path.realpath(output))  # through a symbolic link, as SQLite names the side files
    if if_db_not_exists and os.path.lexists(place) and not is_missing(place):
        return RestoreReport(output, (), None, skipped="the database exists")
    for path in (output, place):
        check_not_planted(path)
    empty = if_db_not_exists and os.path.lexists(place)
    obstacle = _obstacle(place, force=force or empty)
    if obstacle is not None and not dry_run:
        raise obstacle
    files = list_files(store)
    older = [] if files else list_generations(store)  # what Litestream 0.3 wrote
    if not files and not older and if_replica_exists:
        return RestoreReport(output, (), None, skipped="the archive is empty")
    way: _Way
    if older:
        way = _OldWay(store, plan_generation(older, txid=txid, timestamp_ms=timestamp_ms))
    else:
        way = _LtxWay(store, files, Goal(txid, timestamp_ms))
    steps = () if timestamp_ms is None else clock_steps_at(store, timestamp_ms)
    if dry_run:
        plan, planned = way.look_ahead()
        hindrance = str(obstacle) if obstacle else None
        return RestoreReport(output, plan, None, None, way.went_around, planned, hindrance, steps)
    owner = _owner(store)
    with temporary_beside(place) as temporary:
        restored = way.go(temporary, parallelism, progress)
        check_integrity(temporary, integrity_check)
        if empty and not is_missing(place):
            raise ConfigError(f"{place} was made by somebody else meanwhile")
        with _identified(place, owner, restored):
            put_in_place(temporary, place, force=force or empty, mode=mode)
    return RestoreReport(output, restored.applied, restored, went_around=way.went_around, clock_steps=steps)


def clock_steps_at(store: Store, timestamp_ms: int) -> tuple[ClockStep, ...]:
    """Those in which the time lies. They only explain: what cannot be read keeps no restore from being made."""
    try:
        return tuple(step for step in read_clock_steps(store) if step.includes(timestamp_ms))
    except WalcastError as error:
        log.warning("cannot tell whether the clock was set back", extra={"url": store.url, "error": str(error)})
        return ()


def _owner(store: Store) -> DatabaseId | None:
    """Whose archive it is. What says so is not needed for a restore, and must not keep one from being made."""
    try:
        return read_archive_id(store)
    except WalcastError as error:
        log.warning("whose archive it is cannot be told", extra={"url": store.url, "error": str(error)})
        return None


@contextmanager
def _identified(place: Path, owner: DatabaseId | None, restored: Restored) -> Iterator[None]:
    """What is put at `place` meanwhile has the id of the archive's owner, and a primary goes on from its position. An
    archive without one says nothing: what is restored over a database is taken for an edit of that.

    Whoever is interrupted leaves a database without an id, or an id without a database, and never one with another's.
    """
    if owner is None:
        yield
        return
    state = state_dir(place)
    there = place.exists()
    if there:
        forget_database_id(state)
        forget_restored(state)
    else:
        write_database_id(state, owner)
    yield
    if there:
        write_database_id(state, owner)
    if restored.position.txid:  # Litestream 0.3 has none
        time_ms = restored.timestamp_ms
        save_restored(state, RestoredState(restored.checksums, restored.position, restored.term or 1, time_ms))


class _Way(Protocol):
    """From an archive to a file."""

    @property
    def went_around(self) -> tuple[str, ...]: ...

    def look_ahead(self) -> tuple[tuple[ArchiveFile, ...], Planned | None]: ...

    def go(self, temporary: Path, parallelism: int, progress: Progress | None) -> Restored: ...


class _OldWay:
    """Through an archive that Litestream 0.3 wrote."""

    def __init__(self, store: Store, plan: list[GenerationFile]) -> None:
        self._store = store
        self._plan = plan
        self.went_around: tuple[str, ...] = ()

    def look_ahead(self) -> tuple[tuple[ArchiveFile, ...], None]:
        return tuple(self._plan), None

    def go(self, temporary: Path, parallelism: int, progress: Progress | None) -> Restored:
        restored, self.went_around = restore_generation(
            self._store, self._plan, temporary, parallelism=parallelism, progress=progress
        )
        return restored


class _LtxWay:
    """Through LTX files, around those that are damaged or gone."""

    def __init__(self, store: Store, files: list[ArchiveFile], goal: Goal) -> None:
        self._store = store
        self._goal = goal
        self._around = Around(store, goal, goal.timed(store, files))

    @property
    def went_around(self) -> tuple[str, ...]:
        return self._around.keys

    def look_ahead(self) -> tuple[tuple[ArchiveFile, ...], Planned]:
        return self._carry_out(lambda plan, _: (tuple(plan), _planned(self._store, plan)))

    def go(self, temporary: Path, parallelism: int, progress: Progress | None) -> Restored:
        def attempt(plan: Sequence[ArchiveFile], go_on: GoOn) -> Restored:
            done = restore_to(self._store, plan, temporary, parallelism=parallelism, progress=progress, go_on=go_on)
            self._around.confirm(done)
            return done

        return self._carry_out(attempt)

    def _carry_out(self, attempt: Attempt[T]) -> T:
        try:
            return self._around.carry_out(attempt)
        except ArchiveGap as gap:
            if ends := restorable_txids(self._goal.allowed(self._around.files)):
                gap.args = (f"{gap}; the archive restores to --txid {format_txid(ends[-1])}",)
            raise


def _obstacle(output: Path, *, force: bool) -> ConfigError | None:
    try:
        check_output(output, force=force)
    except ConfigError as error:
        return error
    return None


def _planned(store: Store, plan: Sequence[ArchiveFile]) -> Planned:
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

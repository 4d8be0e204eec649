"""`walcast snapshot DB URL`: one backup now, for cron. Into the archive, read back, and only then reported.

Where a process serves the database, that one makes the snapshot; else this command is the database's primary for as
long as it takes. Either way no writer waits, and the file is exact: its checksum is the database's.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import click

from walcast import local, ltx
from walcast.archive import SNAPSHOT_LEVEL, ArchiveFile, list_files
from walcast.archive.identity import claim_archive, read_archive_id, take_over_archive
from walcast.errors import ConfigError, Corrupt, Unavailable
from walcast.filesystem import check_database_file
from walcast.identity import read_database_id
from walcast.planted import resolve_database
from walcast.position import Position, format_txid
from walcast.secret import Secret
from walcast.statedir import in_use, state_dir
from walcast.statusfile import read_last_status
from walcast.store import Store, open_store
from walcast.terms import FOLLOWER, read_standing
from walcast_node.commands.options import JSON, PATH, Command, flag
from walcast_node.commands.printing import say
from walcast_node.config.numbers import Number
from walcast_node.process.first_boot import check_not_emptied, emptied, has_something
from walcast_node.process.ping import check_url, ping
from walcast_primary.archiving.compaction import Written, prove
from walcast_primary.archiving.compaction_schedule import ArchivePolicy
from walcast_primary.archiving.lineage import archive_end, begin_behind, continues, newest_txid
from walcast_primary.archiving.object_writer import put_file
from walcast_primary.archiving.overtaken import check_not_gone_on
from walcast_primary.archiving.ownership import identify, other_database
from walcast_primary.archiving.retention import delete_expired
from walcast_primary.archiving.snapshot import snapshot
from walcast_primary.database import Database

log = logging.getLogger("walcast.snapshot")

PING = "GET this, only when all went well. Better given as WALCAST_PING_URL: others can see a command line."
DAY_S = 86_400.0
STATUS_S = 5.0
SNAPSHOT_THERE = "take the snapshot where its primary is, or make this the primary (walcast promote)"
ASK_S = 600.0  # a database of a terabyte takes its time before the first byte comes

EXAMPLES = """\b
Example:
  walcast snapshot app.db s3://bucket/app
  walcast snapshot app.db /backup/app --retention-days 30 --ping-url https://example.com/ping/app"""


@dataclass(frozen=True, slots=True)
class Archived:
    """A snapshot that is in the archive and was read back."""

    file: ArchiveFile
    position: Position
    pages: int
    page_size: int
    deleted: int


@click.command("snapshot", cls=Command, epilog=EXAMPLES)
@click.argument("db", type=PATH)
@click.argument("url")
@flag(
    "--retention-days",
    type=Number(min=0),
    default=None,
    help="Afterwards delete what is older than this, where a newer snapshot is there.",
)
@flag("--continue-archive", is_flag=True, help="Go on with an archive that belongs to another database.")
@flag("--ping-url", default=None, help=PING)
@JSON
def snapshot_command(
    db: Path, url: str, retention_days: float | None, continue_archive: bool, ping_url: str | None, as_json: bool
) -> None:
    """Back up a database now, whatever is writing to it: a verified snapshot in the archive, and its size."""
    told = check_url(Secret(ping_url)) if ping_url else None
    db = resolve_database(db)
    check_database_file(db)
    _check_not_replica(db)
    started = time.monotonic()
    with open_store(url) as store:
        store.check(delete=retention_days is not None)
        archived = archive_snapshot(db, store, retention_days, take_over=continue_archive)
        if told:
            ping(told)
        seconds = round(time.monotonic() - started, 3)
        click.echo(json.dumps(_facts(store, archived, seconds))) if as_json else say(_words(store, archived, seconds))
    sys.stdout.flush()


def _check_not_replica(db: Path) -> None:
    """By the process that runs, whatever its files are left from; else by what the node was last."""
    if in_use(db) is not False:
        with suppress(Unavailable), local.ask(db, "status", timeout_s=STATUS_S) as (facts, _):
            if facts.get("role") == FOLLOWER:
                raise ConfigError(f"{db} is a replica of {facts.get('primary') or 'a primary'}: {SNAPSHOT_THERE}")
            return
    folder = state_dir(db)
    standing, last = read_standing(folder), read_last_status(folder)
    was_follower = standing.role == FOLLOWER if standing else (folder / "positions").exists() and not last.is_own
    if was_follower:
        primary = (standing.primary if standing else "") or last.primary or "a primary"
        raise ConfigError(f"{db} is a replica of {primary}: {SNAPSHOT_THERE}")


def archive_snapshot(
    db: Path, store: Store, retention_days: float | None = None, *, take_over: bool = False
) -> Archived:
    """Make, put, read back, and tidy up. Raises as `walcast.errors` says; nothing is deleted unless all went well.

    OtherDatabase when the archive belongs to another database, unless it is to be `take_over`.
    """
    files = list_files(store)
    served = in_use(db) is not False
    if served:
        _claim(db, store, take_over=take_over)
    take = _from_its_primary if served else _by_ourselves
    taken = take(db, store, files, take_over=take_over)
    with taken as (written, stream):
        file = put_file(store, SNAPSHOT_LEVEL, written, stream)
    header = prove(store, file.key)
    if header.database_checksum != written.header.database_checksum:
        raise Corrupt(f"{file.key} in {store.url} is not what was written there")
    deleted = 0
    if retention_days is not None:
        policy = ArchivePolicy(retention_s=retention_days * DAY_S)
        there = [other for other in files if other.key != file.key] + [file]

        def prove_other(other: ArchiveFile) -> None:
            if other is not file:
                prove(store, other.key)

        now_ms = time.time_ns() // 1_000_000
        deleted = sum(map(len, delete_expired(store, there, policy, now_ms, prove_other)))
    if served:
        with local.ask(db, "archived"):
            pass
    position = Position(header.max_txid, header.database_checksum)
    return Archived(file, position, header.commit_pages, header.page_size, deleted)


def _claim(db: Path, store: Store, *, take_over: bool) -> None:
    """See that the archive is this database's. One that an older walcast serves has no id yet: nothing to compare."""
    mine = read_database_id(state_dir(db))
    if mine is None:
        return
    if take_over:
        take_over_archive(store, mine)
    owner = claim_archive(store, mine)
    if owner != mine:
        raise other_database(db, store, mine, owner)


@contextmanager
def _from_its_primary(
    db: Path, store: Store, files: Sequence[ArchiveFile], *, take_over: bool
) -> Iterator[tuple[Written, BinaryIO]]:
    """A snapshot by the process that serves the database."""
    with local.ask(db, "snapshot", timeout_s=ASK_S) as (answer, stream):
        header = ltx.Header.decode(bytes.fromhex(answer["header"]))
        assert header is not None  # 100 bytes, by this version of walcast
        if header.commit_pages <= 1 and not take_over and has_something(store):
            raise emptied(db, store)
        newest, end = newest_txid(files), archive_end(store, files)
        mine = Position(header.max_txid, header.database_checksum)
        if newest > mine.txid or (newest == mine.txid and end != mine):
            raise ConfigError(
                f"the archive {store.url} is at TXID {format_txid(newest)}, {db} at {format_txid(mine.txid)}: "
                "that is another database's archive, or another history's; give an empty one"
            )
        trailer = ltx.Trailer(answer["post_checksum"], answer["file_checksum"], answer["size"])
        body = io.BufferedReader(cast(Any, _Announced(stream, trailer.size, db)), 1 << 20)
        yield Written(header, trailer), cast(BinaryIO, body)


@contextmanager
def _by_ourselves(
    db: Path, store: Store, files: Sequence[ArchiveFile], *, take_over: bool
) -> Iterator[tuple[Written, BinaryIO]]:
    """A snapshot by this process, which is the database's primary for as long as it takes."""
    check_not_emptied(db, store, continue_archive=take_over)
    database = Database(db, db.stem)
    try:
        database.start()
        identify(database, store, read_archive_id(store), take_over=take_over)
        _claim(db, store, take_over=take_over)
        if files and not continues(database, archive_end(store, files)):
            if not take_over:
                check_not_gone_on(database, store, files)
            begin_behind(database, newest_txid(files))
        with snapshot(database) as taken:
            yield taken
    finally:
        database.stop()


class _Announced(io.RawIOBase):
    """A stream that must have exactly the bytes that were announced."""

    def __init__(self, stream: BinaryIO, size: int, db: Path) -> None:
        self._stream = stream
        self._left = size
        self._db = db

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), self._left))
        if not data and self._left:
            raise Unavailable(f"{self._db}: the process that serves it hung up, {self._left} bytes before the end")
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


def _facts(store: Store, archived: Archived, seconds: float) -> dict[str, Any]:
    return {
        "url": store.url,
        "key": archived.file.key,
        "position": str(archived.position),
        "txid": archived.position.txid,
        "bytes": archived.file.size,
        "pages": archived.pages,
        "page_size": archived.page_size,
        "verified": True,
        "deleted": archived.deleted,
        "seconds": seconds,
    }


def _words(store: Store, archived: Archived, seconds: float) -> str:
    deleted = f", {archived.deleted} old files deleted" if archived.deleted else ""
    return (
        f"{archived.file.key} in {store.url}: {archived.file.size} bytes, verified, "
        f"{archived.pages} pages at {archived.position}{deleted}, {seconds:.1f} s"
    )

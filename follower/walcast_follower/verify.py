"""Prove a replica equal to its primary: page by page, against what the primary's files hold, under load too.

1. Read all pages of the replica in one snapshot: their checksums name its position in the journal.
2. Take the stream from there to the primary's newest position, keeping only checksums: that is what a replica would
   hold.
3. Have the primary compare its real pages with those. A page may differ only if the stream says that it changed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import apsw
import numpy as np
from numpy.typing import NDArray

from walcast.checksum import PageChecksums, page_checksum
from walcast.dbfiles import DatabaseFiles, PageReader
from walcast.errors import Diverged, Unavailable
from walcast.identity import read_database_id
from walcast.position import Position
from walcast.statedir import state_dir
from walcast_follower.apply.position_journal import find_position
from walcast_follower.subscribe.message_checks import check_copied, check_copy_end
from walcast_follower.subscribe.primary_client import Client
from walcast_follower.subscribe.receiver import Receiver


@dataclass(frozen=True, slots=True)
class Verified:
    """A replica at `position` was compared with the primary at `primary_position`: `pages` pages, all equal."""

    position: Position
    primary_position: Position
    pages: int


class ChecksumsOnly:
    """A target that keeps what a replica's page checksums would be, and which pages changed."""

    def __init__(self, checksums: PageChecksums, position: Position) -> None:
        self.position = position
        self.page_size = checksums.page_size
        self.term = 0
        self.checksums = checksums
        self.changed: set[int] = set()
        self._pending: dict[int, int] = {}

    def begin(self) -> None:
        """A transaction begins."""
        self._pending.clear()

    def write_pages(
        self, pgnos: Sequence[int] | NDArray[np.uint32], pages: Sequence[bytes | bytearray | memoryview]
    ) -> None:
        """Remember their checksums."""
        for pgno, page in zip(np.asarray(pgnos).tolist(), pages, strict=True):
            self._pending[pgno] = page_checksum(pgno, page)

    def commit(self, term: int, position: Position, commit_pages: int, timestamp_ms: int = 0) -> None:
        """Diverged when the checksums do not lead to the position's."""
        pgnos = np.fromiter(self._pending.keys(), np.uint32, len(self._pending))
        sums = np.fromiter(self._pending.values(), np.uint64, len(self._pending))
        self.checksums.apply(pgnos, sums, commit_pages)
        if self.checksums.database != position.checksum:
            raise Diverged(f"at {position} the replica's checksum would be {self.checksums.database:016x}")
        self.changed.update(self._pending)
        self.position = position

    def rollback(self) -> None:
        """Forget the transaction."""
        self._pending.clear()


def read_replica(path: Path) -> ChecksumsOnly:
    """The page checksums of a replica, and the position that they have in its journal; Diverged when they have none."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    files = None
    try:
        connection.set_busy_timeout(5000)
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
        files = DatabaseFiles(path)
        with PageReader(files, connection) as reader:
            checksums = PageChecksums.scan(reader.header.page_size, reader.chunks())
    except apsw.Error as error:
        raise Unavailable(f"{path}: {error}") from error
    finally:
        connection.close()
        if files is not None:
            files.close()
    found = find_position(state_dir(path), checksums.database)
    if found is None:
        raise Diverged(
            f"{path}: no position that was applied here has its checksum {checksums.database:016x}: it is no replica, "
            "or something else has changed it; walcast follower mends a replica"
        )
    return ChecksumsOnly(checksums, found[1])


async def verify_replica(path: Path, client: Client) -> Verified:
    """Diverged when a page differs that should not; Unavailable when the primary cannot be asked; OtherDatabase when it
    has another database than the one that the replica is a copy of."""
    replica = read_replica(path)
    client.database_id = read_database_id(state_dir(path)) or ""
    at = replica.position
    await _stream(client, replica)
    mine = replica.checksums
    async with client.copy(mine.page_size, mine.pages[: mine.commit_pages]) as copy:
        differing: list[int] = []
        while (message := await copy.read()).WhichOneof("kind") == "pages":
            check_copied(message.pages, copy.start, differing[-1] if differing else 0)
            differing.extend(message.pages.pgnos)
        end = check_copy_end(message.end, copy.start)
        replica.changed.clear()
        await _stream(client, replica, until=end.txid)
    wrong = sorted(set(differing) - replica.changed)
    if wrong:
        shown = ", ".join(str(pgno) for pgno in wrong[:10])
        raise Diverged(f"{path}: {len(wrong)} pages are not the primary's: {shown}")
    return Verified(at, end, mine.commit_pages)


async def _stream(client: Client, replica: ChecksumsOnly, until: int | None = None) -> None:
    """Follow to `until`, or to where the primary is now."""
    if until is not None and replica.position.txid >= until:
        return
    async with client.stream(replica.position, 0, observer=True) as stream:
        receiver = Receiver(replica, replica.position, pages=replica.checksums.commit_pages, term=stream.welcome.term)
        goal = stream.welcome.position.txid if until is None else until
        while replica.position.txid < goal:
            message = await stream.read()
            if message.WhichOneof("kind") == "chunk":
                receiver.feed(message.chunk.data, message.chunk.ends)

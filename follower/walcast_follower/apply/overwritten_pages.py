"""The pages that a copy takes away, kept as they were: for a replica of which nobody knows what only it had.

`Keeping` stands before an applier in one transaction. The old version of each page is read when the first new one
comes, and waits in a file without a name; pages that the copy cuts off are read at its end. Right before the commit
they become one LTX file, durable in its folder: applied to the new state it gives the old one, as its checksums say.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import apsw
import numpy as np
from numpy.typing import NDArray

from walcast import ltx
from walcast.checksum import lock_pgno, page_checksum
from walcast.dbfiles import PageReader
from walcast.discarded import Circumstances, Kind, Saving, Summary, Trees, find_discarded, trees_of
from walcast.discarded.trees import TIMEOUT_S
from walcast.errors import Unavailable
from walcast.position import Position
from walcast.shortage import disk_error, disk_errors, shortage
from walcast_follower.apply.applier import Applier

PAGES_AT_ONCE = 256
MIN_TXID = 2  # an LTX file that begins at TXID 1 has every page


class Keeping:
    """Takes one transaction, as `Applier` does, for an applier whose old state must not be lost."""

    def __init__(self, applier: Applier, state_dir: Path, circumstances: Circumstances) -> None:
        self.page_size = applier.page_size
        self.position = applier.position
        self.term = applier.term
        self._applier = applier
        self._state_dir = state_dir
        self._circumstances = circumstances
        self._old = Position(applier.position.txid, applier.checksums.database)
        self._old_pages = applier.commit_pages
        self._written_ms = _written_ms(applier.path)
        self._trees = Trees()
        self._stop = threading.Event()
        self._spool: BinaryIO | None = None
        self._connection: apsw.Connection | None = None
        self._forget()

    def _forget(self) -> None:
        self._seen = bytearray(self._old_pages + 1)
        self._kept = array("I")  # the page in each slot of the spool
        self._pgnos = array("I")
        self._sums = array("Q")

    async def look_up_tables(self, timeout_s: float = TIMEOUT_S) -> None:
        """Find out which tables the pages are of, in a thread, while the replica still is as it was."""
        work = asyncio.ensure_future(asyncio.to_thread(trees_of, self._applier.path, timeout_s, self._stop.is_set))
        try:
            self._trees = await asyncio.shield(work)
        except asyncio.CancelledError:
            self._stop.set()
            await asyncio.wait([work])  # its connection must not outlive the applier
            raise

    def look_up_tables_here(self, timeout_s: float = TIMEOUT_S) -> None:
        """The same, for whoever is in a thread already."""
        self._trees = trees_of(self._applier.path, timeout_s, self._stop.is_set)

    # As a target

    def begin(self) -> None:
        """Unavailable when nothing can be kept now."""
        try:
            self._spool = _temporary(self._state_dir)
            self._connection = apsw.Connection(str(self._applier.path), flags=apsw.SQLITE_OPEN_READONLY)
            self._connection.set_busy_timeout(1000)
            self._applier.begin()
        except (OSError, apsw.Error) as error:
            self._close()
            raise shortage(error, self._state_dir) or Unavailable(
                f"{self._state_dir}: cannot keep the pages that a copy overwrites: {error}"
            ) from error
        except BaseException:
            self._close()
            raise

    def write_pages(
        self, pgnos: Sequence[int] | NDArray[np.uint32], pages: Sequence[bytes | bytearray | memoryview]
    ) -> None:
        """The old versions first."""
        numbers = [int(pgno) for pgno in pgnos]
        self._keep(numbers)
        self._applier.write_pages(numbers, pages)  # checks them
        self._pgnos.extend(numbers)
        self._sums.extend(page_checksum(pgno, page) for pgno, page in zip(numbers, pages, strict=True))

    def commit(self, term: int, position: Position, commit_pages: int, timestamp_ms: int = 0) -> None:
        """What is lost by this commit is durable before it is made."""
        if self._will_hold(position, commit_pages):
            self._keep(range(commit_pages + 1, self._old_pages + 1))
            if self._kept and find_discarded(self._state_dir, f"{self._old.checksum:016x}") is None:
                with disk_errors(self._state_dir):
                    self._save(term, position)
        self._applier.commit(term, position, commit_pages, timestamp_ms)
        self.term, self.position = term, position
        self._close()

    def rollback(self) -> None:
        """Forget it, and what was read for it."""
        self._close()
        self._applier.rollback()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        self._forget()

    def _will_hold(self, position: Position, commit_pages: int) -> bool:
        """A copy that the applier is going to refuse comes again, and must not leave a folder each time."""
        pgnos, sums = np.array(self._pgnos, np.uint32), np.array(self._sums, np.uint64)
        unique, index = np.unique(pgnos[::-1], return_index=True)
        after = self._applier.checksums.after(unique, sums[::-1][index], commit_pages)
        return commit_pages > 0 and after == position.checksum

    # The old pages

    def _keep(self, pgnos: Sequence[int]) -> None:
        """Spool those of the old database that are not there yet."""
        lock, seen = lock_pgno(self.page_size), self._seen
        for start in range(0, len(pgnos), PAGES_AT_ONCE):
            some = set(pgnos[start : start + PAGES_AT_ONCE])
            wanted = sorted(n for n in some if 0 < n <= self._old_pages and n != lock and not seen[n])
            if wanted:
                self._spool_pages(wanted)

    def _spool_pages(self, pgnos: Sequence[int]) -> None:
        if self._spool is None or self._connection is None:
            raise RuntimeError("no transaction is open")
        try:
            # The applier's frames are behind the last committed one: a reader sees the old state until the commit.
            with PageReader(self._applier._files, self._connection) as reader:
                for pgno in pgnos:
                    self._spool.write(reader.read(pgno, 1))
        except OSError as error:
            raise disk_error(error, self._state_dir) from error
        self._kept.extend(pgnos)
        for pgno in pgnos:
            self._seen[pgno] = 1

    def _save(self, term: int, position: Position) -> None:
        # A state without a name goes by the TXID that takes its place; the checksums say which one it is.
        txid = self._old.txid if self._old.txid >= MIN_TXID else max(MIN_TXID, position.txid)
        given = self._circumstances
        circumstances = Circumstances(
            given.database, given.why, given.new_primary, given.new_term or term, given.archive
        )
        summary = Summary(
            Kind.BEFORE_IMAGE, circumstances, self._trees, base=position, end=self._old, term=self._applier.term
        )
        header = ltx.Header(
            page_size=self.page_size,
            commit_pages=self._old_pages,
            min_txid=txid,
            max_txid=txid,
            timestamp_ms=self._written_ms,
            pre_checksum=position.checksum,
            database_checksum=self._old.checksum,
            term=self._applier.term,
        )
        with Saving(self._state_dir, txid, txid, summary) as saving:
            saving.add(header, lambda file: self._encode(header, file))
            saving.finish()

    def _encode(self, header: ltx.Header, file: BinaryIO) -> NDArray[np.uint32]:
        encoder = ltx.Encoder(header, file.write)
        for pgno, page in self._old_versions():
            encoder.add(pgno, page)
        encoder.finish(self._old.checksum)
        return np.sort(np.array(self._kept, np.uint32))

    def _old_versions(self) -> Iterator[tuple[int, bytes]]:
        """The spooled pages, ascending."""
        assert self._spool is not None
        kept = np.array(self._kept, np.uint32)
        for slot in np.argsort(kept).tolist():
            self._spool.seek(slot * self.page_size)
            yield int(kept[slot]), self._spool.read(self.page_size)


def _temporary(directory: Path) -> BinaryIO:
    """A file without a name: whatever ends the process, it is gone."""
    return cast(BinaryIO, tempfile.TemporaryFile(dir=directory))


def _written_ms(path: Path) -> int:
    """When somebody last wrote to the database, as well as its files know."""
    files = [file for file in (path, Path(f"{path}-wal")) if file.exists()]
    return int(max((file.stat().st_mtime for file in files), default=time.time()) * 1000)

"""The applier: transactions of pages → commits that stock SQLite readers of the replica see.

    begin → write_pages, any number of times → commit | rollback

**Verified before visible.** A commit says which database checksum must stand after it. It is computed from the pages
that came; when it does not hold, nothing of the transaction is ever seen, by readers or by recovery.

**Where the replica stands is read from the file.** At `open` all pages are read and the database checksum is looked
up in the journal of positions (`walcast_follower.apply.position_journal`). Whatever happened to the file, the
position is right or unknown.

**Visible is not durable**: a commit is written, not synced, so that applying costs no disk's time. `sync` makes durable
what was applied, when somebody waits for that.

**No app can write**: the applier holds SQLite's write lock for as long as it is open; a stock connection that tries
gets SQLITE_BUSY.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn, Self

import apsw
import numpy as np
from numpy.typing import NDArray

from walcast.checksum import PageChecksums, lock_pgno, page_checksum
from walcast.dbfiles import DatabaseFiles, PageReader
from walcast.errors import ConfigError, Corrupt, Diverged, Exhausted, Stopped, Unavailable
from walcast.held import Held
from walcast.position import Position
from walcast.scrub import BROKEN, Mismatch, is_of_the_file, mismatches
from walcast.shortage import disk_error, disk_errors, out_of_descriptors, shortage
from walcast.statedir import StateDir
from walcast.wal import FRAME_HEADER_SIZE, frame_offset
from walcast.wal_writer import Page, WalWriter
from walcast_follower.apply.durability import Durability
from walcast_follower.apply.page_one import check_page_one
from walcast_follower.apply.page_owners import Written
from walcast_follower.apply.position_journal import Journal
from walcast_follower.bootstrap.fresh_file import Fresh
from walcast_follower.subscribe.page_growth import check_files_hold, check_grown

RESTART_FRAMES = 1000  # a WAL shorter than this is not worth a restart
_BUSY_TIMEOUT_MS = 1000
_OPEN_TRIES = 5
_FEW_PAGES = 64
_PAGES_AT_ONCE = 256


class ChecksumMismatch(Diverged):
    """The database checksum after a transaction would not be its position's; the transaction was rolled back."""

    def __init__(self, position: Position, actual: int) -> None:
        super().__init__(f"at {position} the database checksum would be {actual:016x}")
        self.position = position
        self.expected = position.checksum
        self.actual = actual


@dataclass(frozen=True, slots=True)
class CheckpointResult:
    """How many frames the WAL has, and how many of them are in the database file."""

    wal_frames: int
    backfilled_frames: int

    @property
    def complete(self) -> bool:
        """Whether the WAL can restart as soon as no reader uses it."""
        return self.backfilled_frames >= self.wal_frames


class Applier:
    """The WAL writer of one replica. One thread owns it; only `checkpoint` and `sync` may be called from others at any
    time, until it is closed or released. `durable` is what the newest sync covers."""

    writer: ClassVar[type[WalWriter]] = WalWriter

    def __init__(
        self,
        files: DatabaseFiles,
        wal: WalWriter,
        journal: Journal,
        state_dir: Path,
        connections: tuple[apsw.Connection, ...],
        fresh: Fresh | None = None,
    ) -> None:
        """Use `open`. The write lock is held."""
        self.path = files.path
        self.page_size = wal.header.page_size
        self.term = 0
        self.position = Position()
        self.durable = Position()
        self.restart_frames = RESTART_FRAMES
        self.restart_refused = False
        self._files = files
        self._wal = wal
        self._journal = journal
        self._durability = Durability(files, wal, journal, state_dir)
        # The first reads, and is what keeps a reader's last close from deleting the WAL; the second makes checkpoints.
        self._connections = connections
        self._lock_pgno = lock_pgno(self.page_size)
        self._in_transaction = False
        self._broken = False
        self._closed = False
        self._pgnos = array("I")
        self._sums = array("Q")
        self._new_page_one: bytes | None = None
        with PageReader(files, connections[0]) as reader:
            self._page_one = bytes(reader.read(1, 1))
            untouched = fresh is not None and self.wal_frames == 0 and fresh.holds(files.db_fd)
            if fresh is not None and untouched:
                self.checksums = fresh.checksums
            else:
                self.checksums = PageChecksums.scan(self.page_size, reader.chunks())
        self.timestamp_ms = 0
        found = journal.find(self.checksums.database)
        if found is not None:
            self.term, self.position = found
        self.written = Written(self.position, self.checksums.commit_pages, self.knows)

    @classmethod
    def open(cls, path: Path, state_dir: Path, fresh: Fresh | None = None) -> Self:
        """Take over the replica at `path`, a database in WAL mode; its positions are in `state_dir`.

        All pages are read, unless the file is a `fresh` one that nobody has touched since.

        Raises Unavailable while another holds the write lock, ConfigError for a database that is not in WAL mode.
        """
        connections = (_connect(path), _connect(path))
        files = wal = None
        try:
            page_size, commit_pages = _read(connections[0])
            check_files_hold(path, page_size, commit_pages)
            files = DatabaseFiles(path, writable=True)
            wal = cls._take_over(files, connections[0], page_size, commit_pages)
            return cls(files, wal, Journal(state_dir), state_dir, connections, fresh)
        except BaseException:
            _close(connections, wal, files)
            raise

    @classmethod
    def adopt(cls, held: Held) -> Self:
        """Take over a database that this process has had open, and whose write lock it holds: nothing is closed or
        unlocked meanwhile. What is `held` is still the caller's when this fails."""
        path = held.files.path
        connections = (held.connection, _connect(path))
        try:
            page_size, commit_pages = _read(connections[0])
            wal = cls._take_over(held.files, connections[0], page_size, commit_pages)
            return cls(held.files, wal, Journal(held.state.path), held.state.path, connections)
        except BaseException:
            connections[1].close()
            raise

    def release(self, state: StateDir) -> Held:
        """Instead of `close`: end applying, keep the files, a connection and the write lock.

        Everything applied is durable then, and what checkpoints have written of it to the database file: the log of a
        primary that goes on from here has only what comes after. Unavailable when that cannot be synced; it stays an
        applier. No other thread may use it.
        """
        self.rollback()
        self.sync()
        try:
            self._durability.sync_database(self._wal.header.salt, self.backfilled_frames)
        except OSError as error:
            raise Unavailable(f"{self.path}: cannot sync: {error.strerror}") from error
        self._closed = True
        self._connections[1].close()
        self._wal.release()
        self._journal.close()
        return Held(self._files, self._connections[0], state)

    @classmethod
    def _take_over(
        cls, files: DatabaseFiles, connection: apsw.Connection, page_size: int, commit_pages: int
    ) -> WalWriter:
        """The write lock, over a wal-index that is whole; a torn one SQLite recovers, which takes the lock for it."""
        for _ in range(_OPEN_TRIES):
            if not cls.writer.lock(files):
                raise Unavailable(f"{files.path}: another process is writing to it")
            if files.index_header() is not None:
                return cls.writer(files, page_size, commit_pages)
            cls.writer.unlock(files)
            _read(connection)
        raise Unavailable(f"{files.path}-shm: cannot be recovered")

    def close(self) -> None:
        """Roll back what is open and let others write. Nothing happens the second time."""
        if not self._closed:
            self._closed = True
            self.rollback()
            _close(self._connections, self._wal, self._files)
            self._journal.close()

    def retire(self) -> None:
        """`close`, when another database has taken the place of this one: whoever reads this one is told so."""
        self.rollback()
        self._wal.retire()
        self.close()

    # The state

    @property
    def files(self) -> DatabaseFiles:
        """To read from."""
        return self._files

    @property
    def commit_pages(self) -> int:
        """The size of the database, pages."""
        return self.checksums.commit_pages

    def knows(self, position: Position) -> bool:
        """Was the replica at this position once, as far as its journal reaches?"""
        found = self._journal.find(position.checksum)
        return found is not None and found[1] == position

    @property
    def wal_frames(self) -> int:
        """Committed frames in the WAL."""
        return self._wal.header.mx_frame

    @property
    def wal_bytes(self) -> int:
        """The part of the WAL file that is in use."""
        return frame_offset(self.wal_frames + 1, self.page_size)

    @property
    def backfilled_frames(self) -> int:
        """How many frames of the WAL are in the database file."""
        return self._wal.backfilled_frames

    def differing(self, pgnos: Iterable[int]) -> list[Mismatch]:
        """Those of the pages that are not what was applied. For the thread that owns the applier, at any time."""
        found: list[Mismatch] = []
        try:
            with PageReader(self._files, self._connections[0]) as reader:
                for pgno in pgnos:
                    if pgno <= min(self.commit_pages, reader.header.commit_pages):
                        found += mismatches(reader, pgno, 1, [self.checksums.get(pgno)])
        except BROKEN as error:
            if not is_of_the_file(error):
                raise
            found = [Mismatch(1, hidden=False)]
        return found

    def rescan(self, stopping: Callable[[], bool]) -> int:
        """Read all pages; how many are not what was applied. Then nobody knows where the replica is, and its checksums
        are those of what is there, of which a page diff takes what differs. Outside a transaction."""
        pages = self.checksums.pages[: self.commit_pages].copy()
        wrong: set[int] = set()
        with PageReader(self._files, self._connections[0]) as reader:
            for first in range(1, self.commit_pages + 1, _PAGES_AT_ONCE):
                if stopping():
                    raise Unavailable("stopping")
                count = min(_PAGES_AT_ONCE, self.commit_pages + 1 - first)
                for pgno, page, _ in reader.versions(first, count):
                    found = page_checksum(pgno, page)
                    if found != self.checksums.get(pgno):
                        pages[pgno - 1] = found
                        wrong.add(pgno)
        if wrong:
            self.checksums, self.position = PageChecksums(self.page_size, pages), Position()
        return len(wrong)

    # A transaction

    def check_usable(self) -> None:
        """Stopped when nothing can be applied any more."""
        if self._broken or self._closed:
            why = "is closed" if self._closed else "is not what its files hold; open it again"
            raise Stopped(f"{self.path}: the applier {why}")

    def begin(self) -> None:
        """Start a transaction, in a WAL that restarts if it is long and can.

        `restart_refused` tells whether it was long and could not: a checkpoint has to finish or a reader to go.
        """
        self.check_usable()
        if self._in_transaction:
            raise RuntimeError("begin: a transaction is open")
        if self.wal_frames >= self.restart_frames:
            self.restart_wal_if_possible()
        self._in_transaction = True

    def write_pages(self, pgnos: Sequence[int] | NDArray[np.uint32], pages: Sequence[Page]) -> None:
        """Pages in any order; a page written again in the same transaction counts as it was written last.

        They go to the WAL as they come. Corrupt for what cannot be a page of this database; Unavailable when the disk
        is full. Both roll back.
        """
        if not self._in_transaction:
            raise RuntimeError("write_pages: no transaction is open")
        size, lock, append = self.page_size, self._lock_pgno, self._wal.append
        numbers = pgnos.tolist() if isinstance(pgnos, np.ndarray) else pgnos
        try:
            for pgno, page in zip(numbers, pages, strict=True):
                if len(page) != size or not 0 < pgno <= 0xFFFFFFFE or pgno == lock:
                    _refuse(pgno, page)
                self._sums.append(page_checksum(pgno, page))
                self._pgnos.append(pgno)
                append(pgno, page)
                if pgno == 1:
                    self._new_page_one = bytes(page)
        except OSError as error:
            needed = (len(self._pgnos) + len(numbers)) * (FRAME_HEADER_SIZE + size)
            self.rollback()
            raise disk_error(error, f"{self.path}-wal", needed_bytes=needed) from error
        except BaseException:
            self.rollback()
            raise

    def commit(self, term: int, position: Position, commit_pages: int, timestamp_ms: int = 0) -> None:
        """Make the transaction visible: the replica is at `position` then, and has `commit_pages` pages.

        Pages past `commit_pages` count for nothing. Raises ChecksumMismatch, a Diverged, when the database checksum
        would not be `position.checksum`, Unavailable when the disk is full, and ProtocolViolation when the database
        would have pages that nobody sent, or a page 1 that readers cannot use; all roll back.
        """
        if not self._in_transaction:
            raise RuntimeError("commit: no transaction is open")
        pgnos, sums = self._changes()
        try:
            check_grown(pgnos, self.page_size, self.checksums.commit_pages, commit_pages)
            if self._new_page_one is not None:
                check_page_one(self._new_page_one, self.page_size, commit_pages)
            self.checksums.reserve(commit_pages)  # what it takes of memory is there before anything is visible
        except BaseException:
            self.rollback()
            raise
        actual = self.checksums.after(pgnos, sums, commit_pages)
        if actual != position.checksum or commit_pages < 1:
            self.rollback()
            raise ChecksumMismatch(position, actual)
        page_one = self._page_one if self._new_page_one is None else self._new_page_one
        try:
            # The journal first: once a reader has seen the commit, its checksum has a name, whatever happens next.
            self._journal.append(term, position, timestamp_ms)
            self._broken = True  # until memory and file agree again
            self._wal.publish(commit_pages, page_one)
        except OSError as error:
            self._broken = False  # raised before the header moved
            needed = len(self._pgnos) * (FRAME_HEADER_SIZE + self.page_size)
            self.rollback()
            raise disk_error(error, f"{self.path}-wal", needed_bytes=needed) from error
        self.checksums.apply(pgnos, sums, commit_pages, actual)
        self.written.note(pgnos, commit_pages, position)
        self._page_one = page_one
        self.term, self.position = term, position
        self.timestamp_ms = timestamp_ms or self.timestamp_ms
        self._broken = False
        self._forget()

    def rollback(self) -> None:
        """Drop the transaction."""
        self._wal.discard()
        self._forget()

    def _forget(self) -> None:
        self._in_transaction = False
        self._new_page_one = None
        del self._pgnos[:], self._sums[:]

    def _changes(self) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
        """The pages written, each once, and their checksums as of the last time."""
        pgnos, sums = np.array(self._pgnos, np.uint32), np.array(self._sums, np.uint64)
        if len(pgnos) < _FEW_PAGES and len(set(self._pgnos)) == len(pgnos):
            return pgnos, sums  # much cheaper than a sort
        unique, index = np.unique(pgnos[::-1], return_index=True)
        return unique, sums[::-1][index]

    # What outlives a power failure

    def sync(self) -> Position:
        """Make everything applied durable; where that was, when this began. For any thread, while the owner goes on.

        Unavailable when it is not durable; a later call tries again, and believes the disk only what was written anew.
        Stopped when what was applied is lost from the file: open it again.
        """
        if self._closed:
            raise Stopped(f"{self.path}: the applier is closed")
        position = self.position
        try:
            self._durability.sync()
        except OSError as error:
            raise Unavailable(f"{self.path}: cannot sync: {error.strerror}") from error
        except Corrupt as error:
            self._broken = True
            raise Stopped(str(error)) from error
        self.durable = position
        return position

    def name(self, term: int, position: Position) -> None:
        """The state that is here, which the journal does not know, is `position`: somebody knows who had it. Durable on
        return. Diverged when its checksum is another one; Unavailable when that cannot be written down."""
        if position.checksum != self.checksums.database or not position:
            raise Diverged(
                f"{position} was given as the name of a state with the checksum {self.checksums.database:016x}"
            )
        try:
            self._journal.append(term, position, self.timestamp_ms)
            self._durability.sync_journal()
        except OSError as error:
            raise Unavailable(f"{self.path}: cannot write down its position: {error.strerror}") from error
        self.term, self.position = term, position
        self.written = Written(position, self.checksums.commit_pages, self.knows)

    def name_after_loss(self) -> None:
        """Give a state without a name one that nobody else has: the newest TXID that the journal knows, with the
        state's own checksum. For a replica that is to be the primary when there is nobody left to ask; the new term
        begins far behind any TXID that the state can really have, and whoever is at another checksum compares pages.

        Unavailable when the journal knows no position: then it never was a replica.
        """
        known = self._journal.last()
        if known is None:
            raise Unavailable(f"{self.path}: never was at a known position")
        term, last = known
        self.name(term, Position(last.txid, self.checksums.database))

    # The WAL

    def checkpoint(self) -> CheckpointResult:
        """Copy what readers allow into the database file, without waiting for anybody (PASSIVE)."""
        try:
            # What is durable in the file should have a durable name; but on a full disk the room comes first.
            with suppress(OSError):
                self._durability.sync_journal()
            salt = self._wal.header.salt
            frames, backfilled = self._connections[1].wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if backfilled >= frames:
                self._durability.sync_database(salt, frames)
        except apsw.BusyError:  # another process is making one
            frames, backfilled = self.wal_frames, self.backfilled_frames
        except (apsw.Error, OSError) as error:
            known = shortage(error, self.path)
            raise known or Unavailable(f"{self.path}: cannot checkpoint: {error}") from error
        return CheckpointResult(frames, backfilled)

    def cut_wal(self) -> None:
        """Give the room back that no commit in the WAL file uses. Not in a transaction."""
        with disk_errors(f"{self.path}-wal"):
            self._wal.cut()

    def restart_wal_if_possible(self, *, truncate: bool = False) -> bool:
        """Go on at the beginning of the WAL file, if all of it is in the database file and no reader uses it.
        `truncate`: give its room on the disk back."""
        restarted = self._durability.restart(truncate=truncate)
        self.restart_refused = not restarted
        return restarted


def _refuse(pgno: int, page: Page) -> NoReturn:
    raise Corrupt(f"no page of this database: number {pgno}, {len(page)} bytes")


def _close(connections: tuple[apsw.Connection, ...], wal: WalWriter | None, files: DatabaseFiles | None) -> None:
    """Connections first, then the descriptors: see `walcast.dbfiles`."""
    for connection in connections:
        connection.close()
    if wal is not None:
        wal.close()
    if files is not None:
        files.close()  # the write lock ends here at the latest


def _connect(path: Path) -> apsw.Connection:
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        connection.execute("PRAGMA synchronous = NORMAL").fetchall()
        connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    except apsw.CantOpenError as error:
        if out_of_descriptors():  # SQLite has one code for all reasons
            raise Exhausted(path, "too many open files") from error
        raise ConfigError(f"{path}: {error}") from error
    except apsw.NotADBError as error:
        raise Corrupt(f"{path}: {error}") from error
    return connection


def _read(connection: apsw.Connection) -> tuple[int, int]:
    """Page size and size in pages. Reading makes SQLite create, or recover, WAL and wal-index."""
    if connection.pragma("journal_mode") != "wal":
        raise ConfigError(f"{connection.filename}: not in WAL mode")
    connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
    return int(connection.pragma("page_size")), int(connection.pragma("page_count"))

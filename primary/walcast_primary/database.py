"""One served database: its files, its log, and the capture thread between them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from walcast.dbfiles import DatabaseFiles, PageReader
from walcast.errors import Unavailable, WalcastError
from walcast.held import Held
from walcast.identity import DatabaseId, read_database_id, write_database_id
from walcast.scrub import DEFAULT_BYTES_PER_S, Scrubber
from walcast.statedir import StateDir
from walcast_primary.capture.anchor import Anchor, checkpoint_on_close, connect
from walcast_primary.capture.capture import Capture
from walcast_primary.capture.capture_thread import CaptureLoop
from walcast_primary.capture.file_identity import check_same_files
from walcast_primary.capture.opening import open_database
from walcast_primary.recovery.boot import Boot, forget_boot, read_boot, write_boot
from walcast_primary.recovery.redo import finish
from walcast_primary.recovery.resume import State, begin_at
from walcast_primary.tenure import Tenure
from walcast_primary.transaction_log.transaction_log import TransactionLog

log = logging.getLogger("walcast.primary")

SYNC_S = 2.0
PARTS = ("_anchor", "_reader", "files", "log", "state")  # connections first, then the files (`walcast.dbfiles`)


class Database:
    """Opened by the constructor, captured from `start` to `stop`. Any thread may read its log and its pages.

    `readers` counts who reads pages: the files must not be closed under them, nor their numbers go to other files.
    `leaving`, once set, is why readers end early. `tenure` says whether anything may be published or archived.

    With `held` it takes over files that are open already; they are still the caller's when that fails.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        log_bytes: int = 256 << 20,
        log_age_s: float = 3600.0,
        held: Held | None = None,
        tenure: Tenure | None = None,
        scrub_bytes_per_s: float = DEFAULT_BYTES_PER_S,
    ) -> None:
        self.path = path
        self.name = name
        self.tenure = tenure or Tenure()
        self.readers = 0
        self.id: DatabaseId | None = None  # that of the database; None until `identify` where the folder has none
        self.leaving: WalcastError | None = None
        self.snapshotting = threading.Lock()
        self._brought_together = False  # the database has what the log has
        self._counting = threading.Lock()
        try:
            self._open(log_bytes, log_age_s, held)
            self.scrubber = self._scrubber(scrub_bytes_per_s)
        except BaseException:
            self._let_go(("_anchor", "log") if held else PARTS)  # so that a later try finds it free
            raise

    def _open(self, log_bytes: int, log_age_s: float, held: Held | None) -> None:
        self._reader = held.connection if held else open_database(self.path)
        self.state = held.state if held else StateDir(self.path)
        self.state.forget_partial()
        self.id = read_database_id(self.state.path)
        self.log = TransactionLog.open(self.state.path / "log", max_bytes=log_bytes, max_age_s=log_age_s)
        self.page_size = int(self._reader.pragma("page_size"))
        self._anchor = Anchor(self.path)
        # Writable: a primary that is deposed becomes the replica's WAL writer without letting go of them.
        self.files = held.files if held else DatabaseFiles(self.path, writable=True)
        self.log.sync_database = self.files.sync
        self._capture = Capture(self.files, self._reader, self.log, self.page_size)
        self.loop = CaptureLoop(self.name, self._anchor, self._capture)

    def _scrubber(self, most_bytes_per_s: float) -> Scrubber:
        foreign = self.loop.foreign

        def connect_to_it() -> apsw.Connection:
            check_same_files(self.files)  # a connection on another file there would take away this one's locks
            return connect(self.path)

        scrubber = Scrubber(
            self.files,
            connect_to_it,
            lambda: self.log.checksums,
            foreign.examine,
            most_bytes_per_s=most_bytes_per_s,
        )
        foreign.suspect, foreign.again, scrubber.on_clean = scrubber.suspect, scrubber.again, foreign.passed
        foreign.clean_ms = lambda: scrubber.clean_ms
        return scrubber

    def _let_go(self, parts: tuple[str, ...]) -> None:
        for part in parts:
            if hasattr(self, part):
                getattr(self, part).close()

    def start(self, *, at: State | None = None, term: int = 0) -> None:
        """Find where to go on, or go on from a state of another node's history, whose last writer this process is; then
        capture in the background; writers are held then. A `term` higher than the log's begins with an entry of its
        own."""
        if at is None:
            # What was restored in place of a damaged database is meant: the log must not be replayed over it.
            was_damaged = self.loop.foreign.resume()
            self.loop.find_place(read_boot(self.state.path), trusted=was_damaged)
        self.loop.foreign.forget()
        self.files.sync()  # the WAL may restart from now on, over what somebody checkpointed without a sync
        begin_at(self._capture, at, term)
        write_boot(self.state.path, Boot.now(self.files.db_fd, self.files.wal_fd))
        checkpoint_on_close(self._reader)  # the one that is closed last
        self._brought_together = True
        self.loop.start(resumed=True, held=at is not None)
        self.scrubber.start()

    def finish(self) -> bool:
        """Instead of `start`, for one that is not to be served any more: whether log and database could be brought
        together (`walcast_primary.recovery.redo.finish`). `stop` comes next."""
        return finish(self._capture, read_boot(self.state.path))

    def identify(self, database_id: DatabaseId) -> None:
        """Give the database its id, durably: before anything of it is published."""
        write_database_id(self.state.path, database_id)
        self.id = database_id

    def release(self) -> Held:
        """Instead of `stop`: end capturing and keep the files and, if `loop.holds_writers`, the write lock. Nobody may
        be `reading`."""
        self.loop.foreign.close(Unavailable("stopping"))
        self.scrubber.stop()
        self.loop.stop()
        self._let_go(("_anchor", "log"))
        self.log.let_go()
        return Held(self.files, self._reader, self.state)

    @contextmanager
    def reading(self) -> Iterator[Callable[[int, int], memoryview]]:
        """Read pages in other threads: `read(first, count)` takes them at the newest state, each call in a short read
        transaction of its own, and answers fewer where the database ends."""
        with self._counting:
            self._raise_when_leaving()
            self.readers += 1
        connection: apsw.Connection | None = None

        def read(first: int, count: int) -> memoryview:
            self._raise_when_leaving()
            assert connection is not None
            with PageReader(self.files, connection) as reader:
                count = min(count, reader.header.commit_pages + 1 - first)
                return reader.read(first, count) if count > 0 else memoryview(b"")

        try:
            connection = connect(self.path)
            yield read
        finally:
            if connection is not None:
                connection.close()
            with self._counting:
                self.readers -= 1

    def _raise_when_leaving(self) -> None:
        if self.leaving:
            raise Unavailable(str(self.leaving))

    @property
    def wal_bytes(self) -> int:
        """Size of the WAL file."""
        return os.fstat(self.files.wal_fd).st_size

    def stop(self) -> None:
        """End capturing and let go of the database."""
        self.loop.foreign.close(Unavailable("stopping"))  # what the scrubber waits for does not come any more
        self.scrubber.stop()
        self.loop.stop()
        if self._brought_together and self.loop.failure is None:
            self._end_durably()
        self._let_go(PARTS)

    def _end_durably(self) -> None:
        """Have the next start know that a power cut took nothing back of what the log has, so that what it finds
        changed was written by an app. A disk that does not answer is not waited for: that start looks closer then."""

        def sync() -> None:
            try:
                self.files.sync()
                synced.set()
            except OSError as error:
                log.debug("not synced at the end", extra={"database": self.name, "error": str(error)})

        synced = threading.Event()
        syncing = threading.Thread(target=sync, name=f"sync-{self.name}", daemon=True)
        try:
            syncing.start()
            syncing.join(SYNC_S)
            if synced.is_set():
                forget_boot(self.state.path)
        except (OSError, RuntimeError) as error:  # no thread, or the folder went away
            log.debug("not ended durably", extra={"database": self.name, "error": str(error)})

"""One served database: the thread that captures, checkpoints and answers barriers.

The thread owns the connections, the anchor and the capture; others reach it by `barrier` and by the log, which any
thread may read. It ends by `stop`, or by itself when going on would publish something wrong; then `failure` says why.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw

from primary.anchor import Anchor, connect
from primary.capture import Capture
from primary.checkpointer import Checkpointer
from primary.identity import SizeWatch, check_same_files
from primary.log import TransactionLog
from primary.opening import open_database
from primary.resume import compare, resume
from primary.wakeup import IDLE_S, LOOK_AGAIN_S, Wakeup
from walcast.dbfiles import DatabaseFiles, PageReader
from walcast.errors import LostContinuity, Stopped, Unavailable, WalcastError
from walcast.position import Position
from walcast.statedir import StateDir
from walcast.wal import WAL_HEADER_SIZE, frame_offset

log = logging.getLogger("walcast.primary")

ANCHOR_EVERY_S = 0.1
BUSY_COMMITS = 32
BUSY_PAUSE_S = 0.004
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Captured:
    """A state that is in the log: its position and how many pages the database has there."""

    position: Position
    commit_pages: int


class Database:
    """A database, its log, and the thread between them."""

    def __init__(self, path: Path, name: str, *, log_bytes: int = 256 << 20, log_age_s: float = 3600.0) -> None:
        self.path = path
        self.name = name
        self.failure: WalcastError | None = None
        self.on_failure: Callable[[], object] = lambda: None
        self._barriers: list[Future[Captured]] = []
        self._barrier_lock = threading.Lock()
        self._stopping = False
        self._skip_to = 0
        self._thread = threading.Thread(target=self._run, name=f"capture-{name}", daemon=True)
        self._anchored: tuple[object, ...] = ()
        self._anchored_s = 0.0

        self._reader = open_database(path)
        self.state = StateDir(path)
        self.log = TransactionLog.open(self.state.path / "log", max_bytes=log_bytes, max_age_s=log_age_s)
        self.page_size = int(self._reader.pragma("page_size"))
        self._anchor = Anchor(path)
        self.files = DatabaseFiles(path)
        self._capture = Capture(self.files, self._reader, self.log, self.page_size)
        self._checkpointer = Checkpointer(self.files, self._anchor, self._capture_all)
        self._size = SizeWatch(self.files)
        self._wakeup = Wakeup([path, Path(f"{path}-wal")])

    def start(self) -> None:
        """Find where to go on, then capture in the background."""
        if not resume(self._capture):
            self._compare("the WAL does not continue the log" if self.log.position else "no log yet")
        self._thread.start()

    def barrier(self) -> Future[Captured]:
        """A state that covers every commit made before this call; Unavailable when the database is not served."""
        future: Future[Captured] = Future()
        with self._barrier_lock:
            if self._stopping or self.failure:
                raise self.failure or Unavailable("stopping")
            self._barriers.append(future)
        self._wakeup.call()
        return future

    def skip_to(self, txid: int) -> None:
        """Give the present state a TXID of at least `txid`: a new history, whose followers compare pages once."""
        self._skip_to = txid
        self.barrier().result()

    @contextmanager
    def reading(self) -> Iterator[Callable[[int, int], memoryview]]:
        """Read pages in other threads: `read(first, count)` takes them at the newest state, each call in a short read
        transaction of its own, and answers fewer where the database ends."""
        connection = connect(self.path)

        def read(first: int, count: int) -> memoryview:
            with PageReader(self.files, connection) as reader:
                count = min(count, reader.header.commit_pages + 1 - first)
                return reader.read(first, count) if count > 0 else memoryview(b"")

        try:
            yield read
        finally:
            connection.close()

    @property
    def wal_bytes(self) -> int:
        """Size of the WAL file."""
        return os.fstat(self.files.wal_fd).st_size

    def stop(self) -> None:
        """End the thread and let go of the database."""
        self._stopping = True
        self._wakeup.call()
        if self._thread.is_alive():
            self._thread.join()
        self._fail_barriers(Unavailable("stopping"))
        self._checkpointer.close()
        self._anchor.close()
        self._reader.close()
        self.files.close()
        self._wakeup.close()
        self.log.close()
        self.state.close()

    # The thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._work()
                except LostContinuity as error:
                    self._compare(str(error))
                except (apsw.BusyError, apsw.LockedError, apsw.ProtocolError) as error:
                    log.debug("busy", extra={"database": self.name, "error": str(error)})
                    self._wakeup.wait(LOOK_AGAIN_S[-1])
                except (apsw.Error, OSError) as error:
                    log.error("cannot capture, trying again", extra={"database": self.name, "error": str(error)})  # noqa: TRY400
                    check_same_files(self.files)
                    self._wakeup.wait(RETRY_S)
        except WalcastError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(Stopped(f"capture ended: {type(error).__name__}: {error}"))
            raise

    def _fail(self, error: WalcastError) -> None:
        self.failure = error
        self._fail_barriers(error)
        self.on_failure()

    def _work(self) -> None:
        """Capture until told to stop."""
        looks = 0
        while not self._stopping:
            with self._barrier_lock:
                waiting, self._barriers = self._barriers, []
            try:
                transactions = self._capture_all()
                self._skip()
            except BaseException:
                with self._barrier_lock:
                    self._barriers[:0] = waiting
                raise
            for future in waiting:
                assert self.log.checksums is not None
                future.set_result(Captured(self.log.position, self.log.checksums.commit_pages))
            if transactions:
                looks = 0
                self._checkpointer.run(self._capture.frame, self.page_size)
            self._move_anchor_when_due()
            if transactions >= BUSY_COMMITS:
                time.sleep(BUSY_PAUSE_S)  # grouping is worth more than latency now
                continue
            if looks < len(LOOK_AGAIN_S) and self._more_is_written():
                self._wakeup.wait(LOOK_AGAIN_S[looks])
                looks += 1
            elif self._wakeup.wait(IDLE_S):
                looks = 0
            else:
                self._look_around()

    def _skip(self) -> None:
        if self._skip_to > self.log.position.txid:
            assert self.log.checksums is not None
            self.log.start(self.log.checksums, Position(self._skip_to, self.log.position.checksum))

    def _capture_all(self) -> int:
        return self._capture.capture()

    def _more_is_written(self) -> bool:
        """Are there frames behind the last committed one? Then a commit may be about to show in the wal-index."""
        frame, salt = self._capture.frame, self._capture.salt
        offset = frame_offset(frame + 1, self.page_size)
        head = os.pread(self.files.wal_fd, 16, offset)
        if frame == 0:
            return len(head) > 0 and self.wal_bytes > WAL_HEADER_SIZE
        return len(head) == 16 and head[8:16] == salt[0].to_bytes(4, "big") + salt[1].to_bytes(4, "big")

    def _move_anchor_when_due(self) -> None:
        """Follow the newest state, so that the app's own checkpoints are held up for a moment at most."""
        now = time.monotonic()
        if now - self._anchored_s < ANCHOR_EVERY_S:
            return
        info = self.files.checkpoint_info()
        state = (self._capture.salt, self._capture.frame, info.backfill >= self._capture.frame)
        if state != self._anchored:
            self._anchor.move(self._capture_all)
            self._anchored = state
        self._anchored_s = now

    def _look_around(self) -> None:
        """What no event tells, looked at when nothing happens."""
        check_same_files(self.files)
        size = self._size.size  # before the capture: then it knows every commit that a checkpoint may have cut it to
        self._capture_all()
        self._size.check(size, self._capture.forget_lowest_pages() * self.page_size)

    def _compare(self, reason: str) -> None:
        started = time.monotonic()
        pages = compare(self._capture)
        facts = {"database": self.name, "reason": reason, "position": str(self.log.position)}
        if pages is None:
            log.info("began a history", extra=facts)
        else:
            seconds = round(time.monotonic() - started, 3)
            log.info("compared all pages", extra=facts | {"changed_pages": pages, "seconds": seconds})

    def _fail_barriers(self, error: WalcastError) -> None:
        with self._barrier_lock:
            waiting, self._barriers = self._barriers, []
        for future in waiting:
            future.set_exception(error)

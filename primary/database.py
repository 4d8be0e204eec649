"""One served database: its files, its log, and the capture thread between them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from primary.anchor import Anchor, connect
from primary.capture import Capture
from primary.log import TransactionLog
from primary.loop import CaptureLoop
from primary.opening import open_database
from walcast.dbfiles import DatabaseFiles, PageReader
from walcast.statedir import StateDir


class Database:
    """Opened by the constructor, captured from `start` to `stop`. Any thread may read its log and its pages."""

    def __init__(self, path: Path, name: str, *, log_bytes: int = 256 << 20, log_age_s: float = 3600.0) -> None:
        self.path = path
        self.name = name
        self._reader = open_database(path)
        self.state = StateDir(path)
        self.log = TransactionLog.open(self.state.path / "log", max_bytes=log_bytes, max_age_s=log_age_s)
        self.page_size = int(self._reader.pragma("page_size"))
        self._anchor = Anchor(path)
        self.files = DatabaseFiles(path)
        self.snapshotting = threading.Lock()
        self.loop = CaptureLoop(name, self._anchor, Capture(self.files, self._reader, self.log, self.page_size))

    def start(self) -> None:
        """Find where to go on, then capture in the background."""
        self.loop.start()

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
        """End capturing and let go of the database: connections first, then the files (`walcast.dbfiles`)."""
        self.loop.stop()
        self._anchor.close()
        self._reader.close()
        self.files.close()
        self.log.close()
        self.state.close()

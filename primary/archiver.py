"""The log → the archive: at most one upload a second, none when nothing was committed, never in the stream's way.

Each upload merges the entries since the last one. An archive without a beginning, or that the log does not connect
with any more (it was away for longer than the log reaches), gets a snapshot. One LIST at the start; after that
nothing is asked.
"""

from __future__ import annotations

import io
import logging
import tempfile
import threading
import time
from typing import BinaryIO

from primary.database import Database
from primary.levels import ArchivePolicy
from primary.log import Known
from primary.merging import merge
from primary.segment import Entry
from primary.snapshot import snapshot
from walcast import ltx
from walcast.archive import SNAPSHOT_LEVEL, ArchiveFile, ArchiveGap, list_files, ltx_key, plan_restore
from walcast.errors import Corrupt, WalcastError
from walcast.position import Position
from walcast.store import Store

log = logging.getLogger("walcast.archive")

INTERVAL_S = 1.0
MERGE_BYTES = 8 << 20
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)


class Archiver:
    """Uploads one database's transactions, in a thread of its own. `txid` and `error` may be read by any."""

    def __init__(
        self,
        database: Database,
        store: Store,
        policy: ArchivePolicy = ArchivePolicy(),  # noqa: B008 - frozen
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.store = store
        self.policy = policy
        self.txid = 0
        self.error: str | None = None
        self._database = database
        self._interval_s = interval_s
        self._position: Position | None = None
        self._level_s: float | None = None  # when the archive had everything for the last time, if it has not now
        self._grown = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"archive-{database.name}", daemon=True)

    @property
    def behind_s(self) -> float:
        """For how long there has been something that is not in the archive yet; 0 when it has everything."""
        return 0.0 if self._level_s is None else time.monotonic() - self._level_s

    def start(self) -> None:
        """Begin in the background."""
        self._database.log.listen(self._grown.set)
        self._grown.set()
        self._thread.start()

    def stop(self, *, drain_s: float = 5.0) -> None:
        """Upload what is left, for `drain_s` seconds at most, and end."""
        self._stop.set()
        self._grown.set()
        self._thread.join(drain_s)

    def _run(self) -> None:
        failures = 0
        while True:
            stopping = self._stop.is_set()
            self._grown.clear()
            began = time.monotonic()
            try:
                self._catch_up()
            except Exception as error:
                if str(error) != self.error:
                    expected = isinstance(error, WalcastError | OSError)
                    facts = {"url": self.store.url, "error": str(error)}
                    log.warning("cannot archive, trying again", extra=facts, exc_info=not expected)
                self.error = str(error) or type(error).__name__
                wait_s = RETRY_S[min(failures, len(RETRY_S) - 1)]
                failures += 1
                if stopping or self._stop.wait(wait_s):
                    return
                self._grown.set()
                continue
            if self.error:
                log.info("archiving again", extra={"url": self.store.url, "txid": self.txid})
            self.error, failures = None, 0
            if stopping:
                return
            self._grown.wait()
            self._stop.wait(max(0.0, began + self._interval_s - time.monotonic()))

    def _catch_up(self) -> None:
        """Upload until the archive has what the log has."""
        if self._position is None:
            self._position = self._archived()
        if self._position is None or self._database.log.knows(self._position) is not Known.YES:
            self._upload_snapshot()
        goal = self._database.log.position  # what comes meanwhile is for the next turn
        while self._position is None or self._position.txid < goal.txid:
            entries = self._next_entries()
            if not entries:
                self._upload_snapshot()
                continue
            with tempfile.SpooledTemporaryFile(MERGE_BYTES) as file:
                try:
                    header = merge(entries, file.write)
                except Corrupt as error:
                    log.error("cannot read the log", extra={"error": str(error)})  # noqa: TRY400
                    self._upload_snapshot()
                    continue
                self._put(0, header, file)  # type: ignore[arg-type]
            self._moved(entries[-1].position)

    def _archived(self) -> Position | None:
        """Where the archive's restorable chain ends; None when it has none that this log can tell."""
        files = list_files(self.store)
        newest = max((file.max_txid for file in files), default=0)
        if newest > self._database.log.position.txid:
            # TXIDs name files: another history, or a log that was lost, must not write over what is there.
            log.warning("the archive is ahead of the log; going on behind it", extra={"archive_txid": newest})
            self._database.loop.skip_to(newest + 1)
            return None
        try:
            plan = plan_restore(files)
        except (ArchiveGap, WalcastError):
            return None
        return self._position_after(plan[-1])

    def _position_after(self, last: ArchiveFile) -> Position | None:
        header = ltx.Header.decode(self.store.get(last.key, 0, ltx.HEADER_SIZE))
        return Position(last.max_txid, header.database_checksum) if header else None

    def _next_entries(self) -> list[Entry]:
        assert self._position is not None
        entries: list[Entry] = []
        size, txid = 0, self._position.txid
        while (entry := self._database.log.after(txid)) is not None:
            if entries and size + entry.size > MERGE_BYTES:
                break
            entries.append(entry)
            size, txid = size + entry.size, entry.max_txid
        return entries

    def _upload_snapshot(self) -> None:
        with snapshot(self._database, self._database.state.path) as (header, file):
            self._put(SNAPSHOT_LEVEL, header, file)
        log.info("archived a snapshot", extra={"url": self.store.url, "txid": header.max_txid})
        self._moved(Position(header.max_txid, header.database_checksum))

    def _put(self, level: int, header: ltx.Header, file: BinaryIO) -> None:
        file.seek(0, io.SEEK_SET)
        key = ltx_key(self.store, level, header.min_txid, header.max_txid)
        self.store.put(key, file, timestamp_ms=header.timestamp_ms)

    def _moved(self, position: Position) -> None:
        self._position, self.txid = position, position.txid

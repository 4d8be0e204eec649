"""The archive kept in shape, off the stream's path: compaction into levels, snapshots, retention.

Nothing is deleted before what takes over was read back whole and the files that stay were seen to restore to the same
TXID. Nothing is listed: the catalogue knows. The work is done in a thread that exists only while there is some; all
databases of a process share WORKERS of them, so memory does not grow with their number.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import BinaryIO, cast

from primary.catalogue import Catalogue
from primary.compaction import Written, compact, prove
from primary.database import Database
from primary.levels import MAX_INPUTS, ArchivePolicy, compaction_inputs, expired, interval_passed, snapshot_due
from primary.retention import delete_expired
from primary.snapshot import SPARE_BYTES, snapshot
from walcast.archive import LEVELS, SNAPSHOT_LEVEL, ArchiveFile, ltx_key
from walcast.errors import Corrupt, Unavailable, WalcastError
from walcast.store import ObjectExists, ObjectMissing, Store

log = logging.getLogger("walcast.archive")

WORKERS = 2
SPOOL_BYTES = 8 << 20
SETTLED_S = 3600.0
DELETE_AGAIN_S = 600.0

_working = threading.BoundedSemaphore(WORKERS)


class Upkeep:
    """Of one database's archive. `error` may be read by any thread, `write` called by the archiver's."""

    def __init__(self, database: Database, store: Store, policy: ArchivePolicy, catalogue: Catalogue) -> None:
        self.error: str | None = None
        self._database = database
        self._store = store
        self._policy = policy
        self._catalogue = catalogue
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        # Whoever wrote a file proved it before the next one of its level, so only the newest may be unproven.
        self._unproven = {file.key for level in LEVELS if (file := catalogue.newest(level)) is not None}
        self._compacted_ms = {
            level: file.timestamp_ms if (file := catalogue.newest(level)) else _now_ms()
            for level in range(1, len(policy.level_intervals_s) + 1)
        }
        self._floor_txid = 0
        self._delete_not_before_s = 0.0

    # For the archiver's thread

    def start_when_due(self) -> None:
        """Begin what is due now, unless it is being done already."""
        if self._thread is not None and self._thread.is_alive():
            return
        if self._due(_now_ms()):
            name = f"upkeep-{self._database.name}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def wait_s(self) -> float:
        """When to ask again, if nothing is archived meanwhile."""
        if not self._settled():
            interval_ms = self._policy.level_intervals_s[0] * 1000
            return (interval_ms - _now_ms() % interval_ms) / 1000 + 0.001
        return min(SETTLED_S, self._policy.snapshot_interval_s, self._policy.retention_s)

    def write(self, level: int, written: Written, file: BinaryIO) -> ArchiveFile:
        """Put a file into the archive."""
        header, size = written.header, written.trailer.size
        key = ltx_key(self._store, level, header.min_txid, header.max_txid)
        try:
            file.seek(0)
            self._store.put(key, file, timestamp_ms=header.timestamp_ms, if_absent=True)
        except ObjectExists:
            # Ours, when the answer to an earlier put was lost; the same state in any case, or not ours at all.
            if prove(self._store, key, tick=self._tick).database_checksum != header.database_checksum:
                raise Unavailable(
                    f"{key} is in {self._store.url} already, with another content: does another primary archive there?"
                ) from None
        there = ArchiveFile(level, header.min_txid, header.max_txid, size, header.timestamp_ms, key)
        if level:
            self._unproven.add(key)
        self._catalogue.add(there)
        return there

    def stop(self, wait_s: float) -> None:
        """Give up what is being done; the next process takes it up."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(wait_s)

    # The work

    def _levels(self) -> range:
        return range(1, len(self._policy.level_intervals_s) + 1)

    def _settled(self) -> bool:
        if self._policy.delete and self._catalogue.end_txid(0):
            return False
        return not any(self._inputs(level) for level in self._levels())

    def _due(self, now_ms: int) -> bool:
        compactions = any(self._compaction_due(level, now_ms) for level in self._levels())
        return compactions or snapshot_due(self._catalogue.all(), self._policy, now_ms) or self._may_delete(now_ms)

    def _compaction_due(self, level: int, now_ms: int) -> bool:
        passed = interval_passed(now_ms, self._compacted_ms[level], self._policy.level_intervals_s[level - 1])
        return passed and bool(self._inputs(level))

    def _may_delete(self, now_ms: int) -> bool:
        if time.monotonic() < self._delete_not_before_s:
            return False
        return bool(expired(self._catalogue.all(), self._policy, now_ms).files)

    def _inputs(self, level: int) -> list[ArchiveFile]:
        end_txid = max(self._catalogue.end_txid(level), self._floor_txid)
        return compaction_inputs(self._catalogue.level(level - 1), end_txid)

    def _run(self) -> None:
        with _working:
            try:
                self._work()
            except (WalcastError, OSError) as error:
                if not self._stop.is_set() and str(error) != self.error:
                    log.warning("archive upkeep", extra={"url": self._store.url, "error": str(error)})
                self.error = str(error)
            except Exception as error:
                log.exception("archive upkeep", extra={"url": self._store.url})
                self.error = str(error) or type(error).__name__
            else:
                self.error = None

    def _work(self) -> None:
        now_ms = _now_ms()
        for level in self._levels():
            if self._compaction_due(level, now_ms):
                self._compact_level(level)
                self._compacted_ms[level] = now_ms
        if snapshot_due(self._catalogue.all(), self._policy, now_ms):
            self._take_snapshot()
        if self._may_delete(now_ms):
            self._delete_expired(now_ms)

    def _compact_level(self, level: int) -> None:
        while inputs := self._inputs(level):
            try:
                file, written = self._compact(level, inputs)
            except (Corrupt, ObjectMissing) as error:
                # Whatever is wrong with an input: a snapshot bridges it, and compaction goes on behind it.
                log.error("bridging a damaged archive", extra={"url": self._store.url, "error": str(error)})  # noqa: TRY400
                if isinstance(error, ObjectMissing):
                    self._catalogue.remove(file for file in inputs if file.key == error.key)
                self._floor_txid = self._take_snapshot().max_txid
                return
            self._prove(file, written)
            if len(inputs) < MAX_INPUTS:
                return

    def _compact(self, level: int, inputs: Sequence[ArchiveFile]) -> tuple[ArchiveFile, Written]:
        started = time.monotonic()
        folder = self._database.state.path
        if shutil.disk_usage(folder).free < sum(file.size for file in inputs) + SPARE_BYTES:
            raise Unavailable(f"no room in {folder} to compact the archive")
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(folder)) as spool:
            written = compact(self._store, inputs, spool.write, self._tick)
            file = self.write(level, written, cast(BinaryIO, spool))
        facts = {"level": level, "inputs": len(inputs), "bytes": file.size, "txid": file.max_txid}
        log.debug("compacted", extra=facts | {"seconds": round(time.monotonic() - started, 3)})
        return file, written

    def _take_snapshot(self) -> ArchiveFile:
        with snapshot(self._database, self._tick) as (written, file):
            there = self.write(SNAPSHOT_LEVEL, written, file)
        self._prove(there, written)
        log.info("archived a snapshot", extra={"url": self._store.url, "txid": there.max_txid, "bytes": there.size})
        return there

    def _prove(self, file: ArchiveFile, written: Written | None = None) -> None:
        """Read a file back; a damaged one that was just written is of no use to anybody."""
        try:
            prove(self._store, file.key, written, self._tick)
        except Corrupt:
            if written is not None:
                self._catalogue.remove([file])
                self._store.delete([file.key])
            raise
        self._unproven.discard(file.key)

    def _delete_expired(self, now_ms: int) -> None:
        deleted = 0
        try:
            for batch in delete_expired(
                self._store,
                self._catalogue.all(),
                self._policy,
                now_ms,
                lambda file: file.key in self._unproven,
                self._tick,
            ):
                self._catalogue.remove(batch)
                deleted += len(batch)
        except WalcastError:
            self._delete_not_before_s = time.monotonic() + DELETE_AGAIN_S
            raise
        log.debug("retention", extra={"url": self._store.url, "deleted": deleted})

    def _tick(self) -> None:
        if self._stop.is_set():
            raise Unavailable("stopping")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

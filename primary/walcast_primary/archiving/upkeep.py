"""The archive kept in shape, off the stream's path: compaction into levels, snapshots, retention.

Nothing is deleted before what takes over was read back whole and the files that stay were seen to restore to the same
TXID. Nothing is listed: the catalogue knows. The work is done in a thread that exists only while there is some; all
databases of a process share WORKERS of them, so memory does not grow with their number. One whose store does not answer
is left behind (`attempt.py`), and what it was at waits until it has ended; the other duties go on.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import BinaryIO, cast

from walcast import ltx
from walcast.archive import LEVELS, SNAPSHOT_LEVEL, ArchiveFile
from walcast.errors import ConfigError, Corrupt, DiskFull, Exhausted, Unavailable, WalcastError
from walcast.rarely import Rarely
from walcast.shortage import shortage
from walcast.store import ObjectMissing, Store
from walcast_primary.archiving.backoff import Backoff
from walcast_primary.archiving.catalogue import Catalogue
from walcast_primary.archiving.compaction import Written, compact, prove
from walcast_primary.archiving.compaction_schedule import (
    MAX_INPUTS,
    ArchivePolicy,
    compaction_inputs,
    expired,
    interval_passed,
    snapshot_due,
)
from walcast_primary.archiving.object_writer import probe, put_file
from walcast_primary.archiving.retention import delete_expired
from walcast_primary.archiving.snapshot import snapshot, with_spare
from walcast_primary.archiving.upkeep_attempt import STUCK_S, Attempt, attended
from walcast_primary.database import Database

log = logging.getLogger("walcast.archive")

WORKERS = 2
SPOOL_BYTES = 8 << 20
SETTLED_S = 3600.0
DUTIES = ("owner", "compaction", "snapshot", "retention")
WRITING = ("compaction", "snapshot")
CLOCK_STEP_S = 60.0
AFTER_CLOCK_STEP_S = 600.0

_working = threading.BoundedSemaphore(WORKERS)


class Upkeep:
    """Of one database's archive. `error` may be read by any thread, `write` called by the archiver's."""

    def __init__(
        self,
        database: Database,
        store: Store,
        policy: ArchivePolicy,
        catalogue: Catalogue,
        check_owner: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._whole_store = store
        self._here = threading.local()  # the attempt that runs in a thread, and its view of the store
        self._policy = policy
        self._catalogue = catalogue
        self._check_owner = check_owner
        self._stop = threading.Event()
        self._attempt: Attempt | None = None
        self._left: dict[str, Attempt] = {}  # by duty
        self._errors: dict[str, str] = {}
        self._backoffs = {duty: Backoff() for duty in DUTIES}
        self._said_refused = False
        self._rarely = Rarely(log)
        self._unproven = {file.key for level in LEVELS[1:] for file in catalogue.level(level)}
        self._compacted_ms = {
            level: file.timestamp_ms if (file := catalogue.newest(level)) else _now_ms()
            for level in range(1, len(policy.level_intervals_s) + 1)
        }
        self._floor_txid = 0
        self._clock_s = (time.time(), time.monotonic())
        self._delete_not_before_s = 0.0

    @property
    def error(self) -> str | None:
        """What does not get on, and why; each kind of work clears its own when it succeeds."""
        return "; ".join(f"{work}: {error}" for work, error in list(self._errors.items())) or None

    # For the archiver's thread

    def start_when_due(self) -> None:
        """Begin what is due now, unless it is being done already, or failed a moment ago."""
        if self._attempt is not None and self._attempt.is_alive:
            if not self._attempt.is_stuck:
                return
            self._leave_behind(self._attempt)
        self._watch_clock()
        if self._may_try("owner") and self._due(_now_ms()):
            attempt = Attempt(self._run, f"upkeep-{self._database.name}", _working.release)
            attempt.start()
            self._attempt = attempt

    def _leave_behind(self, attempt: Attempt) -> None:
        attempt.give_up()
        self._attempt, duty = None, attempt.duty
        self._left[duty] = attempt
        self._backoffs[duty].done(time.monotonic(), succeeded=False)
        self._errors[duty] = f"the store has not answered for {STUCK_S:.0f} s; tried again once it has"
        facts = {"url": self._store.url, "work": duty, "error": self._errors[duty]}
        log.warning("archive upkeep hangs; its other work goes on", extra=facts)

    def wait_s(self) -> float:
        """When to ask again, if nothing is archived meanwhile."""
        runs = self._attempt is not None and self._attempt.is_alive
        return min(self._wait_s(), STUCK_S) if runs else self._wait_s()

    def _wait_s(self) -> float:
        if not self._settled():
            interval_ms = self._policy.level_intervals_s[0] * 1000
            return (interval_ms - _now_ms() % interval_ms) / 1000 + 0.001
        return min(SETTLED_S, self._policy.snapshot_interval_s, self._policy.retention_s)

    def write(self, level: int, written: Written, file: BinaryIO) -> ArchiveFile:
        """Put a file into the archive, and know of it."""
        there = put_file(self._store, level, written, file)
        if level:
            self._unproven.add(there.key)
        self._catalogue.add(there)
        return there

    def stop(self, wait_s: float) -> None:
        """Give up what is being done; the next process takes it up."""
        self._stop.set()
        if self._attempt is not None:
            self._attempt.join(wait_s)

    # What is due

    def _levels(self) -> range:
        return range(1, len(self._policy.level_intervals_s) + 1)

    def _settled(self) -> bool:
        if self._errors or (self._policy.delete and self._catalogue.end_txid(0)):
            return False
        return not any(self._inputs(level) for level in self._levels())

    def _due(self, now_ms: int) -> bool:
        compactions = any(self._compaction_due(level, now_ms) for level in self._levels())
        return (
            (compactions and self._may_try("compaction"))
            or (self._snapshot_due(now_ms) and self._may_try("snapshot"))
            or (self._may_try("retention") and self._may_delete(now_ms))
        )

    def _may_try(self, work: str) -> bool:
        left = self._left.get(work)
        if left is not None and left.is_alive:
            return False
        return self._backoffs[work].may_try(time.monotonic())

    def _compaction_due(self, level: int, now_ms: int) -> bool:
        passed = interval_passed(now_ms, self._compacted_ms[level], self._policy.level_intervals_s[level - 1])
        return passed and bool(self._inputs(level))

    def _snapshot_due(self, now_ms: int) -> bool:
        # Where timestamps run ahead of the clock, a snapshot that was just made is not one from the future.
        return snapshot_due(self._catalogue.all(), self._policy, max(now_ms, self._database.log.clock.last_ms))

    def _may_delete(self, now_ms: int) -> bool:
        if time.monotonic() < self._delete_not_before_s:
            return False
        return bool(expired(self._catalogue.all(), self._policy, now_ms).files)

    def _inputs(self, level: int) -> list[ArchiveFile]:
        end_txid = max(self._catalogue.end_txid(level), self._floor_txid)
        return compaction_inputs(self._catalogue.level(level - 1), end_txid)

    def _watch_clock(self) -> None:
        """A clock that jumped must not be the reason to delete; it may be set right again."""
        wall_s, monotonic_s = self._clock_s
        self._clock_s = (time.time(), time.monotonic())
        drift_s = (self._clock_s[0] - wall_s) - (self._clock_s[1] - monotonic_s)
        if abs(drift_s) > CLOCK_STEP_S:
            log.warning("the clock was set; nothing is deleted for a while", extra={"by_s": round(drift_s)})
            self._delete_not_before_s = time.monotonic() + AFTER_CLOCK_STEP_S

    # The work

    @property
    def _store(self) -> Store:
        """As the present thread may use it."""
        store: Store = getattr(self._here, "store", self._whole_store)
        return store

    def _run(self, attempt: Attempt) -> None:
        while not _working.acquire(timeout=1.0):
            if self._stop.is_set():
                return
        attempt.check()
        self._here.attempt, self._here.store = attempt, attended(self._whole_store, attempt)
        steps = {
            "compaction": self._compact_levels,
            "snapshot": self._snapshot_when_due,
            "retention": self._delete_when_due,
        }
        try:
            now_ms = _now_ms()
            if self._try("owner", lambda _: self._check_owner(), now_ms, attempt):
                # What failed before comes last: it may be long about it.
                for work in sorted(steps, key=lambda work: self._backoffs[work].failures):
                    self._try(work, steps[work], now_ms, attempt)
        finally:
            attempt.release()

    def _try(self, work: str, step: Callable[[int], None], now_ms: int, attempt: Attempt) -> bool:
        """False when it failed, now or a moment ago."""
        if attempt.given_up or not self._may_try(work):
            return False
        attempt.duty = work
        try:
            attempt.check()
            step(now_ms)
            attempt.check()
        except Exception as error:
            known = shortage(error, self._database.state.path) or error
            text = str(known) or type(known).__name__
            if self._stop.is_set() or self._database.tenure.ended or attempt.given_up:
                return False
            self._backoffs[work].done(time.monotonic(), succeeded=False)
            key = work, (type(known).__name__ if isinstance(known, DiskFull | Exhausted) else text)
            if isinstance(error, ConfigError) and work == "retention":
                self._say_refused(text)
            elif self._rarely.due(key) is not None:
                expected = isinstance(error, WalcastError | OSError)
                facts = {"url": self._store.url, "work": work, "error": text}
                log.warning("archive upkeep failed, trying again", extra=facts, exc_info=not expected)
            self._errors[work] = text
            return False
        self._backoffs[work].done(time.monotonic(), succeeded=True)
        if self._errors.pop(work, None) is not None:
            self._rarely.forget_all()
            self._said_refused = self._said_refused and work != "retention"
        return True

    def _say_refused(self, text: str) -> None:
        """An archive that must not be deleted from is one that somebody may want: it is said once."""
        if not self._said_refused:
            self._said_refused = True
            facts = {"url": self._store.url, "error": text}
            log.warning("expired files stay in the archive: the store does not allow them to be deleted", extra=facts)

    def _compact_levels(self, now_ms: int) -> None:
        for level in self._levels():
            if self._compaction_due(level, now_ms):
                self._compact_level(level)
                self._compacted_ms[level] = now_ms

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
            self._prove_written(file, written)
            if len(inputs) < MAX_INPUTS:
                return

    def _compact(self, level: int, inputs: Sequence[ArchiveFile]) -> tuple[ArchiveFile, Written]:
        started = time.monotonic()
        folder = self._database.state.path
        if shutil.disk_usage(folder).free < with_spare(sum(file.size for file in inputs)):
            raise Unavailable(f"no room in {folder} to compact the archive")
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(folder)) as spool:
            written = compact(self._store, inputs, spool.write, self._tick)
            file = self.write(level, written, cast(BinaryIO, spool))
        facts = {"level": level, "inputs": len(inputs), "bytes": file.size, "txid": file.max_txid}
        log.debug("compacted", extra=facts | {"seconds": round(time.monotonic() - started, 3)})
        return file, written

    def _snapshot_when_due(self, now_ms: int) -> None:
        if self._snapshot_due(now_ms):
            self._take_snapshot()

    def _take_snapshot(self) -> ArchiveFile:
        if any(self._backoffs[work].failures for work in WRITING):
            probe(self._store)  # before the whole database is copied for a store that is away
        with snapshot(self._database, self._tick) as (written, file):
            there = self.write(SNAPSHOT_LEVEL, written, file)
        self._prove_written(there, written)
        log.info("archived a snapshot", extra={"url": self._store.url, "txid": there.max_txid, "bytes": there.size})
        return there

    def _prove_written(self, file: ArchiveFile, written: Written) -> None:
        """Read back what was written. `put_file` may have found the same state there in other bytes."""
        header = self._prove(file)
        if header.database_checksum != written.header.database_checksum:
            raise Corrupt(f"{file.key} in {self._store.url} is not what was written there")

    def _prove(self, file: ArchiveFile) -> ltx.Header:
        """Read a file back, if that was not done yet. One that is damaged is of no use: it goes, so that what it was to
        stand for is not taken for kept, and can be written again."""
        try:
            header = self._read_twice(file)
        except Corrupt:
            self._catalogue.remove([file])
            with suppress(ConfigError):  # it may be that nothing may be deleted
                self._store.delete([file.key])
            raise
        except ObjectMissing:
            self._catalogue.remove([file])
            raise
        self._unproven.discard(file.key)
        return header

    def _read_twice(self, file: ArchiveFile) -> ltx.Header:
        """Once, if it is well; it may have been the reading that was not."""
        try:
            return prove(self._store, file.key, tick=self._tick)
        except Corrupt:
            return prove(self._store, file.key, tick=self._tick)

    def _prove_once(self, file: ArchiveFile) -> None:
        if file.key in self._unproven:
            self._prove(file)

    def _delete_when_due(self, now_ms: int) -> None:
        if not self._may_delete(now_ms):
            return
        deleted = 0
        files = self._catalogue.all()
        for batch in delete_expired(self._store, files, self._policy, now_ms, self._prove_once):
            self._catalogue.remove(batch)
            deleted += len(batch)
            self._tick()
        log.debug("retention", extra={"url": self._store.url, "deleted": deleted})

    def _tick(self) -> None:
        if self._stop.is_set():
            raise Unavailable("stopping")
        attempt: Attempt | None = getattr(self._here, "attempt", None)
        if attempt is not None:
            attempt.check()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

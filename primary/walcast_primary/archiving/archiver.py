"""The log → the archive: at most one upload a second, none when nothing was committed, never in the stream's way.

Each upload merges the entries since the last one, up to MERGE_BYTES. An archive without a beginning gets a snapshot.
When the store was away for longer than the log reaches, one file takes the archive over all that it missed
(`unarchived.py`). One listing at the start; after that nothing is asked.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from walcast.archive import SNAPSHOT_LEVEL, ArchiveFile, list_files
from walcast.archive.clocks import ClockStep, add_clock_steps
from walcast.errors import ConfigError, Corrupt, Unavailable, WalcastError
from walcast.identity import OtherDatabase
from walcast.position import Position
from walcast.rarely import Rarely
from walcast.shortage import shortage
from walcast.store import Store
from walcast.terms import TermStart
from walcast_primary.archiving.catalogue import Catalogue
from walcast_primary.archiving.compaction import Written
from walcast_primary.archiving.compaction_schedule import ArchivePolicy
from walcast_primary.archiving.lineage import archive_end, begin_behind, continues, newest_txid
from walcast_primary.archiving.merging import merge
from walcast_primary.archiving.object_writer import probe
from walcast_primary.archiving.overtaken import check_not_gone_on
from walcast_primary.archiving.ownership import Ownership
from walcast_primary.archiving.quarantine import of_no_history, set_aside
from walcast_primary.archiving.snapshot import difference, snapshot
from walcast_primary.archiving.unarchived_pages import Unarchived
from walcast_primary.archiving.upkeep import Upkeep
from walcast_primary.database import Database
from walcast_primary.transaction_log.segment import Entry
from walcast_primary.transaction_log.transaction_log import Known

log = logging.getLogger("walcast.archive")

INTERVAL_S = 1.0
MERGE_BYTES = 64 << 20
SPOOL_BYTES = 8 << 20
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
DRAIN_S = 5.0
GIVE_UP_S = 1.0  # what does not end within that is left behind: nothing depends on it


class Archiver:
    """Uploads one database's transactions, in a thread of its own. Whatever has no underscore may be used by any.

    `txid` is how far the archive reaches; `error` why it does not get further, None while all is well. To be made
    before the database's capture starts, so that what the log lets go of is noted from the beginning. `take_over`: an
    archive that belongs to another database is to be this one's; `take_empty`: if it has nothing of that one.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        policy: ArchivePolicy = ArchivePolicy(),  # noqa: B008 - frozen
        *,
        history: Sequence[TermStart] = (),
        take_over: bool = False,
        take_empty: bool = False,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.store = store
        self._history = history
        self.policy = policy
        self.txid = 0
        self.error: str | None = None
        self._rarely = Rarely(log)
        self._database = database
        self._interval_s = interval_s
        self._position: Position | None = None
        self._take_over = take_over
        self._ownership = Ownership(store, database, take_over=take_over, take_empty=take_empty)
        self._unarchived = Unarchived(database.state.path, database.log)
        self._catalogue: Catalogue | None = None
        self._upkeep: Upkeep | None = None
        self._relist = False
        self._behind_since_s: float | None = time.monotonic()
        self._grown = threading.Event()
        self._last_txid = 0
        self._stop = threading.Event()
        self._abandoned = threading.Event()
        self._stop_listening = database.log.listen(self._on_append)
        self._thread = threading.Thread(target=self._run, name=f"archive-{database.name}", daemon=True)

    @property
    def behind_s(self) -> float:
        """For how long there has been something that is not in the archive yet; 0 when it has everything."""
        since = self._behind_since_s
        return 0.0 if since is None else time.monotonic() - since

    @property
    def upkeep_error(self) -> str | None:
        """Why compaction, snapshots or retention do not get on; the archive is restorable all the same."""
        return self._upkeep.error if self._upkeep else None

    def start(self) -> None:
        """Begin in the background."""
        self._grown.set()
        self._thread.start()

    def look_again(self) -> None:
        """Somebody else put a snapshot into the archive, or deleted what was old."""
        self._relist = True
        self._grown.set()

    def missed(self, archived: Position, position: Position, pages: NDArray[np.uint32]) -> None:
        """Before `start`: the archive ends at `archived`, the log begins at `position`, and `pages` changed between."""
        self._unarchived.begin(archived, position, pages)

    def finish(self) -> None:
        """Upload what is in the log now, and end: begun here, and over once it has `ended`. Upkeep gives up."""
        if not self._stop.is_set():
            self._stop_listening()
            self._last_txid = self._database.log.position.txid
        if self._upkeep is not None:
            self._upkeep.stop(0.0)
        self._stop.set()
        self._grown.set()

    @property
    def ended(self) -> bool:
        """Is nothing uploaded any more, or not yet?"""
        return not self._thread.is_alive()

    def stop(self, *, drain_s: float = DRAIN_S) -> None:
        """Upload what is left, for `drain_s` seconds at most, and end."""
        self.finish()
        if self._thread.is_alive():
            self._thread.join(drain_s)
        self._abandoned.set()
        give_up_s = min(drain_s, GIVE_UP_S)
        if self._upkeep is not None:
            self._upkeep.stop(give_up_s)
        if self._thread.is_alive():
            self._thread.join(give_up_s)

    def _on_append(self) -> None:
        if self._behind_since_s is None:
            self._behind_since_s = time.monotonic()
        self._grown.set()

    # The thread

    def _run(self) -> None:
        failures = 0
        while True:
            stopping = self._stop.is_set()
            self._grown.clear()
            began = time.monotonic()
            try:
                self._take_a_turn()
                while stopping and self._is_behind() and self.txid < self._last_txid:  # apps may go on
                    self._upload_next()
                if not stopping and self._upkeep is not None:
                    self._upkeep.start_when_due()
            except Exception as error:  # noqa: BLE001 - logged, with its traceback when nobody expects it
                with suppress(MemoryError):
                    self._failed(error)
                wait_s = RETRY_S[min(failures, len(RETRY_S) - 1)]
                failures += 1
                if stopping:
                    return
                self._stop.wait(wait_s)  # then there is one last try
                self._grown.set()
                continue
            if self.error:
                self._rarely.forget_all()
                log.info("archiving again", extra={"url": self.store.url, "txid": self.txid})
            self.error, failures = None, 0
            if stopping:
                return
            assert self._upkeep is not None  # the turn says so
            if not self._is_behind():
                self._grown.wait(self._upkeep.wait_s())
            self._stop.wait(max(0.0, began + self._interval_s - time.monotonic()))

    def _failed(self, error: Exception) -> None:
        known = shortage(error, self._database.state.path)
        error = known or error
        key = type(known).__name__ if known else str(error)  # how much is free, and lacks, changes all the time
        if isinstance(error, OtherDatabase):
            if str(error) != self.error:
                log.error("the archive belongs to another database; nothing is uploaded", extra={"error": str(error)})
        elif self._database.tenure.ended:
            log.debug("archives no more", extra={"url": self.store.url, "reason": str(error)})  # its end was said
        elif self._rarely.due(key) is not None:
            expected = isinstance(error, WalcastError | OSError)
            facts = {"url": self.store.url, "error": str(error)}
            log.warning("cannot archive, trying again", extra=facts, exc_info=not expected)
        self.error = str(error) or type(error).__name__

    def _take_a_turn(self) -> None:
        """Upload one file, if there is anything to upload."""
        if self._ownership.lost is not None:
            self._ownership.check()
            self._begin_anew()
        if self._catalogue is None:
            self._catalogue, self._position = self._begin()
            self._upkeep = Upkeep(self._database, self.store, self.policy, self._catalogue, self._ownership.check)
        if self._relist:
            self._relist = False
            before = self._catalogue.all()
            self._catalogue.correct(before, self._list())
        if self._position is None:
            self._upload_snapshot()
        elif self._is_behind():
            self._upload_next()
        self._note_how_far_behind()

    def _note_how_far_behind(self) -> None:
        if self._is_behind():
            entry = self._database.log.after(self._position.txid) if self._position else None
            if entry is not None and entry.captured_ns:
                self._behind_since_s = entry.captured_ns / 1e9
            return
        self._behind_since_s = None
        if self._is_behind():  # since the last look
            self._on_append()

    def _is_behind(self) -> bool:
        return self._position is None or self._position.txid < self._database.log.position.txid

    def _begin(self) -> tuple[Catalogue, Position | None]:
        """What is in the archive, and where it ends; None where this log does not go on from that."""
        self._ownership.claim(self._stop.wait)
        self.store.tidy()
        files = self._list()
        end = archive_end(self.store, files)
        if not continues(self._database, end):
            if files and not self._take_over:
                check_not_gone_on(self._database, self.store, files)
            if files:
                begin_behind(self._database, newest_txid(files))
            return Catalogue(files), None
        assert end is not None
        self.txid = end.txid
        return Catalogue(files), end

    def _begin_anew(self) -> None:
        """What another database's primary left there meanwhile is not known."""
        if self._upkeep is not None:
            self._upkeep.stop(DRAIN_S)
        self._catalogue = self._upkeep = self._position = None

    def _list(self) -> list[ArchiveFile]:
        """What there is, less what is of no history of this set: that is set aside."""
        files = list_files(self.store)
        others = of_no_history(files, self._history)
        set_aside(self.store, others, self._history, str(self._database.state.path))
        keys = {file.key for file in others}
        return [file for file in files if file.key not in keys]

    def _upload_next(self) -> None:
        """One file more: the next entries, or, where the log does not continue the archive, what bridges that."""
        assert self._position is not None
        if steps := self._database.log.clock.steps:
            self._note_clock(steps)
        known = self._database.log.knows(self._position)
        if known is Known.DIVERGED:
            begin_behind(self._database, self._position.txid)
            self._upload_snapshot()
            return
        entries = self._next_entries() if known is Known.YES else []
        if not entries:
            self._bridge()
            return
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(self._database.state.path)) as file:
            try:
                written = merge(entries, file.write)
            except Corrupt as error:
                log.error("cannot read the log", extra={"error": str(error)})  # noqa: TRY400
                self._upload_snapshot()
                return
            self._write(0, written, cast(BinaryIO, file))
        self._moved(entries[-1].position, continued=True)

    def _note_clock(self, steps: Sequence[ClockStep]) -> None:
        """That only explains, so an archive in which no object may be written anew gets all the rest without it."""
        self._ownership.check()
        try:
            add_clock_steps(self.store, steps)
        except ConfigError as error:
            facts = {"url": self.store.url, "error": str(error)}
            log.warning("cannot note in the archive that the clock was set back", extra=facts)
        self._database.log.clock.forget(tuple(steps))

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

    def _bridge(self) -> None:
        """The log does not reach back to where the archive is: the pages that changed since, else all."""
        assert self._position is not None
        if not self._unarchived.connects(self._position):
            self._upload_snapshot()
            return
        self._probe_after_failure()
        changed = self._unarchived.changed_since_archived
        try:
            with difference(self._database, self._position.txid, changed, self._tick) as (written, file):
                self._write(0, written, file)
        except Corrupt as error:
            log.error("cannot read the log", extra={"error": str(error)})  # noqa: TRY400
            self._upload_snapshot()
            return
        header = written.header
        txids = {"from_txid": header.min_txid, "txid": header.max_txid}
        facts = {"url": self.store.url, "bytes": written.trailer.size, **txids}
        log.info("archived what was missed, as one file", extra=facts)
        self._moved(Position(header.max_txid, header.database_checksum), continued=True)

    def _upload_snapshot(self) -> None:
        self._probe_after_failure()
        with snapshot(self._database, self._tick) as (written, file):
            self._write(SNAPSHOT_LEVEL, written, file)
        header = written.header
        log.info("archived a snapshot", extra={"url": self.store.url, "txid": header.max_txid})
        self._moved(Position(header.max_txid, header.database_checksum), continued=False)

    def _probe_after_failure(self) -> None:
        """Is the store there again? Asked before the whole database is copied for it."""
        if self.error:
            probe(self.store)

    def _write(self, level: int, written: Written, file: BinaryIO) -> None:
        if self._upkeep is None:
            raise Unavailable("the archive was not listed yet")
        self._ownership.check()
        self._upkeep.write(level, written, file)

    def _moved(self, position: Position, *, continued: bool) -> None:
        self._tick()  # the state folder may be another's by now
        self._position, self.txid = position, position.txid
        self._unarchived.move(position, continued=continued)

    def _tick(self) -> None:
        if self._abandoned.is_set():
            raise Unavailable("stopping")

"""The capture thread of one database: wait for commits, log them, checkpoint, answer barriers.

It owns the anchor, the capture and the checkpointer. It ends when told to, or by itself when going on would publish
something wrong, or could not go on for so long that holding the anchor would do the app harm; `failure` says why.
What passes (a full disk, a busy lock) is tried again, and `trouble` says it meanwhile. Where room or descriptors lack
for that long the anchor is let go, so that the app's WAL can begin anew, and all pages are compared once they are back.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import apsw

from walcast.errors import ConfigError, DiskFull, LostContinuity, Stopped, Unavailable, WalcastError
from walcast.locks import try_lock, unlock
from walcast.position import Position
from walcast.rarely import Rarely
from walcast.shortage import disk_error, reason, shortage
from walcast.statusfile import LOOK_BOUND_S, doubled
from walcast.wal import WAL_HEADER_SIZE, frame_offset
from walcast.walindex import LOCK_WRITE
from walcast_primary.capture.anchor import Anchor
from walcast_primary.capture.anchor_pace import CHECKPOINT_LOOK_S, AnchorPace
from walcast_primary.capture.capture import Capture
from walcast_primary.capture.file_identity import SizeWatch, Truncated, beside_wal, check_same_files, check_wal
from walcast_primary.capture.foreign_writes import ForeignWrites
from walcast_primary.capture.opening import check_schema
from walcast_primary.capture.wakeup import Wakeup
from walcast_primary.checkpoint.checkpoint_refusal import allow_checkpoints, refuse_checkpoints
from walcast_primary.checkpoint.checkpointer import Checkpointer
from walcast_primary.checkpoint.disk_relief import Relief
from walcast_primary.checkpoint.long_readers import LongReaders
from walcast_primary.recovery.boot import Boot
from walcast_primary.recovery.redo import recover
from walcast_primary.recovery.resume import Scanned, begin_restored, compare, resume

log = logging.getLogger("walcast.primary")

UNQUIET_S = 0.1
LOOK_AROUND_S = 0.25
IDLE_S = 1.0
LOOK_AGAIN_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, *[0.005] * 17)
BUSY_COMMITS = 32
BUSY_PAUSE_S = 0.008
RETRY_S = 1.0
TROUBLE_S = 45.0  # less than what a follower may have missed and still take over by itself: `max_lag_s`
HOLD_WINDOW_S = 0.004
HOLD_AGAIN_S = 0.0005
SKIP_TIMEOUT_S = 60.0
STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Captured:
    """A state that is in the log: its position and how many pages the database has there."""

    position: Position
    commit_pages: int


class CaptureLoop:
    """Runs in a thread from `start` to `stop`; `barrier`, `hold_writers`, `skip_to` and `recheck` are for others."""

    def __init__(self, name: str, anchor: Anchor, capture: Capture) -> None:
        self.name = name
        self.failure: WalcastError | None = None
        self.trouble: str | None = None
        self.on_failure: Callable[[], object] = lambda: None
        self._anchor = anchor
        self._capture = capture
        self._files = capture.files
        self._log = capture.log
        self._checkpointer = Checkpointer(self._files, capture.page_size, anchor, capture.settle)
        self._relief = Relief(name, self._log, self._checkpointer)
        self._rarely = Rarely(log)
        self._lacks: Unavailable | None = None
        self._size = SizeWatch(self._files)
        self.long_readers = LongReaders(name, self._files)
        self.foreign = ForeignWrites(name, capture, self._log.directory.parent)
        self._wakeup = Wakeup(self._files.path.with_name(self._files.path.name + "-wal"), self._files.path)
        self._lock = threading.Lock()
        self._barriers: list[Future[Captured]] = []
        self._holders: list[Future[Captured]] = []
        self._hold = False
        self.holds_writers = False
        self._stopping = False
        self._skip_to = 0
        self._compare_because: str | None = None
        self._trouble_s = 0.0
        self._complete_s = time.monotonic()
        self._pace = AnchorPace(anchor, capture)
        self._looked_s = 0.0
        self.foreign.wake = self._wakeup.call
        self._thread = threading.Thread(target=self._run, name=f"capture-{name}", daemon=True)

    # For others

    @property
    def look_age_ms(self) -> int:
        """For how long it has not been known that every commit is in the log: the age of the newest look at the WAL
        whose capture succeeded."""
        return max(0, int((time.monotonic() - self._complete_s) * 1000))

    @property
    def blindness(self) -> str | None:
        """What to say when that is longer than a look takes. The text changes only now and then."""
        age_s = self.look_age_ms / 1000
        if age_s <= LOOK_BOUND_S:
            return None
        return (
            f"capture has not looked at the WAL for more than {doubled(age_s, LOOK_BOUND_S)} s: "
            "what was committed since is not replicated"
        )

    def start(self, *, resumed: bool = False, held: bool = False) -> None:
        """Find where to go on, unless that was done, then capture in the background. `held`: with the write lock, which
        the caller has taken."""
        if not resumed:
            self.find_place(None)
        self._hold = self.holds_writers = held
        if held:
            self._complete_s = time.monotonic()
        self._thread.start()

    def find_place(self, last_boot: Boot | None, *, trusted: bool = False) -> None:
        """Bring log and database together. Before `start`. `last_boot`: when a primary last served this database.
        `trusted`: what the database holds is meant, whatever the log says: that is kept aside. A log that fills its
        disk is cut for it."""
        self._complete_s = time.monotonic()
        while True:
            try:
                self._find_place(last_boot, trusted=trusted)
                return
            except OSError as error:
                known = disk_error(error, self._log.directory)
                if not (isinstance(known, DiskFull) and self._make_room()):
                    raise known from error

    def _find_place(self, last_boot: Boot | None, *, trusted: bool) -> None:
        why = "the database was damaged and is whole again" if trusted else "the WAL does not continue the log"
        resumed = not trusted and resume(self._capture)
        if resumed:
            now = Boot.now(self._files.db_fd, self._files.wal_fd)
            if now.has_wal_of_another(last_boot):
                what = f"{self._files.path} was put in the place of another database"
                raise ConfigError(f"{what}: {beside_wal(self._files.path)}, and start again")
            if not now.lost_power_since(last_boot):
                self.foreign.distrust()
                return
            # The WAL is whole, but a checkpoint that was not synced may have been lost from under it.
            why = "the machine was started since"
        held = self._log.checksums
        if held is None or held.page_size != self._capture.page_size:
            check_schema(self._files.path)
            restored = held is None and begin_restored(self._capture)
            self._compare("it was restored" if restored else "no log yet")
            return
        recovered = recover(self._capture, last_boot, lambda: self._stopping, resumed=resumed, trusted=trusted)
        if not recovered.replayed:
            check_schema(self._files.path)
            self._compare(why, recovered.scanned)

    def hold_writers(self) -> Future[Captured]:
        """Take SQLite's write lock as soon as no app has it, and keep it: apps that write get SQLITE_BUSY. The state
        covers every commit made before. Unavailable when writers are let go first, or capture ends."""
        future: Future[Captured] = Future()
        with self._lock:
            if self._stopping or self.failure:
                raise self.failure or Unavailable("stopping")
            self._hold = True
            self._holders.append(future)
            self._wakeup.call()
        return future

    def let_writers_go(self) -> None:
        """The other way round."""
        with self._lock:
            self._hold = False
            waiting, self._holders = self._holders, []
            if self.holds_writers:
                self.holds_writers = False
                unlock(self._files.shm_fd, LOCK_WRITE)
        _fail(waiting, Unavailable("writers are not held any longer"))

    def barrier(self) -> Future[Captured]:
        """A state that covers every commit made before this call; Unavailable when the database is not served."""
        future: Future[Captured] = Future()
        with self._lock:
            if self._stopping or self.failure:
                raise self.failure or Unavailable("stopping")
            self._barriers.append(future)
            self._wakeup.call()
        return future

    def skip_to(self, txid: int) -> None:
        """Give the present state a TXID of at least `txid`: a new history, whose followers compare pages once."""
        self._skip_to = txid
        self.barrier().result(SKIP_TIMEOUT_S)

    def recheck(self, reason: str) -> None:
        """Something did not have the checksum that the log says: compare all pages, and publish what differs."""
        self._compare_because = reason
        with self._lock:
            if not self._stopping:
                self._wakeup.call()

    def stop(self) -> None:
        """End the thread, and give back what it held. Stopped when it does not end: it waits for the disk, and what it
        uses must stay open."""
        with self._lock:
            self._stopping = True
            self._wakeup.call()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        self._fail_barriers(Unavailable("stopping"))
        if self._thread.is_alive():
            raise Stopped(f"{self._files.path}: capture has not ended within {STOP_S:.0f} s: a disk does not answer")
        allow_checkpoints(self._files)
        self.foreign.close(Unavailable("stopping"))
        self._checkpointer.close()
        self._wakeup.close()

    # The thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._try()
                except MemoryError:  # not even enough to say so
                    self._wakeup.pause(RETRY_S)
        except WalcastError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(Stopped(f"capture ended: {type(error).__name__}: {error}"))
            raise

    def _try(self) -> None:
        """Work until told to stop, or something fails that may pass."""
        try:
            if not self._anchor.is_held and not self._resume():
                # Writers can be held all the same: a node that is fenced must not take any more commits.
                self._wakeup.pause(HOLD_AGAIN_S if self._hold_when_asked() else RETRY_S)
                return
            if self.foreign.found:
                why = self.foreign.judge(self._wakeup.pause, lambda: self._stopping, self._check_size)
                self._compare_because = why or self._compare_because
            self._compare_when_due()
            self._work()
        except LostContinuity as error:
            self._compare_because = str(error)
        except (Unavailable, apsw.BusyError, apsw.LockedError, apsw.ProtocolError) as error:
            log.debug("busy", extra={"database": self.name, "error": str(error)})
            allow_checkpoints(self._files)  # who has to recover the wal-index needs that lock
            self._wakeup.pause(LOOK_AGAIN_S[4])
        except (apsw.Error, OSError, MemoryError) as error:
            check_same_files(self._files)
            path = self._files.path if isinstance(error, apsw.Error) else self._log.directory
            self._lacks = shortage(error, path)
            if isinstance(self._lacks, DiskFull) and self._make_room():
                return  # there is some now
            self._in_trouble(str(self._lacks or reason(error)))
            self._wakeup.pause(RETRY_S)

    def _make_room(self) -> bool:
        try:
            return self._relief.trim(newest=True)
        except OSError:  # not even for that
            return False

    def _compare_when_due(self) -> None:
        why, self._compare_because = self._compare_because, None
        if why is None:
            return
        try:
            self._compare(why)
        except BaseException:  # what is captured without it would not continue the log
            self._compare_because = self._compare_because or why
            raise

    def _in_trouble(self, what: str) -> None:
        """Say it, rarely. While it lasts the anchor keeps the app's WAL from restarting, so it must not last for ever:
        for want of room or descriptors it is let go, anything else is the end."""
        now = time.monotonic()
        if self._anchor.is_held:
            refuse_checkpoints(self._files)
        if self.trouble is None:
            self._trouble_s = now
        self.trouble = what
        key = "trouble", type(self._lacks) if self._lacks else what
        facts = {"database": self.name, "error": what}
        self._rarely.log(logging.ERROR, "cannot capture, trying again", key, facts)
        if now - self._trouble_s > TROUBLE_S:
            if self._lacks is None:
                raise Stopped(f"{self._files.path}: could not capture for {TROUBLE_S:.0f} s: {what}")
            self._anchor.let_go()
            allow_checkpoints(self._files)
            self._relief.suspended()
            self._rarely.log(logging.ERROR, "capture is suspended until that is over", "suspended", facts)

    def _resume(self) -> bool:
        """After the anchor was let go: nobody knows what was committed since, so all pages are compared."""
        if not self._relief.may_resume(self._lacks):
            return False
        self._anchor.hold()
        self._compare_because = "capture was suspended"
        return True

    def _work(self) -> None:
        looks = 0
        quiet = False
        while not self._stopping and self._compare_because is None:
            waits_for_lock = self._hold_when_asked()
            self.foreign.look()
            if self.foreign.found:
                return
            transactions = self._turn()
            if self.trouble is not None:
                allow_checkpoints(self._files)
            self.foreign.answer()
            self._answer_holders()
            if waits_for_lock:
                self._wakeup.pause(HOLD_AGAIN_S)
                continue
            busy = transactions >= BUSY_COMMITS
            if transactions and not self.holds_writers:  # it would give the lock back
                looks = 0
                self._checkpointer.run(self._capture.frame, busy=busy)
                if self._capture.is_unchained:
                    self._checkpointer.renew(self._capture.frame)
            self._relief.when_low(self._capture.frame)
            if self.trouble is not None:
                self._trouble_is_over()
            settled = self._pace.follow(busy=busy)
            self._look_around_when_due()
            if busy:
                self._wakeup.pause(BUSY_PAUSE_S)  # grouping is worth more than latency now
            elif looks < len(LOOK_AGAIN_S) and self._more_is_written():
                self._wakeup.pause(min(LOOK_AGAIN_S[looks], self._pace.longest_pause_s))
                looks += 1
            elif self._pace.checkpoint_runs:
                self._wakeup.pause(CHECKPOINT_LOOK_S)
            elif not self._wakeup.arm():
                idle_s = IDLE_S if quiet else UNQUIET_S
                woken = self._wakeup.wait(idle_s if settled else self._pace.due_in_s)
                quiet = settled and not woken
                looks = 0 if woken else looks

    def _trouble_is_over(self) -> None:
        self.trouble = self._lacks = None
        self._relief.resumed()
        self._rarely.forget_all()
        log.info("capturing again", extra={"database": self.name, "position": str(self._log.position)})

    def _turn(self) -> int:
        """Log what there is, and answer who waits for it."""
        with self._lock:
            waiting, self._barriers = self._barriers, []
        began_s = time.monotonic()
        try:
            transactions = self._capture.capture()
            checksums = self._log.checksums
            assert checksums is not None
            if self._skip_to > self._log.position.txid:
                self._files.sync()
                self._log.start(checksums, Position(self._skip_to, self._log.position.checksum))
        except BaseException:
            with self._lock:
                self._barriers[:0] = waiting
            raise
        self._complete_s = began_s
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(Captured(self._log.position, checksums.commit_pages))
        return transactions

    def _hold_when_asked(self) -> bool:
        """Take the write lock if that was asked for; True while an app has it."""
        if not self._hold or self.holds_writers:
            return False
        give_up_s = time.monotonic() + HOLD_WINDOW_S
        while True:
            with self._lock:
                if not self._hold or try_lock(self._files.shm_fd, LOCK_WRITE):
                    self.holds_writers = self._hold
                    return False
            if time.monotonic() >= give_up_s:
                return True

    def _answer_holders(self) -> None:
        """Called after a capture: what was committed before the lock was taken is in the log."""
        if not self._holders or not self.holds_writers:
            return
        with self._lock:
            waiting, self._holders = self._holders, []
        assert self._log.checksums is not None
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(Captured(self._log.position, self._log.checksums.commit_pages))

    def _more_is_written(self) -> bool:
        """Are there frames behind the last committed one? Then a commit may be about to show in the wal-index: writing
        comes first, with synchronous=FULL an fsync lies between."""
        frame, salt = self._capture.frame, self._capture.salt
        if frame == 0:
            return os.fstat(self._files.wal_fd).st_size > WAL_HEADER_SIZE
        head = os.pread(self._files.wal_fd, 16, frame_offset(frame + 1, self._capture.page_size))
        return head[8:16] == salt[0].to_bytes(4, "big") + salt[1].to_bytes(4, "big")

    def _look_around_when_due(self) -> None:
        """What no event tells: files that are not the ones at their paths any more, or were cut."""
        now = time.monotonic()
        if now - self._looked_s < LOOK_AROUND_S:
            return
        self._looked_s = now
        check_same_files(self._files)
        check_wal(self._files, self._capture.frame, self._capture.salt, self._capture.page_size)
        size = self._size.size  # before the capture: then it knows every commit that a checkpoint may have cut it to
        self._capture.capture()
        try:
            self._size.check(size, self._capture.forget_lowest_pages() * self._capture.page_size)
        except Truncated:
            self.foreign.shrank()  # for good, or for as long as something is being copied over it
        self._log.trim()
        self.long_readers.look_when_due(self._capture.frame * self._capture.frame_size)

    def _check_size(self) -> None:
        """As above, without a capture."""
        self._size.check(self._size.size, self._capture.lowest_pages * self._capture.page_size)

    def _compare(self, reason: str, known: Scanned | None = None) -> None:
        started = time.monotonic()
        pages = compare(self._capture, lambda: self._stopping, known)
        facts = {"database": self.name, "reason": reason, "position": str(self._log.position)}
        if pages is None:
            log.info("began a history", extra=facts)
        else:
            seconds = round(time.monotonic() - started, 3)
            log.info("compared all pages", extra=facts | {"changed_pages": pages, "seconds": seconds})

    def _fail(self, error: WalcastError) -> None:
        self.failure = error
        allow_checkpoints(self._files)
        self._fail_barriers(error)
        self.foreign.close(error)
        self.on_failure()

    def _fail_barriers(self, error: WalcastError) -> None:
        with self._lock:
            waiting, self._barriers, self._holders = self._barriers + self._holders, [], []
        _fail(waiting, error)


def _fail(waiting: list[Future[Captured]], error: WalcastError) -> None:
    for future in waiting:
        if future.set_running_or_notify_cancel():
            future.set_exception(error)

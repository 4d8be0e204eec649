"""Try a restore's plan; when a file of it is damaged or gone, try another plan to the same goal, never to less.

A file that is not what its own checksum says is left out of every further plan. Where whole files contradict each other
one of several is another database's, and nothing tells which: then plans without one of the suspects are tried, the
likeliest first, until one comes out consistent. The archive is listed again after each failure, since what compaction
and retention removed meanwhile is part of another file.

What a plan alone cannot prove is that its files, a single snapshot for one, are not all of another database under this
one's names. So the result is compared with what the other files that end at the same TXID say it should be.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from walcast.archive.damage import Contradiction, DamagedFile
from walcast.archive.files import ArchiveFile, list_files, plan_restore, restorable_txids, usable_files
from walcast.archive.reading import check_all_ends, file_events, read_headers
from walcast.archive.times import timed
from walcast.errors import WalcastError
from walcast.ltx import Header
from walcast.position import format_txid
from walcast.restore.apply import GoOn, Restored
from walcast.store.base import ObjectMissing, Store

log = logging.getLogger("walcast.restore")

T = TypeVar("T")
Attempt = Callable[[Sequence[ArchiveFile], GoOn], T]

_GUESSES_MAX = 16
_ATTEMPTS_MAX = 100
_LISTINGS_MAX = 8  # after so many failures the archive is listed again only when that costs little
_LISTING_SHARE = 10
_NEWEST_FIRST = 8  # after so many damaged snapshots the oldest one has its turn, too
_LOOKED_AT = 16  # snapshots whose ends are looked at when one is damaged; four times as many when another is
_HINT_ROUNDS = 8
_WITNESSES_MAX = 16
_WARNINGS_MAX = 3
_OUTVOTED = 3

Name = tuple[str, int]  # key and size: an object that is written anew in another size is another one


class FileGone(ObjectMissing):
    """An object that is listed is not there, and nothing else covers its transactions."""

    def __init__(self, error: ObjectMissing, hint: str) -> None:
        super().__init__(error.key, error.url)
        self.args = (f"{error}{hint}",)


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked for: exactly a TXID, the newest state not after a time, or without either the newest."""

    txid: int | None = None
    timestamp_ms: int | None = None

    def files(self, store: Store) -> list[ArchiveFile]:
        """The archive's files, with the times that this goal needs."""
        return self.timed(store, list_files(store))

    def timed(self, store: Store, files: list[ArchiveFile]) -> list[ArchiveFile]:
        """These files, with the times that this goal needs."""
        return files if self.timestamp_ms is None else timed(store, files, self.timestamp_ms)

    def allowed(self, files: Sequence[ArchiveFile]) -> list[ArchiveFile]:
        """Those of the files that do not go beyond the goal."""
        return usable_files(files, self.txid, self.timestamp_ms)

    def plan(self, files: Sequence[ArchiveFile], after_txid: int = 0) -> list[ArchiveFile]:
        """Raises as `plan_restore`."""
        return plan_restore(files, txid=self.txid, timestamp_ms=self.timestamp_ms, after_txid=after_txid)


class Around:
    """One restore: the plans that are tried until one is carried out. `files` is the newest listing."""

    def __init__(self, store: Store, goal: Goal, files: list[ArchiveFile]) -> None:
        self._store = store
        self._goal = goal
        self.files = files
        self._bad: set[Name] = set()
        self._doubted: frozenset[Name] = frozenset()
        self._guesses: deque[frozenset[Name]] = deque()
        self._guessed: set[frozenset[Name]] = set()
        self._first: DamagedFile | ObjectMissing | None = None
        self._least_txid = 0  # a plan must reach it
        self._found: list[str] = []  # keys of files that cannot be used, as they were found
        self._looked_at: set[Name] = set()  # snapshots
        self._damaged_snapshots = 0
        self._listings = 0
        self._listed_s = time.monotonic()
        self._listing_took_s = 0.0

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the files that were damaged, gone or another database's, in the order they were found."""
        return tuple(dict.fromkeys([*self._found, *sorted(key for key, _ in self._doubted)]))

    def carry_out(self, attempt: Attempt[T]) -> T:
        """The first attempt that succeeds. Raises the first one's error when none does, with what would be possible."""
        plan = self._goal.plan(self.files)
        self._least_txid = plan[-1].max_txid
        for number in range(_ATTEMPTS_MAX):
            try:
                return attempt(plan, self._go_on)
            except (DamagedFile, ObjectMissing) as error:
                self._first = self._first or error
                self._note(error)
                plan = self._next_plan(error)
                level = logging.WARNING if number < _WARNINGS_MAX else logging.DEBUG
                log.log(
                    level, "going around a file of the archive", extra={"url": self._store.url, "error": str(error)}
                )
        raise self._last_words()

    def confirm(self, restored: Restored) -> None:
        """Raise Contradiction when whole files that end at the same TXID say another database checksum.

        One such file is not heard against `_OUTVOTED` or more that agree. One small request for each file that ends
        there, of which every level has one at most.
        """
        txid, checksum = restored.position.txid, restored.position.checksum
        last = restored.applied[-1]
        others = [file for file in self.files if file.max_txid == txid and file != last][-_WITNESSES_MAX:]
        agreeing, denying = restored.agreeing, list[tuple[ArchiveFile, int]]()
        for file, header in zip(others, read_headers(self._store, others), strict=True):
            if isinstance(header, Header) and header.database_checksum == checksum:
                agreeing += 1
            elif isinstance(header, Header) and header.database_checksum and _is_whole(self._store, file):
                denying.append((file, header.database_checksum))
        if not denying or (len(denying) == 1 and agreeing >= _OUTVOTED):
            return
        file, other = denying[0]
        raise Contradiction(
            last,
            f"the database restored has checksum {checksum:016x}, but {file.key} says {other:016x}: one of them is of "
            "another database",
            tuple(reversed(restored.unconfirmed)) or (last,),
        )

    def _note(self, error: DamagedFile | ObjectMissing) -> None:
        """Learn from a failure, and list again."""
        if isinstance(error, Contradiction):
            for suspect in error.suspects:
                guess = self._doubted | {_name(suspect)}
                if guess not in self._guessed and len(self._guessed) < _GUESSES_MAX:
                    self._guessed.add(guess)
                    self._guesses.append(guess)
        elif isinstance(error, DamagedFile):
            self._bad.add(_name(error.file))
            self._found.append(error.file.key)
            if error.file.is_snapshot:
                self._damaged_snapshots += 1
                self._look_at_snapshots(self._goal.allowed(self.files))
        self._list_again(needed=isinstance(error, ObjectMissing))
        if isinstance(error, ObjectMissing):
            self._found.append(error.key)
            listed = {_name(file) for file in self.files if file.key == error.key}
            self._bad |= listed
            if not listed and self._goal.timestamp_ms is not None:
                self._least_txid = 0  # retention may have left only coarser steps, as for a restore begun now

    def _list_again(self, *, needed: bool) -> None:
        """Unless that would cost most of the time: an archive may have many files, and many that are damaged."""
        began_s = time.monotonic()
        often = self._listings >= _LISTINGS_MAX and began_s - self._listed_s < _LISTING_SHARE * self._listing_took_s
        if often and not needed:
            return
        self.files = self._goal.files(self._store)
        self._listings += 1
        self._listed_s = time.monotonic()
        self._listing_took_s = self._listed_s - began_s

    def _look_at_snapshots(self, files: Sequence[ArchiveFile]) -> None:
        """One snapshot is damaged; where many are, each must not cost a try of its own. What their ends tell of the
        next newest ones is found out at once."""
        snapshots = [file for file in files if file.is_snapshot and not {_name(file)} & (self._looked_at | self._bad)]
        count = _LOOKED_AT * 4 ** min(len(self._looked_at).bit_length() // 2, 8)
        newest = sorted(snapshots, key=lambda file: -file.max_txid)[:count]
        self._looked_at.update(map(_name, newest))
        self._leave_out(check_all_ends(self._store, newest))

    def _leave_out(self, damaged: Sequence[ArchiveFile]) -> None:
        self._bad.update(map(_name, damaged))
        self._found += [file.key for file in damaged]

    def _plan(self) -> list[ArchiveFile]:
        """From the newest snapshot that may be whole. When many were not, every second plan is from the oldest one: it
        is the likeliest to be from before whatever damages them."""
        usable = self._usable()
        if self._damaged_snapshots > _NEWEST_FIRST and self._damaged_snapshots % 2:
            snapshots = [file for file in usable if file.is_snapshot]
            if snapshots:
                oldest = min(snapshots, key=lambda file: file.max_txid)
                with suppress(WalcastError):
                    plan = self._goal.plan([file for file in usable if not file.is_snapshot or file is oldest])
                    if plan[-1].max_txid >= self._least_txid:
                        return plan
        return self._goal.plan(usable)

    def _next_plan(self, error: DamagedFile | ObjectMissing) -> list[ArchiveFile]:
        """The next one to try. Raises the last words when there is none."""
        if isinstance(error, Contradiction):
            if not self._guesses:
                raise self._last_words() from error
            self._doubted = self._guesses.popleft()
        while True:
            try:
                plan = self._plan()
            except WalcastError as no_plan:
                if not self._guesses:
                    raise self._last_words() from no_plan
            else:
                if plan[-1].max_txid >= self._least_txid:
                    self._least_txid = plan[-1].max_txid
                    return plan
                if not self._guesses:
                    raise self._last_words() from error
            self._doubted = self._guesses.popleft()

    def _go_on(self, reached_txid: int, error: ObjectMissing) -> list[ArchiveFile]:
        """The next file of a plan is gone: others that lead on from here. Raises the error when there are none."""
        self._first = self._first or error
        self._note(error)
        try:
            plan = self._goal.plan(self._usable(), reached_txid)
        except WalcastError:
            raise error from None
        if (plan[-1].max_txid if plan else reached_txid) < self._least_txid:
            raise error
        return plan

    def _usable(self) -> list[ArchiveFile]:
        return self._without(self._bad | self._doubted)

    def _without(self, names: Set[Name]) -> list[ArchiveFile]:
        return [file for file in self.files if _name(file) not in names]

    def _restorable(self) -> list[int]:
        """The TXIDs that the archive restores to without what is damaged, or seems to be at a look at its ends."""
        ends: list[int] = []
        for _ in range(_HINT_ROUNDS):
            files = self._goal.allowed(self._without(self._bad.union(*self._guessed)))
            ends = restorable_txids(files)
            if not ends or not self._damaged_snapshots:
                return ends
            snapshot, *rest = plan_restore(files, txid=ends[-1])
            damaged = check_all_ends(self._store, [snapshot, *rest[-_LOOKED_AT:]])
            if not damaged:
                return ends
            self._leave_out(damaged)
            if snapshot in damaged:
                self._look_at_snapshots(files)
        return ends

    def _last_words(self) -> WalcastError:
        """The first error, with the other files that stood in the way and how far the archive reaches without them."""
        first = self._first
        assert first is not None
        ends = self._restorable()
        key = first.file.key if isinstance(first, DamagedFile) else first.key
        others = [other for other in dict.fromkeys(self._found) if other != key]
        more = f"; {', '.join(others[:3])}{' …' if len(others) > 3 else ''} cannot be used either" if others else ""
        hint = f"{more}; without it the archive restores to --txid {format_txid(ends[-1])}" if ends else more
        if isinstance(first, ObjectMissing):
            return FileGone(first, hint)
        return first.retold(hint)


def _name(file: ArchiveFile) -> Name:
    return file.key, file.size


def _is_whole(store: Store, file: ArchiveFile) -> bool:
    try:
        for _ in file_events(store, file):
            pass
    except (DamagedFile, ObjectMissing):
        return False
    return True

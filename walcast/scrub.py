"""The scrubber: pages on disk against the checksums that are held in memory, slowly, in the background.

A `Scrubber` reads one database piece by piece, each in a short read transaction of its own. The checksums that it
compares with may be of another commit than the pages, so a page that differs is a candidate and no more: whoever owns
the database confirms it, at a moment when its checksums and its files are of one state. `suspect` makes one fast pass.

All scrubbers of a process share one thread (`walcast.turns`), and read one after the other: the share of the disk is
the process's.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import apsw

from walcast.checksum import PageChecksums, page_checksum
from walcast.dbfiles import DatabaseFiles, PageReader
from walcast.errors import Corrupt, WalcastError
from walcast.turns import TURNS, Turns

log = logging.getLogger("walcast.scrub")

DEFAULT_BYTES_PER_S = 4 << 20
PIECE_BYTES = 256 << 10
FAST_PIECE_BYTES = 1 << 20
FAST_PAUSES = 2  # a fast pass pauses so many times as long as it reads: apps' checkpoints wait for readers
LEAST_PASS_S = 300.0
MOST_PASS_S = 86400.0
STEADY_BYTES_PER_S = 128 << 10  # some 0.025 % of a core
FIRST_S = 30.0
RETRY_S = 10.0
CONFIRM_S = 30.0
SETTLE_S = 0.02
CALM_S = 2.0  # between two fast passes for suspicions that were wrong, at least
CALM_PASSES = 10  # ... and as a multiple of how long such a pass takes
AGAIN_S = 5.0
AGAIN_MOST_S = 300.0
PAGES_SHOWN = 10
SAMPLE_PAGES = 32

# What reading a file says that is no database any more; of I/O errors, where `is_of_the_file`.
BROKEN = (Corrupt, apsw.CorruptError, apsw.NotADBError, apsw.IOError)
# The others tell of this process or this machine, as that there is no memory to map the wal-index.
_OF_THE_FILE = frozenset(
    [
        apsw.SQLITE_IOERR,
        apsw.SQLITE_IOERR_READ,
        apsw.SQLITE_IOERR_SHORT_READ,
        apsw.SQLITE_IOERR_DATA,
        apsw.SQLITE_IOERR_CORRUPTFS,
        apsw.SQLITE_IOERR_IN_PAGE,
    ]
)


def is_of_the_file(error: BaseException) -> bool:
    """Does what SQLite or a reader says mean that the file is damaged? False for what says nothing of its content."""
    if isinstance(error, apsw.IOError):
        return getattr(error, "extendedresult", apsw.SQLITE_IOERR) in _OF_THE_FILE
    return isinstance(error, BROKEN)


def bytes_per_s(size_bytes: int, most: float) -> float:
    """How fast to read a database of this size: a pass in a day at the latest, a small one no oftener than every five
    minutes, anything between at a steady pace; never faster than `most`."""
    wanted = max(size_bytes / MOST_PASS_S, min(size_bytes / LEAST_PASS_S, STEADY_BYTES_PER_S))
    return min(wanted, most)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A page that does not have the checksum that is held of it. `hidden`: readers take its frame in the WAL until that
    restarts, and only the database file has the wrong one."""

    pgno: int
    hidden: bool


def mismatches(reader: PageReader, first: int, count: int, expected: Sequence[int]) -> list[Mismatch]:
    """Of the pages from `first` on, those of which any version that must be right has not the `expected` checksum."""
    wrong: dict[int, bool] = {}
    for pgno, page, hidden in reader.versions(first, count):
        if page_checksum(pgno, page) != expected[pgno - first]:
            wrong[pgno] = wrong.get(pgno, True) and hidden
    return [Mismatch(pgno, hidden) for pgno, hidden in wrong.items()]


def names_of(pgnos: Sequence[int]) -> str:
    """Page numbers for people: the first few."""
    shown = ", ".join(str(pgno) for pgno in pgnos[:PAGES_SHOWN])
    return f"{shown}, …" if len(pgnos) > PAGES_SHOWN else shown


def sample(count: int) -> list[int]:
    """Of `count` pages page 1, which most writes change, the last, and some others."""
    step = max(1, count // SAMPLE_PAGES)
    return sorted({1, count, *range(1 + random.randrange(step), count + 1, step)}) if count else []


@dataclass(frozen=True, slots=True)
class Progress:
    """For status. `passes` were whole, `mismatches` pages were found wrong, since the process began; the pass under way
    is at `pages_checked`. `last_pass_ms`: when the last whole pass ended, since the epoch; 0: never."""

    passes: int = 0
    pages_checked: int = 0
    mismatches: int = 0
    last_pass_ms: int = 0

    def facts(self) -> dict[str, Any]:
        """As status shows it."""
        return asdict(self)


class OnClean(Protocol):
    """Told of a pass that found nothing."""

    def __call__(self, *, was_trouble: bool) -> object: ...


def _nothing(*, was_trouble: bool) -> None:
    pass


class Scrubber:
    """Of one database, from `start` to `stop`. Any thread may call `suspect`, `again` and read what is public.

    `confirm` takes candidates to whoever owns the database, and answers those that are wrong; what is to be done about
    them is the owner's, and `trouble` is what it says until a whole pass finds nothing. `clean_ms`: when the last whole
    pass began that found nothing, since the epoch; 0: none has.
    """

    def __init__(
        self,
        files: DatabaseFiles,
        connect: Callable[[], apsw.Connection],
        checksums: Callable[[], PageChecksums | None],
        confirm: Callable[[Sequence[int]], Future[list[Mismatch]]],
        *,
        most_bytes_per_s: float = DEFAULT_BYTES_PER_S,
        turns: Turns = TURNS,
    ) -> None:
        self.trouble: str | None = None
        self.progress = Progress()
        self.clean_ms = 0
        self.on_clean: OnClean = _nothing
        self._files = files
        self._connect = connect
        self._checksums = checksums
        self._confirm = confirm
        self._most = most_bytes_per_s
        self._turns = turns
        self._lock = threading.Lock()
        self._suspected = False
        self._fast = False
        self._next = 1
        self._began_s = self._calm_until_s = 0.0
        self._began_ms = 0
        self._again_s = AGAIN_S

    def start(self) -> None:
        """Begin, after a while: there is more to do when a process begins."""
        self._turns.add(self, FIRST_S * random.uniform(1, 2) if self._most else math.inf)

    def stop(self) -> None:
        """End; nothing is read any more when this returns."""
        self._turns.remove(self)

    def suspect(self) -> None:
        """Something else than SQLite may have written the file: make a fast pass, at once unless that was said in vain
        just now."""
        with self._lock:
            if self._suspected:
                return
            self._suspected = True
            wait_s = 0.0 if self._fast else self._calm_until_s - time.monotonic()
        self._turns.sooner(self, max(0.0, wait_s))

    def again(self, trouble: str, found: int) -> None:
        """So many pages were found wrong: say so, and make a fast pass soon, later each time, until one finds
        nothing."""
        with self._lock:
            self.progress = replace(self.progress, mismatches=self.progress.mismatches + found)
            self.trouble, self._suspected = trouble, True
            after_s, self._again_s = self._again_s, min(2 * self._again_s, AGAIN_MOST_S)
            self._calm_until_s = time.monotonic() + after_s
        self._turns.sooner(self, after_s)

    # A piece, in the thread of `Turns`

    def step(self) -> float:
        """Read the next piece; when to go on, seconds."""
        try:
            pause_s = self._piece()
        except (WalcastError, apsw.Error, OSError, FutureTimeoutError, ValueError) as error:
            # A database that is busy, changes hands or is being closed.
            log.debug("cannot read now", extra={"database": str(self._files.path), "error": str(error)})
            pause_s = RETRY_S
        with self._lock:
            if self._suspected and not self._fast:
                pause_s = min(pause_s, max(0.0, self._calm_until_s - time.monotonic()))
        return pause_s

    def _piece(self) -> float:
        checksums = self._checksums()
        if checksums is None or not checksums.commit_pages:
            return RETRY_S
        self._begin_pass_when_due()
        began_s = time.monotonic()
        first = self._next
        size = FAST_PIECE_BYTES if self._fast else PIECE_BYTES
        count = min(max(1, size // checksums.page_size), checksums.commit_pages + 1 - first)
        if count > 0:
            candidates = self._candidates(checksums, first, count)
            if candidates and self._confirmed(candidates):
                return self._give_up_pass()
            self._next += count
            self.progress = replace(self.progress, pages_checked=self._next - 1)
        if self._next > checksums.commit_pages:
            return self._end_pass(checksums)
        if self._fast:
            return FAST_PAUSES * (time.monotonic() - began_s)
        return count * checksums.page_size / self._rate(checksums)

    def _rate(self, checksums: PageChecksums) -> float:
        return bytes_per_s(checksums.commit_pages * checksums.page_size, self._most or DEFAULT_BYTES_PER_S)

    def _begin_pass_when_due(self) -> None:
        with self._lock:
            due = self._suspected and not self._fast and time.monotonic() >= self._calm_until_s
            if due:
                self._suspected, self._fast, self._next = False, True, 1
            if self._next == 1:
                self._began_s, self._began_ms = time.monotonic(), time.time_ns() // 1_000_000

    def _candidates(self, checksums: PageChecksums, first: int, count: int) -> list[int]:
        """Pages that have neither the checksum that was held before they were read nor the one shortly after."""
        expected = checksums.pages[first - 1 : first - 1 + count].tolist()
        try:
            connection = self._connect()
            try:
                with PageReader(self._files, connection) as reader:
                    count = min(count, reader.header.commit_pages + 1 - first)
                    found = mismatches(reader, first, count, expected) if count > 0 else []
            finally:
                connection.close()
        except BROKEN as error:
            if not is_of_the_file(error):
                raise
            return [1]
        if not found:
            return []
        time.sleep(SETTLE_S)  # most are of commits that were not captured yet, whose checksums are there in a moment
        now = self._checksums()
        if now is None:
            return []
        return [wrong.pgno for wrong in found if now.get(wrong.pgno) == expected[wrong.pgno - first]]

    def _confirmed(self, candidates: list[int]) -> bool:
        return bool(self._confirm(candidates).result(CONFIRM_S))

    def _give_up_pass(self) -> float:
        """The owner compares all pages now; what is left is for the next pass."""
        with self._lock:
            self._fast, self._next = False, 1
        return AGAIN_S

    def _end_pass(self, checksums: PageChecksums) -> float:
        now_s = time.monotonic()
        took_s = now_s - self._began_s
        self.progress = replace(
            self.progress, passes=self.progress.passes + 1, last_pass_ms=time.time_ns() // 1_000_000
        )
        facts = {"database": str(self._files.path), "pages": checksums.commit_pages, "seconds": round(took_s, 3)}
        log.debug("compared all pages with their checksums", extra=facts)
        trusted, was_trouble = False, None
        with self._lock:
            was_fast, self._fast, self._next = self._fast, False, 1
            if was_fast:
                self._calm_until_s = now_s + max(CALM_S, CALM_PASSES * took_s)
            if not self._suspected:  # else it may have been written behind the place that this pass had reached
                trusted, self.clean_ms, self._again_s = True, self._began_ms, AGAIN_S
                was_trouble, self.trouble = self.trouble, None
        if was_trouble:
            log.warning("all pages have their checksums again", extra=facts)
        if trusted:
            self.on_clean(was_trouble=bool(was_trouble))
        return max(1.0, LEAST_PASS_S - took_s) if self._most else math.inf

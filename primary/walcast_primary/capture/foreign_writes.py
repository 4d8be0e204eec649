"""What something other than SQLite wrote into the database: noticed, confirmed, judged. For the capture thread.

    look       every turn: the file's times changed without a checkpoint → a few pages are compared, and the scrubber
               makes a fast pass; beside checkpoints a few pages are compared now and then
    examine    the scrubber's candidates are compared at a moment when the log's checksums are of the state that is read
    judge      some are wrong: nothing is captured until the file is at rest; then `PRAGMA quick_check` decides

**A damaged database is not published.** What replicas and archive have is the last good state, and the copies that
survive; an archive that took up the damage could still be restored to a time before, but followers could not go back.
So capture ends with `Damaged`, followers see their primary gone, and a set with a lease fails over to one of them. A
database that is whole was put there by somebody (a backup copied over it): it is what apps read from now on, so it is
published as one transaction, and said loudly.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

from walcast.dbfiles import PageReader
from walcast.errors import WalcastError
from walcast.filewatch import FileWatch, Wrote
from walcast.scrub import BROKEN, Mismatch, is_of_the_file, mismatches, names_of, sample
from walcast.wal import frame_offset
from walcast_primary.capture.anchor import connect
from walcast_primary.capture.capture import Capture
from walcast_primary.capture.file_identity import Truncated, check_same_files
from walcast_primary.recovery.damage import Damaged, Note, forget_note, quick_check, read_note, timestamp, write_note

log = logging.getLogger("walcast.primary")

LOOK_CLOSER_EVERY_S = 0.25
SAMPLE_EVERY_S = 1.0  # while there are checkpoints, beside which somebody else's write does not show
REST_S = 0.5
REST_LOOK_S = 0.05
REST_MOST_S = 30.0
COMMIT_OFFSET = 4  # in a frame's header
MOST_PAGES = 0xFFFFFFFF
PAGES_AT_ONCE = 256


class ForeignWrites:
    """Of one database under capture. `suspect` and `again` are the scrubber's; `examine` is for any thread."""

    def __init__(self, name: str, capture: Capture, directory: Path) -> None:
        self.name = name
        self.archive = ""  # its URL, for the advice
        self.clean_ms: Callable[[], int] = lambda: 0
        self.suspect: Callable[[], object] = lambda: None
        self.again: Callable[[str, int], object] = lambda trouble, found: None
        self.wake: Callable[[], object] = lambda: None
        self._capture = capture
        self._files = capture.files
        self._directory = directory
        self._watch = FileWatch(capture.files)
        self._lock = threading.Lock()
        self._asked: list[tuple[Sequence[int], Future[list[Mismatch]]]] = []
        self._closed: WalcastError | None = None
        self._found: list[Mismatch] = []
        self._shrunk = False
        self._complaint = ""
        self._pages = "unknown"
        self._hidden: set[int] = set()
        self._said = ""
        self._suspicious = self._checkpointed = False
        self._looked_closer_s = 0.0
        self._seen_good_ms = time.time_ns() // 1_000_000  # when the file's times were last as they should be
        self._doubted_ms = 0  # ... before they were not; 0: since the last pass that found nothing they were

    # For others

    def examine(self, pgnos: Sequence[int]) -> Future[list[Mismatch]]:
        """Which of these pages are wrong? Answered after the next capture."""
        future: Future[list[Mismatch]] = Future()
        with self._lock:
            if self._closed is not None:
                raise self._closed
            self._asked.append((pgnos, future))
            self.wake()
        return future

    def passed(self, *, was_trouble: bool) -> None:
        """A pass of the scrubber found nothing. Is the database still whole, after what was published and what apps
        wrote since? That takes a while."""
        self._doubted_ms = 0
        if was_trouble:
            checked = quick_check(self._files.path, lambda: self._closed is not None)
            if checked.complaint:
                self._complaint = checked.complaint
                self.wake()

    def close(self, error: WalcastError) -> None:
        """Nobody examines anything any more."""
        with self._lock:
            self._closed = error
            asked, self._asked = self._asked, []
        for _, future in asked:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def resume(self) -> bool:
        """At a start: Damaged while the database is what it was refused for; True when it was, and is whole again, so
        that all pages must be compared. `forget` comes when they were."""
        note = read_note(self._directory)
        if note is None:
            return False
        checked = quick_check(self._files.path)
        if checked.complaint:
            raise Damaged(self._files.path, note, self.archive)
        log.warning("the database was damaged and is whole again", extra={"database": self.name})
        return True

    def forget(self) -> None:
        """This node has another state of the database now, or it is whole again and was compared."""
        forget_note(self._directory)

    # For the capture thread

    @property
    def found(self) -> bool:
        """Must something be judged before anything more is captured?"""
        return bool(self._found or self._shrunk or self._complaint)

    def look(self) -> None:
        """Before a capture."""
        wrote = self._watch.look()
        if wrote is Wrote.SOMEBODY:
            check_same_files(self._files)  # before anything is opened by its path
            self._suspicious = True
            self._doubted_ms = self._doubted_ms or self._seen_good_ms
        elif wrote is Wrote.CHECKPOINT:
            self._checkpointed = True
        since_s = time.monotonic() - self._looked_closer_s
        if not self._suspicious:
            self._seen_good_ms = time.time_ns() // 1_000_000
            if self._checkpointed and since_s >= SAMPLE_EVERY_S:
                self._look_closer()
        elif since_s >= LOOK_CLOSER_EVERY_S:
            log.debug("the database file was changed by no checkpoint", extra={"database": self.name})
            self._look_closer()
            self.suspect()

    def _look_closer(self) -> None:
        """At a few pages, which a copy over the file is bound to have changed."""
        checksums = self._capture.log.checksums
        self._take(self._examine(sample(checksums.commit_pages if checksums else 0)))
        self._looked_closer_s = time.monotonic()
        self._suspicious = self._checkpointed = False

    def distrust(self) -> None:
        """Nobody saw who wrote to the database before this process began: look as closely as after a write."""
        self._suspicious = True

    def shrank(self) -> None:
        """The file is shorter than it may be."""
        self._doubted_ms = self._doubted_ms or self._seen_good_ms
        self._shrunk = True

    def answer(self) -> None:
        """After a capture, whoever asked for pages."""
        if not self._asked:
            return
        with self._lock:
            asked, self._asked = self._asked, []
        for pgnos, future in asked:
            if not future.set_running_or_notify_cancel():
                continue
            try:
                wrong = self._examine(pgnos)
            except BaseException as error:
                future.set_exception(error)
                raise
            self._take(wrong)
            future.set_result(wrong)

    def _take(self, wrong: list[Mismatch]) -> None:
        """What was judged already, and still shows to nobody, waits until the WAL restarts."""
        if wrong and all(page.hidden and page.pgno in self._hidden for page in wrong):
            self.again(self._said, 0)
        else:
            self._found = self._found or wrong

    def judge(
        self, pause: Callable[[float], object], stopping: Callable[[], bool], check_size: Callable[[], object]
    ) -> str | None:
        """Of what was found: why all pages must be compared and published; None when nothing shows as yet. Stopped when
        the database is damaged: Damaged, or what `check_size` raises."""
        facts = {"database": self.name}
        log.warning("something other than SQLite wrote to the database; waiting until it is at rest", extra=facts)
        self._wait_for_rest(pause, stopping)
        check_same_files(self._files)
        wrong = self._examine_all(stopping)
        if stopping():
            return None
        self._pages = names_of([page.pgno for page in wrong]) or self._pages
        pages = self._pages
        good_ms = self._doubted_ms or self.clean_ms()
        try:
            check_size()
        except Truncated as error:
            known = error.knowing(self.archive)
            self._note(Note(pages, str(known), good_ms))
            raise known from None
        if not wrong and not self._complaint:
            log.warning("all pages have their checksums again", extra=facts)
            self._found, self._shrunk = [], False
            return None
        facts |= {"count": str(len(wrong)), "pages": pages, "known_good": timestamp(good_ms) if good_ms else "unknown"}
        log.error("pages of the database were changed by something other than SQLite", extra=facts)
        checked = quick_check(self._files.path, stopping)
        complaint = checked.complaint or self._complaint
        if complaint:
            note = Note(pages, complaint, good_ms)
            self._note(note)
            raise Damaged(self._files.path, note, self.archive)
        hidden = all(page.hidden for page in wrong)
        self._found, self._shrunk, self._hidden = [], False, {page.pgno for page in wrong if page.hidden}
        self._said = self._words(f"{len(wrong)} pages ({pages})", good_ms, checked.whole)
        self.again(self._said, len(wrong))
        return None if hidden else "pages were changed by something other than SQLite"

    def _note(self, note: Note) -> None:
        try:
            write_note(self._directory, note)
        except OSError as error:  # what was found stands
            log.error("cannot note the damage", extra={"database": self.name, "error": str(error)})  # noqa: TRY400

    def _words(self, pages: str, good_ms: int, whole: bool) -> str:
        state = "the database is consistent" if whole else "the database was not found damaged"
        when = f" --timestamp {timestamp(good_ms)}" if good_ms else " --timestamp TIME"
        back = f"restore it beside this one: walcast restore {self.archive or 'ARCHIVE_URL'} -o OTHER.db{when}"
        return (
            f"{self._files.path}: {pages} were changed by something other than SQLite; {state}, and replicas are "
            f"given it as it is. Restart the app: its connections may hold older pages. For the state before, {back}"
        )

    def _wait_for_rest(self, pause: Callable[[float], object], stopping: Callable[[], bool]) -> None:
        """A copy over the file may be half way: until nothing is written any more, or for a while."""
        now_s = rest_s = time.monotonic()
        end_s = now_s + REST_MOST_S
        while now_s < min(end_s, rest_s + REST_S) and not stopping():
            pause(REST_LOOK_S)
            now_s = time.monotonic()
            if self._watch.look() is not Wrote.NOBODY:
                rest_s = now_s

    def _examine(self, pgnos: Iterable[int]) -> list[Mismatch]:
        """Those of the pages that are not what the log says."""
        return self._differing((pgno, 1) for pgno in pgnos)

    def _examine_all(self, stopping: Callable[[], bool]) -> list[Mismatch]:
        checksums = self._capture.log.checksums
        count = checksums.commit_pages if checksums else 0
        firsts = itertools.takewhile(lambda _: not stopping(), range(1, count + 1, PAGES_AT_ONCE))
        return self._differing((first, PAGES_AT_ONCE) for first in firsts)

    def _differing(self, ranges: Iterable[tuple[int, int]]) -> list[Mismatch]:
        """One that a commit after the log's has changed does not count: it is an app's again. Nothing is captured
        meanwhile."""
        try:
            connection = connect(self._files.path)
            try:
                with PageReader(self._files, connection) as reader:
                    return self._differing_from(reader, ranges)
            finally:
                connection.close()
        except BROKEN as error:
            if not is_of_the_file(error):
                raise
            return [Mismatch(1, hidden=False)]

    def _differing_from(self, reader: PageReader, ranges: Iterable[tuple[int, int]]) -> list[Mismatch]:
        capture, header = self._capture, reader.header
        checksums = capture.log.checksums
        assert checksums is not None
        # Under the anchor a restart of the WAL means that all frames before it are in the log.
        frame = capture.frame if header.salt == capture.salt else 0
        touched = set(self._files.frame_pgnos(header.mx_frame)[frame:].tolist())
        most = min(checksums.commit_pages, header.commit_pages, self._fewest_pages(frame, header.mx_frame))
        wrong: list[Mismatch] = []
        for first, count in ranges:
            last = min(first + count - 1, most)
            if first <= last:
                expected = checksums.pages[first - 1 : last].tolist()
                wrong += mismatches(reader, first, last - first + 1, expected)
        return [page for page in wrong if page.pgno not in touched]

    def _fewest_pages(self, frame: int, mx_frame: int) -> int:
        """The smallest commit size after `frame`: pages that were cut off may come back without a frame."""
        offsets = (frame_offset(n, self._capture.page_size) + COMMIT_OFFSET for n in range(frame + 1, mx_frame + 1))
        sizes = (int.from_bytes(os.pread(self._files.wal_fd, 4, offset), "big") for offset in offsets)
        return min((size for size in sizes if size), default=MOST_PAGES)

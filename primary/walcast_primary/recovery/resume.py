"""Where a primary goes on: behind the log's last entry when the WAL still has it, else with the difference of the
pages.

No follower needs a new copy because a primary restarted, or because somebody wrote while it was down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from walcast import ltx
from walcast.checksum import PageChecksums
from walcast.dbfiles import PageReader
from walcast.errors import Unavailable
from walcast.position import Position
from walcast.savedsums import forget_restored, load_restored
from walcast.terms import JUMP_MOST, first_txid, is_plausible_term
from walcast.wal import WAL_HEADER_SIZE, frame_offset
from walcast.walindex import IndexHeader
from walcast_primary.capture.capture import Capture
from walcast_primary.capture.file_identity import check_page_size, check_wal_mode
from walcast_primary.checkpoint.checkpoint_refusal import checkpoints_refused
from walcast_primary.transaction_log.log_entries import append_entry


def resume(capture: Capture) -> bool:
    """Go on behind the log's last entry if the WAL still has it; False when all pages must be compared.

    The entry's header has the salts, the place and the checksum of its last frame. A frame's checksum chains over all
    frames before it, so when it is there the WAL is the one that was captured. Call with the anchor held.
    """
    entry = capture.log.last
    index = capture.files.index_header()
    if entry is None or capture.log.checksums is None or index is None:
        return False
    done = entry.header()
    frame = (done.wal_offset + done.wal_size - WAL_HEADER_SIZE) // capture.frame_size if done.wal_size else 0
    if not frame or index.salt != done.wal_salt or index.mx_frame < frame:
        return False
    if done.page_size != capture.page_size or capture.frame_cksum(frame) != done.wal_cksum:
        return False
    if frame < index.mx_frame:
        # With all of it backfilled the anchor is at read lock 0: the next commit may overwrite what is not captured.
        backfill = capture.files.checkpoint_info().backfill
        if backfill >= index.mx_frame or capture.files.index_header() != index:
            return False
    capture.seek(frame, index.salt)
    return True


@dataclass(frozen=True, slots=True)
class Scanned:
    """The page checksums of a whole database, in the state that `index` says."""

    index: IndexHeader
    checksums: PageChecksums

    def is_of(self, index: IndexHeader | None) -> bool:
        """Is `index` the same state? Sizes do not count: a wal-index made from an empty WAL does not know them."""
        mine = self.index
        return index is not None and (index.change, index.mx_frame, index.salt, index.frame_cksum) == (
            mine.change,
            mine.mx_frame,
            mine.salt,
            mine.frame_cksum,
        )


def scan(capture: Capture, stopping: Callable[[], bool] = lambda: False) -> Scanned:
    """Read every page. Unavailable when `stopping` becomes true meanwhile."""
    with PageReader(capture.files, capture.reader) as reader, checkpoints_refused(capture.files):
        return Scanned(reader.header, PageChecksums.scan(capture.page_size, _until(stopping, reader.chunks())))


def compare(capture: Capture, stopping: Callable[[], bool] = lambda: False, known: Scanned | None = None) -> int | None:
    """Log what differs from the log's state as one transaction; how many pages did. Every page is read for it, unless
    the database still is in the state that is `known`.

    With no usable state in the log a new history begins at the state that is there, behind any TXID ever given: None.
    Call with the anchor held. Unavailable when `stopping` becomes true meanwhile; OtherPages.
    """
    log = capture.log
    check_page_size(capture.files, capture.page_size)
    with PageReader(capture.files, capture.reader) as reader, checkpoints_refused(capture.files):
        check_wal_mode(capture.files.path, reader.read(1, 1))
        if known is not None and known.is_of(reader.header):
            now = known.checksums
        else:
            now = PageChecksums.scan(capture.page_size, _until(stopping, reader.chunks()))
        if log.checksums is None or log.checksums.page_size != capture.page_size:
            capture.files.sync()  # a power cut must not take back what the log does not have
            log.start(now, Position(log.position.txid + 1, now.database))
            changed = None
        else:
            changed = _log_difference(capture, reader, now)
        capture.seek(reader.header.mx_frame, reader.header.salt)
        capture.lowest_pages = 0
    return changed


def _until(stopping: Callable[[], bool], chunks: Iterator[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
    for chunk in chunks:
        if stopping():
            raise Unavailable("stopping")
        yield chunk


def _log_difference(capture: Capture, reader: PageReader, now: PageChecksums) -> int:
    log = capture.log
    assert log.checksums is not None
    # Their sum anew: it must not carry an error on into what is published.
    log.checksums = PageChecksums(capture.page_size, log.checksums.pages[: log.checksums.commit_pages])
    pgnos = now.differing(log.checksums.pages)
    changed = len(pgnos)
    if not changed and now.commit_pages == log.checksums.commit_pages:
        if now.database == log.position.checksum and _is_noted(capture, reader.header):
            return 0
        # Only the position is wrong, or it is not known what place in the WAL it is: after a replay that was cut off
        # before that was noted, a later cut would leave commits that nobody knows. An entry needs a page.
        pgnos = np.array([1], np.uint32)
    header = ltx.Header(
        page_size=capture.page_size,
        commit_pages=now.commit_pages,
        min_txid=log.position.txid + 1,
        max_txid=log.position.txid + 1,
        timestamp_ms=log.timestamp_ms(),
        pre_checksum=log.position.checksum,
        term=log.term,
        **_place(capture, reader.header),
    )
    append_entry(log, header, pgnos, lambda i: reader.read(int(pgnos[i]), 1))
    return changed


def _is_noted(capture: Capture, index: IndexHeader) -> bool:
    """Does the log's last entry end where the WAL ends? So it does if there is none."""
    last = capture.log.last
    if index.mx_frame == 0:
        return True
    if last is None:
        return False
    done = last.header()
    end = frame_offset(index.mx_frame + 1, capture.page_size)
    return (done.wal_offset + done.wal_size, done.wal_salt, done.wal_cksum) == (end, index.salt, index.frame_cksum)


def note_place(capture: Capture, index: IndexHeader) -> None:
    """Log a transaction that changes nothing and says that the log's position is the state `index` of the WAL."""
    log = capture.log
    assert log.checksums is not None
    header = ltx.Header(
        page_size=capture.page_size,
        commit_pages=log.checksums.commit_pages,
        min_txid=log.position.txid + 1,
        max_txid=log.position.txid + 1,
        timestamp_ms=log.timestamp_ms(),
        pre_checksum=log.position.checksum,
        term=log.term,
        **_place(capture, index),
    )
    page_one = capture.database_page(1)
    append_entry(log, header, np.array([1], np.uint32), lambda _: page_one)


def _place(capture: Capture, index: IndexHeader) -> dict[str, Any]:
    """Header fields for an entry that ends where the WAL ends, though it was not captured from its frames."""
    if index.mx_frame == 0:
        return {}
    return {
        "wal_offset": frame_offset(index.mx_frame, capture.page_size),
        "wal_size": capture.frame_size,
        "wal_salt": index.salt,
        "wal_cksum": index.frame_cksum,
    }


def begin_restored(capture: Capture) -> bool:
    """Have a log that never gave a TXID begin where a restore ended; False where there was none. What was changed in
    the database since is for `compare`."""
    log, folder = capture.log, capture.log.directory.parent
    restored = load_restored(folder) if not log.position.txid else None
    if restored is None or restored.checksums.page_size != capture.page_size:
        return False
    if not is_plausible_term(restored.term, 1) or restored.position.txid > JUMP_MOST:  # it was an archive's word
        return False
    log.term = restored.term
    log.start(restored.checksums, restored.position)
    log.not_before(restored.timestamp_ms)
    forget_restored(folder)
    return True


@dataclass(frozen=True, slots=True)
class State:
    """Where a replica stands that becomes the primary: what is in the file, and the time and the term of its newest
    transaction."""

    checksums: PageChecksums
    position: Position
    timestamp_ms: int = 0
    term: int = 0  # 0: the one before the term that begins


def begin_at(capture: Capture, at: State | None, term: int) -> None:
    """Go on from a replica's state, whose write lock the caller holds: all that is in the WAL is at its position. Then
    a `term` that is higher than the log's begins: an entry over the gap that parts it from the one before, of a page as
    it is. Idempotent: whoever is interrupted begins again."""
    log = capture.log
    if at is not None:
        header = capture.files.index_header()
        if header is None:
            raise Unavailable(f"{capture.files.path}-shm: the header is torn")
        log.term = term
        capture.files.sync()  # a power cut must not take back what the log does not have
        log.start(at.checksums, at.position)
        log.not_before(at.timestamp_ms)
        capture.seek(header.mx_frame, header.salt)
        capture.lowest_pages = 0
        _begin_term(capture, term - at.term if at.term else 1)
    elif term > log.term:
        terms, log.term = term - log.term, term
        _begin_term(capture, terms)


def _begin_term(capture: Capture, terms: int) -> None:
    log = capture.log
    assert log.checksums is not None
    header = ltx.Header(
        page_size=capture.page_size,
        commit_pages=log.checksums.commit_pages,
        min_txid=log.position.txid + 1,
        max_txid=first_txid(log.position.txid, terms),
        timestamp_ms=log.timestamp_ms(),
        pre_checksum=log.position.checksum,
        term=log.term,
    )
    with PageReader(capture.files, capture.reader) as reader:
        page_one = bytes(reader.read(1, 1))
    append_entry(log, header, np.array([1], np.uint32), lambda _: page_one)

"""Replay the transaction log into a database that a power cut took back, as PostgreSQL replays its WAL after a crash.

An app with `synchronous=NORMAL` or `OFF` may lose its last commits with the power. The log has them, synced, and so may
followers and the archive. So what the log has is written back, as one ordinary commit in the database's WAL under
SQLite's write lock, before the app can write anything else: what was once confirmed stays true.

That is right only for a database that nobody wrote to since. Where somebody did, what the log has beyond the point
where the database was taken back is kept in `discarded/`, and said; see `decide`.

**Verified before visible.** A page is written back only if it has the checksum that the log holds for it, and only if
the log has every page that differs; then the database is, byte for byte, what the log's position says.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from walcast import ltx
from walcast.checksum import PageChecksums, page_checksum
from walcast.discarded import Circumstances
from walcast.errors import Corrupt, Unavailable
from walcast.position import Position
from walcast.wal_writer import WalWriter
from walcast.walindex import IndexHeader
from walcast_primary.capture.capture import Capture
from walcast_primary.recovery.boot import Boot
from walcast_primary.recovery.divergent_log import discard
from walcast_primary.recovery.origin import (
    MOST_RESTARTS,
    Continues,
    Origin,
    TakenBack,
    Versions,
    WrittenOn,
    origin_by_content,
    origin_by_wal,
    restarted_since,
    versions_in_log,
)
from walcast_primary.recovery.resume import Scanned, note_place, resume, scan
from walcast_primary.transaction_log.segment import Entry
from walcast_primary.transaction_log.transaction_log import TransactionLog

log = logging.getLogger("walcast.primary")

LOCK_S = 10.0
LOCK_STEP_S = 0.001
TRIES = 5
WRITTEN_SLACK_MS = 2000  # a commit is captured, and so has its time in the log, well within this


class Way(Enum):
    """What to do about a database that is not where the log ends."""

    PUBLISH = "publish what differs: it was written to while no walcast ran"
    REPLAY = "replay the log: it was taken back, and nobody wrote to it since"
    KEEP = "keep what the log has beyond the fork, then publish: it was taken back and then written to"


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of the database. `torn_only`: that it matches no state at all, though nobody seems to have written
    to it since the last entry of the log and the log has every page that differs."""

    origin: Origin | None
    lost_power: bool  # the machine was started since, and the file is the same one
    torn_only: bool = False


def decide(found: Found) -> Way:
    """Pure. A state that the WAL proves to be older is replayed; one that only looks older by its content is, too, if
    the machine lost power meanwhile: otherwise somebody put an older copy there on purpose, and means it. A database
    that is no whole state (`synchronous=OFF`) is replayed if the machine lost power and nobody wrote to it since. One
    that has more than the log is never replayed over."""
    if isinstance(found.origin, TakenBack):
        return Way.REPLAY if found.origin.proven or found.lost_power else Way.KEEP
    if isinstance(found.origin, Continues) and found.origin.more:
        return Way.PUBLISH
    if found.torn_only and found.lost_power:
        return Way.REPLAY
    return Way.KEEP if isinstance(found.origin, WrittenOn) else Way.PUBLISH


@dataclass(frozen=True, slots=True)
class Recovered:
    """`replayed`: the log was written back, and the place where capture goes on is known. Otherwise what differs is to
    be published, from the state `scanned`."""

    replayed: bool
    scanned: Scanned


def recover(
    capture: Capture,
    last_boot: Boot | None,
    stopping: Callable[[], bool] = lambda: False,
    *,
    resumed: bool = False,
    trusted: bool = False,
) -> Recovered:
    """See what became of a database that is not what the log says, and carry out what `decide` says, but for the
    publishing. Call with the anchor held, before anything is published, and with a usable log. `resumed`: the WAL goes
    on where the log ends, and only the database file below it may have lost something. `trusted`: what the database
    has is meant, so that nothing is replayed, and what the log has beyond it is kept.

    Unavailable when `stopping` becomes true meanwhile, when an app holds the write lock for too long, or when the disk
    is full.
    """
    transactions = capture.log
    lost_power = not trusted and Boot.now(capture.files.db_fd).lost_power_since(last_boot)
    for _ in range(TRIES):
        if resumed:
            capture.capture()
        scanned = scan(capture, stopping)
        differing = _differing(scanned.checksums, _held(transactions))
        if resumed and scanned.index.mx_frame != capture.frame:  # an app goes on writing
            inside = differing[differing <= _held(transactions).commit_pages]
            if not len(np.setdiff1d(inside, _written_after(capture, scanned))):
                return Recovered(False, scanned)
            continue
        if not len(differing):
            return Recovered(False, scanned)
        found, oldest_txid = _find(capture, scanned, lost_power)
        way = decide(found)
        if way is Way.REPLAY and trusted:
            way = Way.KEEP
        if way is Way.REPLAY:
            try:
                if not _replay(capture, scanned, oldest_txid):
                    continue  # somebody wrote meanwhile: look again
                return Recovered(True, scanned)
            except Corrupt as error:
                log.error("the log cannot be replayed", extra={"error": str(error)})  # noqa: TRY400
                way = Way.KEEP
        if way is Way.KEEP:
            _keep(capture, found.origin)
        return Recovered(False, scanned)
    raise Unavailable(f"{capture.files.path}: apps write to it while the log is to be replayed; stop them for a moment")


def finish(capture: Capture, last_boot: Boot | None) -> bool:
    """Bring the log of a primary that ended, perhaps with the power, to what the database has, and the database to what
    the log has: then both are at the log's position, and nothing is published. False when somebody else's history is
    in the database, or an app wrote to it: nothing was changed then.
    """
    if resume(capture):
        capture.capture()
        return True
    held = capture.log.checksums
    if held is None or held.page_size != capture.page_size:
        return False
    scanned = scan(capture)
    if not len(_differing(scanned.checksums, held)):
        return True
    found, oldest_txid = _find(capture, scanned, Boot.now(capture.files.db_fd).lost_power_since(last_boot))
    return decide(found) is Way.REPLAY and _replay(capture, scanned, oldest_txid)


def _written_after(capture: Capture, scanned: Scanned) -> NDArray[np.uint32]:
    """The pages that commits after what was captured have written, or may have cut off."""
    index, held = scanned.index, _held(capture.log)
    frames = capture.files.frame_pgnos(index.mx_frame)[capture.frame if index.salt == capture.salt else 0 :]
    cut = np.arange(index.commit_pages + 1, held.commit_pages + 1, dtype=np.uint32)
    return np.concatenate((frames, cut))


def _held(transactions: TransactionLog) -> PageChecksums:
    checksums = transactions.checksums
    assert checksums is not None
    return checksums


def _differing(now: PageChecksums, then: PageChecksums) -> NDArray[np.uint32]:
    """The pages in which two states differ, ascending, those that only one of them has included."""
    count = max(now.commit_pages, then.commit_pages)
    one, other = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    one[: now.commit_pages] = now.pages[: now.commit_pages]
    other[: then.commit_pages] = then.pages[: then.commit_pages]
    return (np.flatnonzero(one != other) + 1).astype(np.uint32)


def _find(capture: Capture, scanned: Scanned, lost_power: bool) -> tuple[Found, int]:
    """What is known of the database, and the TXID from which on a replay would have to begin."""
    transactions, now = capture.log, scanned.checksums
    origin = origin_by_wal(transactions, scanned.index, capture.page_size, capture.frame_cksum)
    if origin is None and not lost_power and restarted_since(transactions, scanned.index):
        origin = Continues(more=True)
    origin = origin or origin_by_content(transactions, now.database)
    if isinstance(origin, TakenBack):
        # Where power was lost, checkpoints from before the fork may be missing in the database, too.
        return Found(origin, lost_power), 0 if lost_power else origin.entry.min_txid
    if isinstance(origin, WrittenOn) or origin == Continues(more=True):
        return Found(origin, lost_power), 0
    held = _held(transactions)
    differing = _differing(now, held)
    inside = differing[differing <= held.commit_pages]
    sums = np.array([now.get(pgno) for pgno in inside.tolist()], np.uint64)
    later = scanned.index.mx_frame > 0 and not _is_known(transactions, scanned.index)
    below = frozenset(pgno for pgno in inside.tolist() if later and _hidden(capture, pgno))
    try:
        versions = versions_in_log(transactions, inside, sums, below)
    except (Corrupt, OSError) as error:
        log.warning("the log cannot be read whole", extra={"error": str(error)})
        versions = Versions(frozenset(inside.tolist()), None, transactions.position, False)
    torn = not later and not _written_since(capture) and all(_hidden(capture, pgno) for pgno in versions.missing)
    fork = versions.fork
    if fork is not None and not lost_power and (versions.traced > fork or not versions.mostly_undone):
        # An app has given a page the content that it had before: what came after that is there, or all the rest is new.
        fork = None
    if lost_power and origin is None and versions.traced < transactions.position:
        # Apps may have written over all of it, but more likely it went with the power.
        fork = min(fork or versions.traced, versions.traced)
    return Found(WrittenOn(fork) if fork is not None else origin, lost_power, torn), transactions.first.txid + 1


def _is_known(transactions: TransactionLog, index: IndexHeader) -> bool:
    """Is the WAL one that the log has commits of, or the one of some restarts before? Each adds one to the first salt.
    Otherwise it was begun after all that the log has."""
    for entry in transactions.backwards():
        header = entry.header()
        if header.wal_size and (header.wal_salt[0] - index.salt[0]) % (1 << 32) < MOST_RESTARTS:
            return True
    return False


def _written_since(capture: Capture) -> bool:
    """Was a file written after the last entry of the log was captured, as far as their times tell?"""
    last = capture.log.last
    if last is None:
        return True
    # Timestamps may run ahead of a clock that was set back; the log's own file has that clock's times.
    last_ms, logged_ms = last.header().timestamp_ms, last.segment.path.stat().st_mtime_ns // 1_000_000
    written_ms = capture.files.written_ms()
    if max(written_ms) > min(last_ms, logged_ms) + WRITTEN_SLACK_MS:
        return True
    now_ms = time.time_ns() // 1_000_000
    if now_ms >= last_ms:
        return False
    # A machine without a clock that goes on while it is off: what was written since it started looks older.
    started_ms = now_ms - int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)
    return any(started_ms <= one_ms <= now_ms for one_ms in written_ms)


# Replay


def _replay(capture: Capture, scanned: Scanned, oldest_txid: int) -> bool:
    """Write back what the database lacks, from `oldest_txid` on; False when it is in another state by now."""
    files, transactions = capture.files, capture.log
    started_s = time.monotonic()
    _lock(capture)
    try:
        if not scanned.is_of(files.index_header()):
            return False
        writer = WalWriter(files, capture.page_size, scanned.checksums.commit_pages)
        try:
            pages = _write_back(capture, writer, scanned.checksums, oldest_txid)
        finally:
            writer.release()
        files.sync()
        header = files.index_header()
        if header is None:
            raise Unavailable(f"{files.path}-shm: the header is torn")
        capture.seek(header.mx_frame, header.salt)
        capture.lowest_pages = 0
        note_place(capture, header)
    except OSError as error:
        raise Unavailable(f"{files.path}: the log cannot be replayed into it: {error.strerror or error}") from error
    finally:
        WalWriter.unlock(files)
    facts = {"database": str(files.path), "from_txid": oldest_txid, "position": str(transactions.position)}
    seconds = round(time.monotonic() - started_s, 3)
    what = "the database had lost its last commits: replayed the log into it"
    log.warning(what, extra=facts | {"pages": pages, "seconds": seconds})
    return True


def _lock(capture: Capture) -> None:
    """SQLite's write lock."""
    give_up_s = time.monotonic() + LOCK_S
    while not WalWriter.lock(capture.files):
        if time.monotonic() >= give_up_s:
            raise Unavailable(
                f"{capture.files.path}: an app has held the write lock for {LOCK_S:.0f} s, and the log must be "
                "replayed into the database before anybody writes; end that transaction"
            )
        time.sleep(LOCK_STEP_S)


def _write_back(capture: Capture, writer: WalWriter, now: PageChecksums, oldest_txid: int) -> int:
    """Every page that differs, as the log has it last, in one commit. Corrupt when the log does not have them all."""
    checksums = _held(capture.log)
    differing = _differing(now, checksums)
    wanted = set(differing[differing <= checksums.commit_pages].tolist())
    wanted.add(1)  # a commit needs a page, also where a file only shrinks
    count = len(wanted)
    page_one = b""
    try:
        for entry, page in _pages_backwards(capture.log, oldest_txid):
            if page.pgno not in wanted:
                continue
            if page_checksum(page.pgno, page.data) != checksums.get(page.pgno):
                raise Corrupt(f"{entry.segment.path}: page {page.pgno} of TXID {entry.max_txid} is not the newest")
            wanted.discard(page.pgno)
            writer.append(page.pgno, page.data)
            if page.pgno == 1:
                page_one = bytes(page.data)
            if not wanted:
                break
        for pgno in sorted(wanted):
            hidden = _hidden(capture, pgno)
            if hidden:
                wanted.discard(pgno)
                writer.append(pgno, hidden)
                page_one = hidden if pgno == 1 else page_one
        if wanted == {1} and now.get(1) == checksums.get(1):
            page_one = bytes(capture.database_page(1))
            writer.append(1, page_one)
            wanted.clear()
        if wanted:
            shown = ", ".join(map(str, sorted(wanted)[:10]))
            raise Corrupt(f"{capture.log.directory}: {len(wanted)} pages that differ are not in it: {shown}")
    except BaseException:
        writer.discard()
        raise
    writer.publish(checksums.commit_pages, page_one)
    return count


def _hidden(capture: Capture, pgno: int) -> bytes:
    """The page as the database file has it, if that is what the log says of it; empty if not.

    SQLite may not show it: under `synchronous=OFF` a WAL that had restarted can come back with its old beginning, whose
    frames then hide newer pages of the file.
    """
    size = capture.page_size
    page = os.pread(capture.files.db_fd, size, (pgno - 1) * size)
    whole = len(page) == size and page_checksum(pgno, page) == _held(capture.log).get(pgno)
    return page if whole else b""


def _pages_backwards(transactions: TransactionLog, oldest_txid: int) -> Iterator[tuple[Entry, ltx.Page]]:
    """Every page of the entries from `oldest_txid` on, those of the newest entry first."""
    for entry in transactions.backwards():
        if entry.min_txid < oldest_txid:
            return
        for page in entry.pages():
            yield entry, page


# Keep


def _keep(capture: Capture, origin: Origin | None) -> None:
    """What the log has beyond the fork goes to `discarded/`, before the difference is published over it."""
    transactions = capture.log
    if isinstance(origin, TakenBack):
        fork = Position(origin.entry.min_txid - 1, origin.entry.pre_checksum)
        why = "an older state of the database was put in place of the newest one while no walcast ran"
    elif isinstance(origin, WrittenOn):
        fork = origin.fork
        why = "the database had lost its last commits, probably in a power cut, and was written to before walcast ran"
    else:
        return
    kept = discard(transactions, fork, Circumstances(capture.files.path, why, "this database as it is now"))
    facts = {"database": str(capture.files.path), "fork": str(fork), "position": str(transactions.position)}
    told = facts | {"why": why, "folder": str(kept.path) if kept is not None else ""}
    log.error("commits that were published are not in the database any more; kept aside", extra=told)

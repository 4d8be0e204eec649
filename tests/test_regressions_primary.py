"""Faults of the primary that were found once: what it must survive without losing a commit or a TXID."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import grpc
import numpy as np
import pytest
from support.e2e_oracle import Served, served
from support.e2e_state import create
from support.nodes import barrier, poll, primary
from support.writers import sql

from walcast import ltx, savedsums, wire
from walcast.checksum import PageChecksums
from walcast.errors import Corrupt
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.savedsums import RestoredState, save_restored
from walcast.statedir import StateDir, state_dir
from walcast.store import DirectorySpec, open_store
from walcast.terms import JUMP_MOST
from walcast_primary.archiving import archiver as archiving
from walcast_primary.archiving.archiver import Archiver
from walcast_primary.archiving.snapshot import snapshot
from walcast_primary.capture import capture_thread as looping
from walcast_primary.capture.capture import Capture
from walcast_primary.database import Database
from walcast_primary.recovery.resume import resume
from walcast_primary.transaction_log import transaction_log as logging_of_transactions
from walcast_primary.transaction_log.log_entries import append_entry
from walcast_primary.transaction_log.segment import SUFFIX
from walcast_primary.transaction_log.transaction_log import TransactionLog

SOON_S = 10.0
COMMIT = "UPDATE accounts SET balance = balance + 1"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    create(path)
    return path


@pytest.fixture
def app(db: Path) -> Iterator[Served]:
    with served(db) as made:
        yield made


# Where a primary goes on


def test_what_was_backfilled_while_the_primary_was_away_survives_a_commit_at_its_start(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The anchor is at read lock 0 then, so the commit restarts the WAL over frames that were never captured."""
    with served(db) as app, sql(db) as one:
        one("PRAGMA wal_autocheckpoint = 0")
        one(COMMIT)
        assert app.commits == 1
        app.stop()
        one("INSERT INTO filler (body) VALUES (randomblob(50000))")
        one("DELETE FROM filler")
        busy, frames, copied = one("PRAGMA wal_checkpoint(PASSIVE)")[0]
        assert (busy, copied) == (0, frames)
        went_on: list[bool] = []

        def then_commit(capture: Capture) -> bool:
            went_on.append(resume(capture))
            one(COMMIT)
            return went_on[-1]

        monkeypatch.setattr(looping, "resume", then_commit)
        app.restart()
        assert app.commits >= 2
        assert went_on == [False]
        app.verify()


# Barriers


def test_barriers_that_are_cancelled_do_not_end_the_capture(app: Served) -> None:
    for _ in range(300):
        app.database.loop.barrier().cancel()
    assert app.position == app.base_position
    assert app.database.loop.failure is None


def test_barrier_calls_with_a_deadline_of_a_millisecond_do_not_end_the_primary(db: Path) -> None:
    with primary(db) as node:
        with grpc.insecure_channel(node.address, options=wire.OPTIONS) as channel:
            stub = rpc.ReplicationStub(channel)
            calls = [stub.Barrier.future(pb.BarrierRequest(), timeout=0.001 + i % 4 * 0.001) for i in range(200)]
            codes = {call.code() for call in calls}
        assert grpc.StatusCode.DEADLINE_EXCEEDED in codes
        assert barrier(node.address)
        assert node.running
        assert node.stop() == 0


# Checksums that are wrong


def make_snapshot(app: Served) -> Position:
    with snapshot(app.database) as (written, _):
        header = written.header
        return Position(header.max_txid, header.database_checksum)


@pytest.mark.parametrize("whole", [True, False], ids=["with their sum", "but not their sum"])
def test_a_log_with_a_wrong_page_checksum_publishes_the_page_and_is_right_again(app: Served, whole: bool) -> None:
    log = app.database.log
    assert log.checksums is not None
    before = make_snapshot(app)
    assert before == log.position
    wrong = 0x5A5A
    log.checksums.pages[2] ^= np.uint64(wrong)
    if whole:
        log.checksums.database ^= wrong
        log.position = Position(before.txid, before.checksum ^ wrong)
        with pytest.raises(Corrupt, match="the log says"):
            make_snapshot(app)
    else:
        app.database.loop.recheck("a test asks for it")
    assert poll(lambda: log.position.txid > before.txid, SOON_S), "nothing was compared"
    assert log.position == Position(before.txid + 1, before.checksum)
    assert log.last is not None
    assert [page.pgno for page in log.last.pages()] == [3]
    assert make_snapshot(app) == log.position


def test_a_log_whose_sum_alone_is_wrong_is_right_after_a_compare(app: Served) -> None:
    log = app.database.log
    assert log.checksums is not None
    before = log.position
    log.checksums.database ^= 0x5A5A
    log.position = Position(before.txid, log.checksums.database)
    with pytest.raises(Corrupt, match="the log says"):
        make_snapshot(app)
    assert poll(lambda: log.position.txid > before.txid, SOON_S), "nothing was published"
    assert make_snapshot(app) == log.position
    assert log.position.checksum == before.checksum


# The log


PAGE_SIZE = 512


def append(log: TransactionLog, rng: random.Random, pages: int = 3) -> Position:
    data = [rng.randbytes(PAGE_SIZE) for _ in range(pages)]
    header = ltx.Header(
        page_size=PAGE_SIZE,
        commit_pages=pages,
        min_txid=log.position.txid + 1,
        max_txid=log.position.txid + 1,
        timestamp_ms=time.time_ns() // 1_000_000,
        pre_checksum=log.position.checksum,
        term=log.term,
    )
    append_entry(log, header, np.arange(1, pages + 1, dtype=np.uint32), lambda i: data[i])
    return log.position


def log_of(directory: Path, entries: int, seed: int, *, segment_bytes: int | None = None) -> TransactionLog:
    log = TransactionLog.open(directory)
    log.segment_bytes = segment_bytes or log.segment_bytes
    sums = PageChecksums(PAGE_SIZE)
    log.start(sums, Position(1, sums.database))
    rng = random.Random(seed)
    for _ in range(entries):
        append(log, rng)
    return log


class Crash(Exception):
    """The process ends here."""


@pytest.mark.parametrize("where", ["saving", "dropping", "half dropped"])
def test_a_crash_while_a_history_begins_forgets_no_txid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, where: str
) -> None:
    log = log_of(tmp_path, 20, seed, segment_bytes=1)
    segments = sorted(tmp_path.glob(f"*{SUFFIX}"))
    newest = log.position

    def crash(*_: object) -> None:
        if where == "half dropped":
            for path in segments[: len(segments) // 2]:
                path.unlink()
        raise Crash

    with monkeypatch.context() as patch:
        if where == "saving":
            patch.setattr(savedsums, "save", crash)
        else:
            patch.setattr(logging_of_transactions, "delete_segments", crash)
        assert log.checksums is not None
        with pytest.raises(Crash):
            log.start(log.checksums.copy(), Position(newest.txid + 5, newest.checksum))
    again = TransactionLog.open(tmp_path)
    assert again.position.txid >= newest.txid
    if where != "saving":
        assert again.position.txid >= newest.txid + 5, "what was saved may have been seen"


@pytest.mark.parametrize("entry", [1, 2, 9, 18])
@pytest.mark.parametrize("segment_bytes", [None, 4000])
@pytest.mark.parametrize("place", ["prefix", "header", "pages", "checksum"])
def test_a_rotten_entry_further_back_does_not_make_the_log_go_back(
    tmp_path: Path, seed: int, entry: int, segment_bytes: int | None, place: str
) -> None:
    log = log_of(tmp_path, 20, seed, segment_bytes=segment_bytes)
    newest = log.position
    rotten = log.after(entry)
    assert rotten is not None
    at = {"prefix": -10, "header": 30, "pages": rotten.size // 2, "checksum": rotten.size - 12}[place]
    path, at = rotten.segment.path, rotten.offset + at
    log.close()
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    again = TransactionLog.open(tmp_path)
    assert again.position.txid >= newest.txid
    again.close()
    assert TransactionLog.open(tmp_path).position.txid >= newest.txid, "nor when it is opened once more"


# A full disk


class FullDisk:
    """For files of the log: what is asked for is given in part, then there is no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        self.full = False
        self.refused = 0
        self._fallocate, self._pwrite = os.posix_fallocate, os.pwrite
        monkeypatch.setattr(os, call, getattr(self, call))
        monkeypatch.setattr(looping, "RETRY_S", 0.02)

    def _is_full(self, fd: int) -> bool:
        hit = self.full and Path(f"/proc/self/fd/{fd}").readlink().suffix == SUFFIX
        self.refused += hit
        return hit

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        if self._is_full(fd):
            self._fallocate(fd, offset, length // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fallocate(fd, offset, length)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        if self._is_full(fd):
            self._pwrite(fd, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._pwrite(fd, data, offset)


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk_is_trouble_that_passes(db: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    disk = FullDisk(monkeypatch, call)
    with served(db) as app, sql(db) as one:
        one(COMMIT)
        assert app.commits == 1
        loop, log = app.database.loop, app.database.log
        before = log.position
        disk.full = True
        one("INSERT INTO filler (body) VALUES (randomblob(5000000))")  # more than was allocated ahead
        assert poll(lambda: loop.trouble is not None and disk.refused > 1, SOON_S)
        assert "No space left on device" in str(loop.trouble)
        segment = sorted(log.directory.glob(f"*{SUFFIX}"))[-1]
        assert poll(lambda: segment.stat().st_size == log.size_bytes, SOON_S), "what was allocated is not given back"
        assert log.position == before
        disk.full = False
        assert poll(lambda: loop.trouble is None, SOON_S)
        one(COMMIT)
        assert app.commits == 3
        app.verify()


# The archive


def test_the_archiver_survives_sqlites_errors_and_says_them(
    app: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiving, "RETRY_S", (0.01,))
    failing = [True]
    reading = Database.reading

    def fail(self: Database) -> object:
        if failing:
            raise apsw.IOError("disk I/O error")
        return reading(self)

    monkeypatch.setattr(Database, "reading", fail)
    archiver = Archiver(app.database, open_store(DirectorySpec(tmp_path / "archive")), interval_s=0.01)
    archiver.start()
    try:
        assert poll(lambda: archiver.error == "disk I/O error", SOON_S)
        assert archiver.txid == 0
        failing.clear()
        assert poll(lambda: archiver.txid == app.base_position.txid, SOON_S), archiver.error
        assert poll(lambda: archiver.error is None, SOON_S)
    finally:
        archiver.stop()


@pytest.mark.parametrize(("txid", "goes_on"), [(7, True), (JUMP_MOST + 1, False), ((1 << 64) - 1, False)])
def test_a_log_goes_on_from_a_restore_unless_its_archive_named_what_cannot_be(
    tmp_path: Path, txid: int, goes_on: bool
) -> None:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript("PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; CREATE TABLE t (a)")
    sums = PageChecksums.scan(4096, iter([(1, memoryview(path.read_bytes()))]))
    StateDir(path).close()
    save_restored(state_dir(path), RestoredState(sums, Position(txid, sums.database), 1, 0))
    with served(path) as app:
        with sql(path) as stock:
            stock("INSERT INTO t VALUES (1)")
        position = app.position
        assert (txid <= position.txid < txid + 5) == goes_on
        assert goes_on or position.txid < 5

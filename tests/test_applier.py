"""The applier against stock SQLite readers in other processes: what they see while it writes."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.apply_processes import Sql, poll, readers, script
from support.apply_source import Source, Transaction

from follower import wal_writer
from follower.applier import Applier, ChecksumMismatch
from follower.journal import Journal
from follower.wal_writer import WalWriter
from walcast.checksum import PageChecksums, page_checksum
from walcast.dbfiles import PageReader
from walcast.errors import ConfigError, Corrupt, Diverged, Stopped, Unavailable
from walcast.locks import try_lock, unlock
from walcast.position import Position
from walcast.walindex import LOCK_CHECKPOINT

PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    yield made
    made.db.close()


def replica_of(source: Source, tmp_path: Path) -> Applier:
    """Of the source's first state; that position is not known to it."""
    return Applier.open(source.copy_to(tmp_path / "replica" / "app.db"), tmp_path / "state")


def scan(applier: Applier) -> int:
    """The database checksum, from the pages."""
    with applier_reader(applier) as reader:
        return PageChecksums.scan(applier.page_size, reader.chunks()).database


def applier_reader(applier: Applier) -> PageReader:
    return PageReader(applier._files, applier._connections[0])


def pages_of(applier: Applier, *pgnos: int) -> list[bytes]:
    with applier_reader(applier) as reader:
        return [bytes(reader.read(pgno, 1)) for pgno in pgnos]


def follow(source: Source, applier: Applier, steps: int, seed: int) -> int:
    """`steps` random commits of the source, applied, with checkpoints at random moments; how often the WAL restarted.

    When the WAL is long and cannot restart, waits for readers for a bounded moment.
    """
    rng = random.Random(seed)
    applier.restart_frames = 100
    salts = set()
    for _ in range(steps):
        source.step().apply(applier)
        salts.add(applier._wal.header.salt)
        if rng.random() < 0.2:
            applier.checkpoint()
        if applier.restart_refused:
            poll(lambda: applier.checkpoint().complete and applier.restart_wal_if_possible(), 0.2)
    return len(salts) - 1


def finish(applier: Applier) -> bytes:
    """All into the database file, no reader being there; the file's bytes."""
    path = applier.path
    assert applier.checkpoint().complete
    applier.close()
    return path.read_bytes()


# What readers see


def campaign(tmp_path: Path, page_size: int, steps: int, seed: int) -> None:
    print(f"page_size={page_size} seed={seed}")
    source = Source(tmp_path, page_size, seed)
    applier = replica_of(source, tmp_path)
    with readers(applier.path, tmp_path) as found:
        restarts = follow(source, applier, steps, seed)
        assert found.wait(3)
    print(f"{restarts} restarts, {found.checks} checks in {found.snapshots} snapshots")
    assert found.violations == []
    assert restarts > 0
    assert min(found.checks) >= 4
    assert finish(applier) == source.close()


@pytest.mark.parametrize(("page_size", "steps"), [(512, 120), (4096, 180), (65536, 100)])
def test_readers_see_only_whole_commits_and_the_files_end_identical(tmp_path: Path, page_size: int, steps: int) -> None:
    campaign(tmp_path, page_size, steps, seed=page_size)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_readers_see_only_whole_commits_for_long(tmp_path: Path, page_size: int, seed: int) -> None:
    campaign(tmp_path, page_size, 800, seed)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_every_page_size_is_applied_byte_for_byte(tmp_path: Path, page_size: int) -> None:
    source = Source(tmp_path, page_size, seed=1)
    applier = replica_of(source, tmp_path)
    for transaction in (source.grow(40), source.rewrite_all(), source.forget(), source.vacuum(), source.transfer()):
        transaction.apply(applier)
        assert scan(applier) == transaction.position.checksum
        assert applier.commit_pages == transaction.commit_pages
    assert finish(applier) == source.close()


def test_a_snapshot_stays_while_the_wal_cannot_restart_under_it(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    applier.restart_frames = 1
    source.transfer().apply(applier)
    salt = applier._wal.header.salt
    with Sql.on(applier.path) as reader, Sql.on(applier.path) as other:
        reader("BEGIN")
        before = reader("SELECT * FROM accounts, meta")
        for _ in range(30):
            source.step().apply(applier)
            applier.checkpoint()
        assert applier.restart_refused
        assert applier.backfilled_frames < applier.wal_frames
        assert reader("SELECT * FROM accounts, meta") == before
        assert other("SELECT version FROM meta")[0][0] > before[0][2]
        reader("COMMIT")
        assert applier.checkpoint().complete
        frames = applier.wal_frames
        last = source.transfer()
        last.apply(applier)
        assert not applier.restart_refused
        assert applier.wal_frames == len(last.pgnos) < frames
        assert applier._wal.header.salt[0] == (salt[0] + 1) & 0xFFFFFFFF
        assert applier._wal.header.salt[1] != salt[1]
        assert other("PRAGMA integrity_check") == [["ok"]]
        assert reader("SELECT version FROM meta") == other("SELECT version FROM meta")
    assert finish(applier) == source.close()


def test_a_wal_that_is_not_all_in_the_database_file_does_not_restart(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    source.grow().apply(applier)
    assert not applier.restart_wal_if_possible()
    assert applier.restart_refused
    assert applier.checkpoint().complete
    assert applier.restart_wal_if_possible()
    assert (applier.restart_refused, applier.wal_frames, applier.backfilled_frames) == (False, 0, 0)
    assert not applier.restart_wal_if_possible(), "there is nothing to restart"
    source.transfer().apply(applier)
    assert finish(applier) == source.close()


def test_a_wal_does_not_restart_during_a_checkpoint_of_anybody(source: Source, tmp_path: Path) -> None:
    """SQLite before 3.51.3, having read the old header, would mark frames of the new WAL as backfilled."""
    applier = replica_of(source, tmp_path)
    source.grow().apply(applier)
    assert applier.checkpoint().complete
    other = os.open(f"{applier.path}-shm", os.O_RDWR)
    assert try_lock(other, LOCK_CHECKPOINT)
    assert not applier.restart_wal_if_possible()
    unlock(other, LOCK_CHECKPOINT)
    assert applier.restart_wal_if_possible()
    source.transfer().apply(applier)
    assert finish(applier) == source.close()
    os.close(other)


def test_a_reader_of_the_newest_commit_keeps_the_wal_from_restarting(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    source.grow().apply(applier)
    with Sql.on(applier.path) as reader:
        reader("BEGIN")
        before = reader("SELECT * FROM filler, meta")
        assert applier.checkpoint().complete  # and still the reader reads from the WAL
        assert not applier.restart_wal_if_possible()
        source.rewrite_all().apply(applier)
        assert reader("SELECT * FROM filler, meta") == before
        reader("COMMIT")
        assert applier.checkpoint().complete
        assert applier.restart_wal_if_possible()
    assert finish(applier) == source.close()


def test_a_wal_file_that_one_transaction_made_huge_is_cut_when_it_restarts(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_writer, "TRUNCATE_BYTES", 100_000)
    applier = replica_of(source, tmp_path)
    wal = Path(f"{applier.path}-wal")
    source.transfer().apply(applier)
    for transaction, cut in ((source.grow(100, 6000), True), (source.transfer(), False)):
        transaction.apply(applier)
        size = wal.stat().st_size
        assert applier.checkpoint().complete
        assert applier.restart_wal_if_possible()
        assert wal.stat().st_size == (0 if cut else size)
    source.grow().apply(applier)
    assert finish(applier) == source.close()


def test_a_snapshot_that_reads_only_the_database_file_survives_a_restart(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    source.grow(20).apply(applier)
    assert applier.checkpoint().complete
    with Sql.on(applier.path) as reader:
        reader("BEGIN")
        before = reader("SELECT * FROM filler, meta")
        assert applier.restart_wal_if_possible()
        for _ in range(20):
            source.step().apply(applier)
        assert not applier.checkpoint().complete  # its read lock 0 holds every backfill
        assert reader("SELECT * FROM filler, meta") == before
        reader("COMMIT")
        assert reader("PRAGMA integrity_check") == [["ok"]]
    assert finish(applier) == source.close()


def test_no_app_can_write_to_a_replica(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    source.grow().apply(applier)
    checksum = scan(applier)
    attempts = (
        "INSERT INTO filler (body) VALUES (x'00')",
        "BEGIN IMMEDIATE",
        "CREATE TABLE mine (a)",
        "VACUUM",
        "PRAGMA user_version = 7",
        "PRAGMA journal_mode = DELETE",
    )
    with Sql.on(applier.path) as app:
        for sql in attempts:
            assert app(sql) == {"error": "OperationalError: database is locked"}, sql
        assert app("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 1  # busy, as far as it means to restart the WAL
        assert app("SELECT version FROM meta") == [[1]]
    assert scan(applier) == checksum
    source.transfer().apply(applier)
    assert finish(applier) == source.close()


def test_readers_may_come_first_and_stay_past_the_applier(source: Source, tmp_path: Path) -> None:
    path = source.copy_to(tmp_path / "replica" / "app.db")
    with Sql.on(path) as reader:
        assert reader("SELECT version FROM meta") == [[0]]
        applier = Applier.open(path, tmp_path / "state")
        last = source.run(10)[-1]
        for transaction in source.transactions:
            transaction.apply(applier)
        version = reader("SELECT version FROM meta")
        applier.close()
        assert reader("SELECT version FROM meta") == version
        again = Applier.open(path, tmp_path / "state")
        assert again.position == last.position
        source.transfer().apply(again)
        assert reader("SELECT version FROM meta")[0][0] == version[0][0] + 1
    assert finish(again) == source.close()


def test_a_checkpoint_by_a_reader_does_no_harm(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    applier.restart_frames = 20
    with Sql.on(applier.path) as app:
        for i in range(60):
            source.step().apply(applier)
            app(f"PRAGMA wal_checkpoint({('PASSIVE', 'FULL', 'RESTART', 'TRUNCATE')[i % 4]})")
        assert app("PRAGMA integrity_check") == [["ok"]]
        assert applier.wal_frames < 20 + max(len(t.pgnos) for t in source.transactions)
    assert finish(applier) == source.close()


# Transactions


def test_an_uncommitted_transaction_is_not_seen_and_leaves_nothing(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    before = scan(applier)
    size = applier.page_size
    with Sql.on(applier.path) as reader:
        applier.begin()
        count = 3 * applier._wal._capacity
        applier.write_pages(range(2, count + 2), [bytes([7]) * size] * count)
        assert reader("PRAGMA integrity_check") == [["ok"]]
        applier.rollback()
        assert reader("SELECT version FROM meta") == [[0]]
    assert scan(applier) == before
    source.grow().apply(applier)
    assert finish(applier) == source.close()


def test_a_transaction_that_does_not_give_its_checksum_is_rolled_back(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    first, second = source.grow(), source.transfer()
    first.apply(applier)
    damaged = Transaction(
        second.pgnos, [*second.pages[:-1], bytes(len(second.pages[-1]))], second.commit_pages, second.position
    )
    with pytest.raises(ChecksumMismatch) as caught:
        damaged.apply(applier)
    assert isinstance(caught.value, Diverged)
    assert caught.value.expected == second.position.checksum != caught.value.actual
    assert applier.position == first.position
    assert scan(applier) == first.position.checksum
    second.apply(applier)
    assert applier.position == second.position
    assert finish(applier) == source.close()


def test_pages_past_the_end_count_for_nothing(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    first, pages = source.grow(), applier.commit_pages
    junk = bytes([9]) * applier.page_size
    for extra in (1, 3 * applier._wal._capacity):  # in the buffer; and long written
        applier.begin()
        applier.write_pages(first.pgnos, first.pages)
        applier.write_pages(range(first.commit_pages + 1, first.commit_pages + 1 + extra), [junk] * extra)
        applier.commit(1, first.position, first.commit_pages)
        assert scan(applier) == first.position.checksum
        past = np.count_nonzero(applier._files.frame_pgnos(applier.wal_frames) > first.commit_pages)
        assert (past == 0) == (extra == 1)
    assert first.commit_pages > pages
    last = source.grow(50)
    last.apply(applier)  # grows over them
    assert finish(applier) == source.close()


def test_a_commit_without_pages_moves_the_position(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    source.grow().apply(applier)
    position = Position(77, applier.checksums.database)
    applier.begin()
    applier.commit(5, position, applier.commit_pages)
    assert (applier.position, applier.term) == (position, 5)
    assert scan(applier) == position.checksum
    source.transfer().apply(applier)
    assert finish(applier) == source.close()


def test_a_commit_may_only_shrink_the_database(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    source.grow(30).apply(applier)
    whole = applier.commit_pages
    (one,) = pages_of(applier, 1)
    one = one[:28] + (whole - 3).to_bytes(4, "big") + one[32:]  # what SQLite takes for the size
    changed = (np.array([1], np.uint32), np.array([page_checksum(1, one)], np.uint64))
    applier.begin()
    applier.write_pages([1], [one])
    applier.commit(1, Position(8, applier.checksums.after(*changed, whole)), whole)
    none = (np.zeros(0, np.uint32), np.zeros(0, np.uint64))
    checksum = applier.checksums.after(*none, whole - 3)
    applier.begin()
    applier.write_pages([whole], [bytes(applier.page_size)])  # it would be the only frame
    applier.commit(1, Position(9, checksum), whole - 3)
    assert scan(applier) == checksum
    assert len(finish(applier)) == (whole - 3) * source.page_size


def test_a_page_written_twice_counts_as_last_written(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    transaction = source.grow(100, 8000)
    transaction.apply(applier)
    one, two = pages_of(applier, 1, 2)
    applier.begin()
    applier.write_pages([1, 2, 1], [bytes(applier.page_size), two, one])
    applier.commit(1, transaction.position, transaction.commit_pages)
    applier.begin()
    applier.commit(1, transaction.position, transaction.commit_pages)  # page 1 again, as it was last
    assert scan(applier) == transaction.position.checksum
    assert finish(applier) == source.close()


def test_a_huge_transaction_crosses_buffers_and_wal_index_blocks(tmp_path: Path) -> None:
    source = Source(tmp_path, 512)
    applier = replica_of(source, tmp_path)
    source.transfer().apply(applier)
    transaction = source.grow(1600, 8000)
    assert len(transaction.pgnos) > 10000
    with readers(applier.path, tmp_path, ("short",)) as found:
        transaction.apply(applier)
        assert found.wait(1)
        for _ in range(5):
            source.step().apply(applier)
        assert found.wait(1)
    assert found.violations == []
    assert finish(applier) == source.close()


@pytest.mark.parametrize(("pgno", "size"), [(0, 4096), (-1, 4096), (1 << 32, 4096), (262145, 4096), (2, 4095), (2, 0)])
def test_what_cannot_be_a_page_is_refused_and_rolls_back(source: Source, tmp_path: Path, pgno: int, size: int) -> None:
    applier = replica_of(source, tmp_path)
    applier.begin()
    with pytest.raises(Corrupt):
        applier.write_pages([2, pgno], [bytes(4096), bytes(size)])
    source.transfer().apply(applier)
    assert finish(applier) == source.close()


@pytest.mark.parametrize("where", [(wal_writer, "_write"), (Journal, "append"), (WalWriter, "_insert_hashes")])
def test_a_full_disk_rolls_back_and_the_next_try_succeeds(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[object, str]
) -> None:
    applier = replica_of(source, tmp_path)
    first, second = source.grow(), source.transfer()
    first.apply(applier)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(*where, full)
        with pytest.raises(Unavailable):
            second.apply(applier)
    assert applier.position == first.position
    assert scan(applier) == first.position.checksum
    second.apply(applier)
    assert finish(applier) == source.close()


def test_calls_out_of_order_are_refused(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    with pytest.raises(RuntimeError):
        applier.write_pages([1], [bytes(4096)])
    with pytest.raises(RuntimeError):
        applier.commit(1, Position(), 1)
    applier.begin()
    with pytest.raises(RuntimeError):
        applier.begin()
    applier.close()


# Taking over


def test_a_replica_is_recognised_by_its_content(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    path = applier.path
    assert applier.position == Position()
    assert applier.checksums.database == source.first_position.checksum
    for transaction in source.run(20):
        transaction.apply(applier, term=3)
    position = applier.position
    applier.close()
    again = Applier.open(path, tmp_path / "state")
    assert (again.position, again.term) == (position, 3)
    assert again.commit_pages == source.transactions[-1].commit_pages
    again.close()
    with Sql.on(path) as app:
        assert app("UPDATE accounts SET balance = 1 WHERE id = 1") == []
    changed = Applier.open(path, tmp_path / "state")
    assert (changed.position, changed.term) == (Position(), 0)
    assert scan(changed) == changed.checksums.database
    changed.close()


def test_a_second_applier_is_refused(source: Source, tmp_path: Path) -> None:
    applier = replica_of(source, tmp_path)
    source.grow().apply(applier)
    with script("apply_victim", str(applier.path), str(tmp_path / "other"), "/dev/null") as second:
        assert second.stdout is not None
        assert second.stdout.readline().startswith("Unavailable")
    source.transfer().apply(applier)
    assert finish(applier) == source.close()


def test_only_databases_in_wal_mode_are_replicas(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Applier.open(tmp_path / "missing.db", tmp_path / "state")
    with Sql.on(tmp_path / "plain.db") as app:
        app("CREATE TABLE t (a)")
    with pytest.raises(ConfigError):
        Applier.open(tmp_path / "plain.db", tmp_path / "state")
    (tmp_path / "text.db").write_text("no database" * 1000)
    with pytest.raises(Corrupt):
        Applier.open(tmp_path / "text.db", tmp_path / "state")


def test_an_applier_whose_commit_was_interrupted_refuses_to_go_on(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applier = replica_of(source, tmp_path)
    path = applier.path
    first, second = source.grow(), source.transfer()
    first.apply(applier)

    def interrupt(self: WalWriter, header: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WalWriter, "_move_header", interrupt)
        with pytest.raises(KeyboardInterrupt):
            second.apply(applier)
    applier.rollback()
    with pytest.raises(Stopped):
        applier.begin()
    applier.close()
    again = Applier.open(path, tmp_path / "state")
    assert again.position in (first.position, second.position)
    again.close()


# The checker itself: planted bugs that it must find


class HeaderFirst(WalWriter):
    """Moves the header before the frames are there."""

    pause = staticmethod(lambda: None)

    def _flush(self, count: int, commit_pages: int = 0) -> None:
        if commit_pages:
            header = self.header
            mx_frame = header.mx_frame + len(self._pgnos)
            self._move_header(
                type(header)(
                    header.change + 1,
                    header.page_size,
                    mx_frame,
                    commit_pages,
                    (0, 0),
                    self._wal_header.salt,
                )
            )
            type(self).pause()
            self.header = header
        super()._flush(count, commit_pages)


class CommitPerPage(WalWriter):
    """Gives every page a commit of its own."""

    pause = staticmethod(lambda: None)

    def append(self, pgno: int, page: bytes | bytearray | memoryview) -> None:
        if self._pgnos:
            pages = max(self.header.commit_pages, pgno)
            super().publish(pages, page)
            type(self).pause()
        super().append(pgno, page)


@pytest.mark.parametrize("writer", [HeaderFirst, CommitPerPage])
def test_the_checker_finds_a_torn_apply(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: type[WalWriter]
) -> None:
    monkeypatch.setattr(Applier, "writer", writer)
    applier = replica_of(source, tmp_path)
    with readers(applier.path, tmp_path, ("short", "short")) as found:
        # A reader makes a check at least while the bug shows.
        monkeypatch.setattr(writer, "pause", staticmethod(lambda: found.wait(1, 0.2)))
        for _ in range(3):
            source.grow().apply(applier)
            source.transfer().apply(applier)
    assert found.violations != []
    applier.close()

"""Snapshots, checkpoints, and when the WAL may begin again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.apply_processes import Sql
from support.apply_replica import finish, replica_of
from support.apply_source import Source

from walcast import wal_writer
from walcast.locks import try_lock, unlock
from walcast.walindex import LOCK_CHECKPOINT


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    yield made
    made.db.close()


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

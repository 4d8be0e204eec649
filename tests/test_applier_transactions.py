"""One transaction at a time: what counts, what is refused, what is rolled back."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.apply_processes import Sql, readers
from support.apply_replica import finish, pages_of, replica_of, scan
from support.apply_source import Source, Transaction

from walcast import wal_writer
from walcast.checksum import page_checksum
from walcast.errors import Corrupt, Diverged, Unavailable
from walcast.position import Position
from walcast.wal_writer import WalWriter
from walcast_follower.apply.applier import ChecksumMismatch
from walcast_follower.apply.position_journal import Journal


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    yield made
    made.db.close()


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

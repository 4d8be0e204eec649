"""A database grows only by pages that came, and what SQLite and capture really do always satisfies that."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import pytest
from support.apply_replica import replica_of
from support.apply_source import Source
from support.e2e_oracle import served
from support.e2e_state import create
from support.writers import Sql, sql

from walcast.checksum import PageChecksums, lock_pgno
from walcast.errors import ProtocolViolation
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast_follower.apply.page_one import check_page_one
from walcast_follower.bootstrap.new_replica import NewFile
from walcast_follower.bootstrap.partial_copy import PartialCopy
from walcast_follower.subscribe.copied_pages import Pieces
from walcast_follower.subscribe.page_growth import Growth, check_grown, check_whole, next_pgno

SIZE = 65536  # the lock page is number 16385
LOCK = lock_pgno(SIZE)


def test_pages_beyond_the_end_come_one_after_the_other_and_the_lock_page_never() -> None:
    growth = Growth(SIZE, LOCK - 3)
    for pgno in (1, LOCK - 3, LOCK - 2, LOCK - 1, LOCK + 1):
        growth.add(pgno)
    growth.finish(LOCK + 1)
    assert (growth.pages, growth.reached_pages) == (LOCK + 1, LOCK + 1)
    assert next_pgno(LOCK - 1, SIZE) == LOCK + 1


@pytest.mark.parametrize("pgnos", [[11], [10, 12], [10, 11, 13]], ids=str)
def test_a_page_that_leaves_a_gap_is_refused(pgnos: list[int]) -> None:
    growth = Growth(SIZE, 9)
    *fine, last = pgnos
    for pgno in fine:
        growth.add(pgno)
    with pytest.raises(ProtocolViolation):
        growth.add(last)


@pytest.mark.parametrize(("pgnos", "commit_pages", "fine"), [([], 10, False), ([10], 11, False), ([10], 10, True)])
def test_a_size_is_what_the_pages_bear_out(pgnos: list[int], commit_pages: int, fine: bool) -> None:
    growth = Growth(SIZE, 9)
    for pgno in pgnos:
        growth.add(pgno)
    if fine:
        growth.finish(commit_pages)
        check_grown(pgnos, SIZE, 9, commit_pages)
        return
    with pytest.raises(ProtocolViolation):
        growth.finish(commit_pages)
    with pytest.raises(ProtocolViolation):
        check_grown(pgnos, SIZE, 9, commit_pages)


def test_a_database_that_shrinks_and_grows_again_needs_the_pages_again() -> None:
    growth = Growth(SIZE, 9)
    growth.finish(4)
    with pytest.raises(ProtocolViolation):
        growth.finish(9)
    growth.add(5)
    growth.finish(5)


def test_a_new_database_needs_all_its_pages_but_the_lock_page() -> None:
    sums = np.ones(LOCK + 1, np.uint64)
    sums[LOCK - 1] = 0
    check_whole(PageChecksums(SIZE, sums), LOCK + 1)
    sums[5] = 0
    with pytest.raises(ProtocolViolation):
        check_whole(PageChecksums(SIZE, sums), LOCK + 1)
    with pytest.raises(ProtocolViolation):
        check_whole(PageChecksums(SIZE), 0)


class Taken:
    """A target that counts."""

    position, term, page_size = Position(), 0, SIZE

    def __init__(self) -> None:
        self.pgnos: list[int] = []
        self.most_at_once_bytes = 0

    def begin(self) -> None: ...
    def rollback(self) -> None: ...
    def commit(self, term: int, position: Position, commit_pages: int, timestamp_ms: int = 0) -> None: ...

    def write_pages(self, pgnos: Any, pages: Any) -> None:
        self.pgnos += pgnos
        self.most_at_once_bytes = max(self.most_at_once_bytes, sum(len(page) for page in pages))


def zeros(pgnos: list[int]) -> pb.CopyPages:
    block = lz4.block.compress(bytes(SIZE), store_size=False)
    return pb.CopyPages(pgnos=pgnos, sizes=[len(block)] * len(pgnos), blocks=block * len(pgnos))


def test_a_copy_writes_no_page_that_leaves_a_gap() -> None:
    """A sparse file and an array of checksums would be as large as the page's number says."""
    taken = Taken()
    pieces = Pieces(taken, pb.CopyStart(page_size=SIZE, commit_pages=1 << 20), 9)
    pieces.write(zeros([2, 7, 10, 11]))
    with pytest.raises(ProtocolViolation):
        pieces.write(zeros([13]))
    assert taken.pgnos == [2, 7, 10, 11]


def test_a_message_of_zeros_is_never_in_memory_as_a_whole() -> None:
    taken = Taken()
    pieces = Pieces(taken, pb.CopyStart(page_size=SIZE, commit_pages=1 << 20), 9)
    pieces.write(zeros(list(range(2, 2002))))
    assert len(taken.pgnos) == 2000
    assert taken.most_at_once_bytes <= 1 << 20


def test_a_new_file_takes_no_page_far_beyond_what_was_announced(tmp_path: Path) -> None:
    new = NewFile(tmp_path / "app.db", tmp_path, PartialCopy.open(tmp_path, SIZE), 4)
    page = bytes(SIZE)
    new.write_pages([4, 1, 5, 6, 5], [page] * 5)
    for pgno in (8, 1 << 28, 0, LOCK, 0xFFFFFFFE):
        with pytest.raises(ProtocolViolation):
            new.write_pages([pgno], [page])
    with pytest.raises(ProtocolViolation):
        new.write_pages([1], [page[:-1]])
    new.partial.discard()


# An applier believes no receiver either


def applied(source: Source, tmp_path: Path, change: Callable[[list[int], list[bytes], int], int]) -> None:
    applier = replica_of(source, tmp_path / "r" / "app.db")
    try:
        transaction = source.transfer()
        pgnos, pages = list(transaction.pgnos), list(transaction.pages)
        commit_pages = change(pgnos, pages, transaction.commit_pages)
        checksums = applier.checksums.copy()
        sums = PageChecksums.scan(source.page_size, iter(list(zip(pgnos, pages, strict=True))))
        numbers = np.flatnonzero(sums.pages).astype(np.uint32) + 1
        after = checksums.after(numbers, sums.pages[numbers - 1], commit_pages)
        before = applier.position
        applier.begin()
        applier.write_pages(pgnos, pages)
        with pytest.raises(ProtocolViolation):
            applier.commit(1, Position(before.txid + 1, after), commit_pages)
        assert applier.position == before
        transaction.apply(applier)
        assert applier.position == transaction.position
    finally:
        applier.close()
        source.db.close()


def test_an_applier_shows_no_size_that_its_pages_do_not_bear_out(tmp_path: Path) -> None:
    applied(Source(tmp_path), tmp_path, lambda pgnos, pages, commit_pages: 0xFFFFFFFE)


def test_an_applier_shows_no_page_one_that_readers_cannot_use(tmp_path: Path) -> None:
    def change(pgnos: list[int], pages: list[bytes], commit_pages: int) -> int:
        pgnos.append(1)
        pages.append(b"no database".ljust(4096, b"\0"))
        return commit_pages

    applied(Source(tmp_path), tmp_path, change)


# Real databases


def random_growth(one: Sql, rng: random.Random, page_size: int) -> None:
    """Ways in which SQLite makes a file larger and smaller, with free pages at its end."""
    blob, rows = rng.randrange(1, 40) * page_size, rng.randrange(1, 30)
    insert = f"INSERT INTO grown SELECT randomblob({blob // rows}) FROM (SELECT 1 FROM spread LIMIT {rows});"
    one(
        rng.choice(
            [
                f"BEGIN; {insert} COMMIT;",
                f"BEGIN; {insert} DELETE FROM grown; COMMIT;",
                f"BEGIN; {insert} DELETE FROM grown WHERE rowid % 2; {insert} COMMIT;",
                f"BEGIN; SAVEPOINT s; {insert} ROLLBACK TO s; RELEASE s; {insert} COMMIT;",
                f"BEGIN; {insert} SAVEPOINT s; {insert} DELETE FROM grown; ROLLBACK TO s; COMMIT;",
                f"BEGIN; CREATE TABLE new (x); INSERT INTO new VALUES (zeroblob({blob})); DROP TABLE new; COMMIT;",
                f"BEGIN; {insert} ROLLBACK; BEGIN; INSERT INTO grown VALUES (1); COMMIT;",
                "DELETE FROM grown;",
                "VACUUM;",
                f"PRAGMA incremental_vacuum({rng.randrange(1, 40)});",
                "PRAGMA wal_checkpoint(TRUNCATE);",
            ]
        )
    )


@pytest.mark.parametrize("auto_vacuum", ["NONE", "FULL", "INCREMENTAL"])
def test_however_sqlite_grows_a_file_the_log_has_every_new_page(tmp_path: Path, seed: int, auto_vacuum: str) -> None:
    """`verify` replays the log by the rule that followers have."""
    rng = random.Random(f"{seed} {auto_vacuum}")
    page_size = rng.choice([512, 1024, 4096])
    path = tmp_path / "app.db"
    create(path, page_size=page_size)
    with sql(path) as one:
        one(f"PRAGMA journal_mode = DELETE; PRAGMA auto_vacuum = {auto_vacuum}; VACUUM; PRAGMA journal_mode = WAL;")
        one("CREATE TABLE grown (x);")
        one("PRAGMA wal_checkpoint(TRUNCATE);")
    with served(path) as app, sql(path) as one:
        one(f"PRAGMA cache_size = {rng.choice([1, 10, -2000])}; PRAGMA secure_delete = {rng.choice('01')};")
        for _ in range(60):
            random_growth(one, rng, page_size)
        app.verify()


def test_page_one_of_a_real_database_is_taken(tmp_path: Path) -> None:
    for page_size in (512, 65536):
        folder = tmp_path / str(page_size)
        folder.mkdir()
        source = Source(folder, page_size)
        data = source.close()
        check_page_one(data[:page_size], page_size, len(data) // page_size)
        with pytest.raises(ProtocolViolation):
            check_page_one(data[:page_size], page_size, len(data) // page_size - 1)

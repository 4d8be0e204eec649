"""What stock SQLite readers in other processes see while the applier writes; that the checker would see a bug."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.apply_processes import Sql, poll, readers
from support.apply_replica import finish, replica_of, scan
from support.apply_source import Source

from walcast.wal_writer import WalWriter
from walcast_follower.apply.applier import Applier

PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    yield made
    made.db.close()


def follow(source: Source, applier: Applier, steps: int) -> int:
    """`steps` random commits of the source, applied, while another thread makes checkpoints; the WAL's restarts.

    When the WAL is long and cannot restart, waits for readers for a bounded moment.
    """
    applier.restart_frames = 100
    salts = set()
    with ThreadPoolExecutor(1) as pool:
        checkpoint = pool.submit(applier.checkpoint)

        def restarted() -> bool:
            return pool.submit(applier.checkpoint).result().complete and applier.restart_wal_if_possible()

        for _ in range(steps):
            source.step().apply(applier)
            salts.add(applier._wal.header.salt)
            if applier.restart_refused:
                poll(restarted, 0.5)
            elif checkpoint.done() and source.random.random() < 0.2:
                checkpoint.result()
                checkpoint = pool.submit(applier.checkpoint)
    return len(salts) - 1


def campaign(tmp_path: Path, page_size: int, steps: int, seed: int) -> None:
    print(f"page_size={page_size} seed={seed}")
    source = Source(tmp_path, page_size, seed)
    applier = replica_of(source, tmp_path)
    with readers(applier.path, tmp_path) as found:
        restarts = follow(source, applier, steps)
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
        monkeypatch.setattr(writer, "pause", staticmethod(lambda: found.wait(1, 5.0)))
        for _ in range(3):
            source.grow().apply(applier)
            source.transfer().apply(applier)
    assert found.violations != []
    applier.close()

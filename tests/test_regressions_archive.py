"""Faults of the archive's upkeep that were found once: histories that join, clocks, notes, damage, refusals."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.archiving import (
    CALM,
    archived,
    archiving,
    compact_now,
    levels,
    restored,
    restored_by_litestream,
    work_now,
)
from support.e2e_oracle import Served, served
from support.e2e_state import create
from support.nodes import poll, walcast
from support.writers import checkpointed, sql

from walcast.archive import SNAPSHOT_LEVEL, ArchiveFile
from walcast.errors import ConfigError
from walcast.position import Position
from walcast.store.directory import DirectoryStore
from walcast_primary.archiving import upkeep as upkeeping
from walcast_primary.archiving.compaction_schedule import ArchivePolicy, expired, interval_passed, snapshot_due
from walcast_primary.archiving.unarchived_pages import Unarchived

YEAR_MS = 365 * 86_400_000
SHORT = ArchivePolicy(level_intervals_s=(3600.0,), retention_s=0.0, raw_retention_s=0.0)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "app.db"
    create(path)
    with served(path) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "archive")


def write(db: Path, commits: int, sentence: str = "UPDATE accounts SET balance = balance + 1") -> None:
    with sql(db) as stock:
        for _ in range(commits):
            stock(sentence)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def newest(store: DirectoryStore, level: int) -> ArchiveFile:
    return max(levels(store)[level], key=lambda file: file.max_txid)


@pytest.mark.parametrize("at", [0, 5, 200], ids=["magic", "flags", "a page"])
def test_a_damaged_newest_file_does_not_keep_a_primary_from_archiving(
    app: Served, store: DirectoryStore, tmp_path: Path, at: int
) -> None:
    with archiving(app, store) as archiver:
        write(app.path, 2)
        assert archived(app, archiver)
    flip(store.root / newest(store, 0).key, at)
    app.restart()
    with archiving(app, store) as archiver:
        write(app.path, 2)
        assert archived(app, archiver)
        compact_now(archiver)
    app.stop()
    expected = checkpointed(app.path)
    assert restored(store, tmp_path / "ours.db") == expected
    assert restored_by_litestream(store, tmp_path / "theirs.db") == expected


def test_a_database_at_the_same_txid_as_the_archive_but_with_another_content_is_archived(
    app: Served, store: DirectoryStore, tmp_path: Path
) -> None:
    with archiving(app, store) as archiver:
        assert archived(app, archiver)
    app.stop()
    shutil.rmtree(app.database.state.path)
    write(app.path, 1)
    with served(app.path) as again:
        assert again.position.txid == newest(store, SNAPSHOT_LEVEL).max_txid, "the TXIDs begin anew"
        with archiving(again, store) as archiver:
            assert archived(again, archiver)
        again.stop()
        assert restored(store, tmp_path / "ours.db") == checkpointed(app.path)


def test_two_histories_that_end_at_one_txid_are_never_merged(tmp_path: Path, store: DirectoryStore) -> None:
    """Litestream has no checksum to find it out by."""
    databases = [tmp_path / "one.db", tmp_path / "two.db"]
    for number, path in enumerate(databases):
        create(path, seed=number)
        with served(path) as app:
            with archiving(app, store) as archiver:
                write(path, 2, f"CREATE TABLE IF NOT EXISTS of_{number}(x)")
                write(path, 2)
                assert archived(app, archiver)
                compact_now(archiver)
            app.stop()
    expected = checkpointed(databases[1])
    assert restored(store, tmp_path / "ours.db") == expected
    assert restored_by_litestream(store, tmp_path / "theirs.db") == expected


def test_a_backup_never_replaces_another_databases_backup(tmp_path: Path, store: DirectoryStore) -> None:
    for name in ("a", "b"):
        create(tmp_path / f"{name}.db", seed=ord(name))
        flags = ["--continue-archive"] if name == "b" else []  # without it the archive is refused
        assert walcast("snapshot", tmp_path / f"{name}.db", store.url, *flags).returncode == 0
    first, second = sorted(levels(store)[SNAPSHOT_LEVEL], key=lambda file: file.max_txid)
    assert restored(store, tmp_path / "ours.db", txid=first.max_txid) == checkpointed(tmp_path / "a.db")
    assert restored(store, tmp_path / "ours.db", txid=second.max_txid) == checkpointed(tmp_path / "b.db")


# Clocks


def at(level: int, min_txid: int, max_txid: int, timestamp_ms: int) -> ArchiveFile:
    return ArchiveFile(level, min_txid, max_txid, 1, timestamp_ms, f"{level}/{min_txid}-{max_txid}")


def test_a_snapshot_from_1970_is_not_the_one_that_retention_builds_on() -> None:
    now_ms = 60 * YEAR_MS
    good = at(SNAPSHOT_LEVEL, 1, 5, now_ms - 1000)
    old_clock = at(SNAPSHOT_LEVEL, 1, 9, 0)
    assert expired([good, at(0, 6, 9, now_ms), old_clock], ArchivePolicy(), now_ms).files == ()


def test_a_snapshot_from_the_future_keeps_nothing_for_ever() -> None:
    now_ms, day_ms = 60 * YEAR_MS, 86_400_000
    ahead = at(SNAPSHOT_LEVEL, 1, 5, now_ms + YEAR_MS)
    later = at(SNAPSHOT_LEVEL, 1, 9, now_ms - 8 * day_ms)
    assert expired([ahead, later], ArchivePolicy(), now_ms).files == (ahead,)
    assert expired([ahead], ArchivePolicy(), now_ms).files == ()
    assert snapshot_due([ahead, at(0, 6, 6, now_ms)], ArchivePolicy(), now_ms)
    assert interval_passed(now_ms, now_ms + YEAR_MS, 30.0)


def test_a_clock_that_jumped_deletes_nothing_for_a_while(
    app: Served, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with archiving(app, store) as archiver:
        write(app.path, 2)
        assert archived(app, archiver)
        upkeep = archiver._upkeep
        assert upkeep is not None
        upkeep._take_snapshot()
        before = levels(store)
        real_s, real_ns = upkeeping.time.time, upkeeping.time.time_ns
        monkeypatch.setattr(upkeeping.time, "time", lambda: real_s() + YEAR_MS / 1000)
        monkeypatch.setattr(upkeeping.time, "time_ns", lambda: real_ns() + YEAR_MS * 1_000_000)
        assert expired([f for files in before.values() for f in files], CALM, upkeeping._now_ms()).files
        upkeep._watch_clock()
        work_now(upkeep)
        assert levels(store)[SNAPSHOT_LEVEL] == before[SNAPSHOT_LEVEL]
        assert upkeep._delete_not_before_s


# Notes


def test_notes_of_a_log_that_is_no_more_connect_with_nothing(app: Served, tmp_path: Path) -> None:
    write(app.path, 5)
    log, position = app.database.log, app.position
    entry = log.after(app.base_position.txid)
    assert entry is not None
    notes = Unarchived(tmp_path, log)
    notes.move(app.base_position, continued=False)
    notes.note(entry.segment)
    assert notes.connects(app.base_position)
    assert Unarchived(tmp_path, log).connects(app.base_position), "also in the next process"
    assert log.checksums is not None
    log.start(log.checksums.copy(), Position(position.txid, position.checksum ^ 1))
    assert not notes.connects(app.base_position)
    assert not Unarchived(tmp_path, log).connects(app.base_position)


# Damage and refusals


def test_a_snapshot_that_nobody_read_back_is_read_before_anything_goes_for_it(
    app: Served, store: DirectoryStore, tmp_path: Path
) -> None:
    with archiving(app, store) as archiver:
        write(app.path, 2)
        assert archived(app, archiver)
        assert archiver._upkeep is not None
        archiver._upkeep._take_snapshot()
    path = store.root / newest(store, SNAPSHOT_LEVEL).key
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = {file.key for files in levels(store).values() for file in files} - {newest(store, SNAPSHOT_LEVEL).key}
    with archiving(app, store, SHORT) as archiver:
        assert poll(lambda: archiver.upkeep_error)
        assert before <= {file.key for files in levels(store).values() for file in files}
    app.stop()
    assert restored(store, tmp_path / "ours.db") == checkpointed(app.path)


def test_a_store_that_refuses_deletion_is_named_until_it_allows_it(app: Served, tmp_path: Path) -> None:
    class Kept(DirectoryStore):
        calls = 0

        def delete(self, keys: Any) -> None:
            self.calls += 1
            raise ConfigError("these credentials may not delete there")

    store = Kept(tmp_path / "archive")
    with archiving(app, store, SHORT) as archiver:
        write(app.path, 2)
        assert archived(app, archiver)
        compact_now_and_fail(archiver)
        assert poll(lambda: archiver.upkeep_error)
        asked = store.calls
        for _ in range(5):
            write(app.path, 1)
            assert archived(app, archiver)
            assert "may not delete" in str(archiver.upkeep_error)
        assert archiver.error is None
        assert store.calls == asked, "not again and again"


def compact_now_and_fail(archiver: Any) -> None:
    archiver._upkeep._compacted_ms[1] = 0
    archiver._grown.set()

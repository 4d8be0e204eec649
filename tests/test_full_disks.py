"""A full disk ends by itself: what walcast has written for itself makes room first, and nothing is lost meanwhile."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from support.apply_replica import replica_of
from support.apply_source import Source
from support.e2e_oracle import served
from support.e2e_state import create
from support.nodes import barrier, follower, poll, primary, wait_level
from support.small_disk import fill, free_bytes, small_disk
from support.writers import checkpointed, pause, sql

from walcast.errors import DiskFull
from walcast.statusfile import State, read_status
from walcast.store import DirectorySpec, open_store
from walcast_follower import disk_room as rooms
from walcast_follower.apply.wal_truncation import WalKeeper
from walcast_follower.bootstrap.bootstrap import from_archive
from walcast_follower.disk_room import Room
from walcast_primary.archiving.archiver import Archiver
from walcast_primary.archiving.snapshot import with_spare
from walcast_primary.capture import capture_thread as looping
from walcast_primary.checkpoint import disk_relief

SOON_S = 20.0
COMMIT = "UPDATE accounts SET balance = balance + 1"
REWRITE = "UPDATE filler SET body = randomblob(3000)"


def rows(count: int) -> str:
    """SQL that adds `count` rows of a page each."""
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    return f"{numbers} INSERT INTO filler (body) SELECT randomblob(3000) FROM n"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "primary" / "app.db"
    path.parent.mkdir()
    create(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as app:
        app.execute(rows(200))
    return path


# A follower


@pytest.mark.parametrize(
    "log_bytes",
    [pytest.param(1 << 20, id="moved on"), pytest.param(64 << 20, id="has it", marks=pytest.mark.slow)],
)
def test_a_follower_whose_wal_filled_its_disk_goes_on_once_its_reader_is_gone(
    db: Path, tmp_path: Path, log_bytes: int
) -> None:
    with (
        small_disk(tmp_path / "small", 10) as disk,
        primary(db, "--log-max-bytes", str(log_bytes)) as one,
        follower(disk / "app.db", one.address) as other,
        closing(sqlite3.connect(db, isolation_level=None, timeout=10)) as app,
    ):
        replica = disk / "app.db"
        wait_level(one.address, replica)
        with closing(sqlite3.connect(replica, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM accounts").fetchall()
            first_txid = read_status(replica).position.txid + 1
            for txid in range(first_txid, first_txid + 60):
                app.execute(REWRITE)
                # It is the disk that stops the follower, not a log that has moved on before.
                assert poll(partial(has_or_is_stopped, replica, txid), SOON_S)
            assert poll(lambda: read_status(replica).state is State.DISCONNECTED, SOON_S)
            other.wait_event("trying again")
            lines = len(other.events()), len(one.events())
            time.sleep(1.5)
            assert len(other.events()) - lines[0] <= 3, "the log is not flooded"
            assert len(one.events()) - lines[1] <= 3
            said = other.events("trying again")[-1]["error"]
            assert str(replica) in said
            assert "None" not in said
        wait_level(one.address, replica, seconds=SOON_S)
        assert free_bytes(disk) > 4 << 20, "the WAL was cut"
        assert other.running


def has_or_is_stopped(replica: Path, txid: int) -> bool:
    """Whether a replica has a transaction, or its follower is disconnected."""
    status = read_status(replica)
    return status.position.txid >= txid or status.state is State.DISCONNECTED


def test_a_wal_is_cut_as_soon_as_no_reader_uses_it(tmp_path: Path) -> None:
    source = Source(tmp_path)
    applier = replica_of(source, tmp_path)
    wal = Path(f"{applier.path}-wal")
    for _ in range(20):
        source.grow(20).apply(applier)
    applier.begin()
    applier.write_pages(range(1, 1000), [bytes(source.page_size)] * 999)
    applier.rollback()

    async def give_back() -> None:
        keeper = WalKeeper(applier)
        with sql(applier.path) as reader:  # in a process of its own: POSIX locks belong to one
            reader("BEGIN")
            reader("SELECT count(*) FROM sqlite_schema")
            source.transfer().apply(applier)
            with pytest.raises(DiskFull) as caught:
                await keeper.give_back()
            assert caught.value.path == wal
            assert wal.stat().st_size == applier.wal_bytes, "but what no commit uses was given back"
        await keeper.give_back()
        assert wal.stat().st_size == 0
        assert applier.wal_frames == 0
        source.transfer().apply(applier)
        assert applier.position == source.transactions[-1].position
        await keeper.close()

    asyncio.run(give_back())
    applier.close()
    source.close()


@pytest.mark.parametrize("where", ["write_pages", "commit"])
def test_what_a_full_disk_stops_is_a_typed_error_with_path_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    source = Source(tmp_path)
    applier = replica_of(source, tmp_path)
    change = source.grow(2000 if where == "write_pages" else 2)
    pwrite = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink().name.endswith("-wal"):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFull) as caught:
        change.apply(applier)
    monkeypatch.undo()
    assert caught.value.path == Path(f"{applier.path}-wal")
    assert caught.value.free_bytes is not None
    assert caught.value.needed_bytes
    change.apply(applier)
    assert applier.position == change.position
    applier.close()
    source.close()


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(lambda archive: ["--archive", str(archive)], id="archive"),
        pytest.param(lambda archive: [], id="primary", marks=pytest.mark.slow),
    ],
)
def test_a_replica_that_does_not_fit_is_not_begun_and_comes_when_there_is_room(
    db: Path, tmp_path: Path, flags: Callable[[Path], list[str]]
) -> None:
    with closing(sqlite3.connect(db, isolation_level=None)) as app:
        app.execute(rows(1500))
    archive = tmp_path / "archive"
    with (
        small_disk(tmp_path / "small", 12) as disk,
        primary(db, archive) as one,
    ):
        filler = fill(disk)
        os.truncate(filler, filler.stat().st_size - (2 << 20))
        replica = disk / "replica" / "app.db"
        with follower(replica, one.address, *flags(archive), wait=False) as other:
            said = other.wait_event("trying again")
            assert "bytes are needed" in said["error"]
            time.sleep(1.0)
            assert len(other.events()) < 8
            assert other.running
            assert not replica.exists()
            filler.unlink()
            wait_level(one.address, replica, seconds=SOON_S)


def test_a_restore_that_cannot_fit_is_told_before_anything_is_fetched(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(DirectorySpec(tmp_path / "archive"))
    with served(db) as app:
        archiver = Archiver(app.database, store, interval_s=0.01)
        archiver.start()
        assert poll(lambda: archiver.txid == app.position.txid, SOON_S), archiver.error
        archiver.stop()
    monkeypatch.setattr(rooms, "free_bytes", lambda path: 1 << 16)
    state = tmp_path / "state"
    state.mkdir()
    with pytest.raises(DiskFull) as caught:
        from_archive(store, tmp_path / "replica.db", state)
    assert caught.value.needed_bytes == db.stat().st_size
    assert caught.value.free_bytes == 1 << 16
    assert not list(state.iterdir())


def test_there_is_room_again_when_what_was_needed_is_free_or_a_minute_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free, now = [0], [0.0]
    monkeypatch.setattr(rooms, "free_bytes", lambda path: free[0])
    room = Room(clock=lambda: now[0])
    room.check()
    room.lacks(DiskFull("/data/app.db-wal", needed_bytes=5 << 20))
    free[0] = 4 << 20
    with pytest.raises(DiskFull):
        room.check()
    free[0] = 5 << 20
    room.check()
    assert not room.is_lacking
    free[0] = 0
    room.lacks(DiskFull("/data/app.db-wal"))
    now[0] = rooms.TRY_ANYWAY_S - 1
    with pytest.raises(DiskFull):
        room.check()
    now[0] = rooms.TRY_ANYWAY_S
    room.check()


# A primary


def test_a_log_that_fills_the_apps_disk_gives_way_to_the_app(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 24) as disk:
        db = disk / "app.db"
        create(db)
        with sql(db) as app:
            app(rows(300))
            with served(db) as capture:
                log = capture.database.log
                refused = 0
                for _ in range(60):  # 55 MB through a log that may have 256
                    # A megabyte at once may meet what was full a moment ago.
                    while app.ask(REWRITE)["error"] is not None:
                        refused += 1
                        assert refused < 60, "it does not give way"
                        pause(0.05)
                    assert capture.position
                assert refused < 12
                assert capture.commits == 60
                assert capture.database.loop.trouble is None
                assert log.size_bytes < 20 << 20
                assert log.first.txid > 1, "the oldest went"


def test_capture_that_has_no_room_for_long_lets_the_apps_wal_go_and_loses_nothing(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looping, "RETRY_S", 0.02)
    monkeypatch.setattr(looping, "TROUBLE_S", 0.2)
    monkeypatch.setattr(disk_relief, "AGAIN_S", (0.02,))
    full = [False]
    fallocate, free = os.posix_fallocate, disk_relief.free_bytes

    def posix_fallocate(fd: int, offset: int, length: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fallocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
    monkeypatch.setattr(disk_relief, "free_bytes", lambda path, **how: 0 if full[0] else free(path, **how))
    with served(db) as app, sql(db) as one:
        loop = app.database.loop
        full[0] = True
        one(rows(3000))  # more than was allocated ahead
        assert poll(lambda: not app.database._anchor.is_held, SOON_S)
        assert loop.failure is None
        assert "No space left" in str(loop.trouble)
        # Until a moment ago it was refused: nothing could be gained by it.
        assert poll(lambda: one("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0, SOON_S), "the WAL is the app's own again"
        assert Path(f"{db}-wal").stat().st_size == 0
        one(COMMIT)
        one(REWRITE)
        full[0] = False
        assert poll(lambda: loop.trouble is None, SOON_S)
        one(COMMIT)
        app.verify()


def test_writers_are_held_when_that_is_asked_for_also_while_capture_is_suspended(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looping, "RETRY_S", 0.02)
    monkeypatch.setattr(looping, "TROUBLE_S", 0.1)
    may_resume = [False]
    monkeypatch.setattr(disk_relief.Relief, "may_resume", lambda *_: may_resume[0])
    with served(db) as app, sql(db) as one:
        loop, writer = app.database.loop, app.database.log.writer

        def full(min_txid: int) -> object:
            if may_resume[0]:
                return writer(min_txid)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(app.database.log, "writer", full)
        one(COMMIT)
        assert poll(lambda: not loop._anchor.is_held, SOON_S)
        one(COMMIT)
        held = loop.hold_writers()
        assert poll(lambda: loop.holds_writers, SOON_S)
        with closing(sqlite3.connect(db, isolation_level=None, timeout=0)) as other:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute(COMMIT)
            may_resume[0] = True
            assert held.result(SOON_S).position == app.database.log.position
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute(COMMIT)
            loop.let_writers_go()
            other.execute(COMMIT)
        app.verify()


def test_pages_are_compared_until_that_succeeds(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What were captured without it would be published as the continuation of a state that it does not continue."""
    monkeypatch.setattr(looping, "RETRY_S", 0.02)
    tries = []
    compare = looping.compare

    def fail_once(*arguments: object) -> int | None:
        tries.append(None)
        if len(tries) == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return compare(*arguments)  # type: ignore[arg-type]

    with served(db) as app:
        monkeypatch.setattr(looping, "compare", fail_once)
        app.database.loop.recheck("a test")
        assert poll(lambda: len(tries) == 2, SOON_S)
        app.verify()


def test_capture_without_descriptors_goes_on_when_there_are_some(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looping, "RETRY_S", 0.02)
    opened, none_left = os.open, [False]

    def out_of_them(path: object, *arguments: int, **more: int) -> int:
        if none_left[0] and str(path).endswith(".log"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", out_of_them)
    with served(db, log_bytes=1 << 20) as app, sql(db) as one:
        loop = app.database.loop
        none_left[0] = True
        for _ in range(5):
            one(REWRITE)
        assert poll(lambda: loop.trouble is not None, SOON_S)
        assert loop.failure is None
        none_left[0] = False
        assert poll(lambda: loop.trouble is None, SOON_S)
        one(COMMIT)
        position = app.position
        app.stop()
        assert app.database.log.position == position
        assert app.database.log.checksums is not None
        assert app.database.log.checksums.database == position.checksum


def test_a_primary_without_inotify_watches_is_polled_and_its_disk_is_not_taken_for_full(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """inotify_add_watch(2) says ENOSPC when the user has no watches left."""
    from inotify_simple import INotify

    add, none_left = INotify.add_watch, [False]

    def add_watch(self: INotify, path: object, mask: int) -> int:
        if none_left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(add(self, path, mask))

    monkeypatch.setattr(INotify, "add_watch", add_watch)
    with served(db) as app, sql(db) as one:
        none_left[0] = True
        for _ in range(5):
            one(COMMIT)
        goal = app.position
        one(COMMIT)
        assert poll(lambda: app.database.log.position.txid == goal.txid + 1, SOON_S)
        assert app.database.loop.trouble is None
        app.verify()


@pytest.mark.slow
def test_a_primary_whose_disk_is_full_for_minutes_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 32) as disk:
        db = disk / "app.db"
        create(db)
        with (
            closing(sqlite3.connect(db, isolation_level=None, timeout=10)) as app,
            primary(db) as one,
            follower(tmp_path / "other" / "app.db", one.address) as other,
        ):
            app.execute(rows(600))
            end_s, written, refused = time.monotonic() + 90, 0, 0
            while time.monotonic() < end_s:
                fill(disk)  # whatever is given back is gone at once
                try:
                    app.execute(REWRITE if written % 20 == 0 else COMMIT)
                    written += 1
                except sqlite3.OperationalError:
                    refused += 1
                    time.sleep(0.01)
            assert refused
            assert one.running
            (disk / "filler").unlink()
            app.execute(COMMIT)
            barrier(one.address)
            wait_level(one.address, tmp_path / "other" / "app.db")
            other.stop()
            one.stop()
        assert checkpointed(db) == checkpointed(tmp_path / "other" / "app.db")


def test_a_small_database_needs_little_room_for_its_snapshot() -> None:
    assert with_spare(32 << 10) <= 2 << 20
    assert with_spare(1 << 30) == (1 << 30) + (64 << 20)

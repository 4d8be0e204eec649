"""Copies that break off: over a replica and of a new one, across restarts of the follower, whatever happens meanwhile.
Each ends in the primary's very bytes, and what came before is not sent again."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from support.e2e_oracle import Served, served
from support.far_follower import ROW_BYTES, ROWS, following, level, run, until
from support.slow_line import Line
from support.writers import checkpointed, sql

from walcast.errors import Unavailable
from walcast.filesystem import fsync_directory
from walcast.identity import make_database_id
from walcast.rpc import replication_pb2 as pb
from walcast.statedir import state_dir
from walcast_follower.bootstrap.partial_copy import PartialCopy, partial_path, partial_sizes
from walcast_primary.database import Database
from walcast_primary.publish.base_copy import copy_pages

ROW_COUNT = 300
PAGE = 4096
RATE = 5e6  # so that what is sent before the line breaks is read, too
CHANGE = "UPDATE t SET x = randomblob(3000) WHERE rowid % 2 = 0 AND rowid BETWEEN {} AND {}"


def create(path: Path, page_size: int = PAGE) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA page_size = {page_size}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (x)")
        db.execute(ROWS.format(ROW_COUNT, ROW_BYTES))
        db.commit()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "app.db"
    create(path)
    return path


@contextmanager
def primary(path: Path) -> Iterator[Served]:
    """With a log that moves on soon."""
    with served(path, log_bytes=128 << 10) as made:
        if made.database.id is None:
            made.database.identify(make_database_id())
        yield made


@pytest.fixture
def app(path: Path) -> Iterator[Served]:
    with primary(path) as made:
        yield made


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    return tmp_path / "edge" / "app.db"


def change_much(app: Served) -> None:
    """Half of the rows, in transactions that the log does not keep all of.

    A copy that has ended may pin it for a while."""
    before = app.position
    with sql(app.path) as one:
        for _ in range(20):
            for first in range(0, ROW_COUNT, 50):
                one(CHANGE.format(first, first + 49))
            assert app.position
            if app.database.log.first.txid > before.txid:
                return
    raise AssertionError("the log keeps everything")


async def comes_level(app: Served, replica: Path, line: Line) -> None:
    async with following(app, replica, line) as follower:
        await until(level(follower, app), 30)


async def until_broken(app: Served, replica: Path, line: Line, connections: int) -> None:
    """A life of a follower that ends in the middle of a copy."""
    line.connections = 0
    async with following(app, replica, line) as follower:
        await until(lambda: line.connections >= connections, 30)
        assert follower.applier is None or follower.applier.position != app.position


def same(app: Served, replica: Path) -> None:
    app.stop()
    assert checkpointed(replica) == checkpointed(app.path)
    assert not list(state_dir(replica).glob("*.partial"))


def as_it_was(partial: Path) -> None:
    assert partial.stat().st_size > 50 * PAGE


def torn(partial: Path) -> None:
    """By a power cut: some pages never reached the disk, one did in part, and the end is lost."""
    with partial.open("r+b") as file:
        for pgno in (0, 7, 20):
            file.seek(pgno * PAGE)
            file.write(bytes(PAGE))
        file.seek(31 * PAGE + PAGE // 2)
        file.write(bytes(PAGE // 2))
        file.truncate(partial.stat().st_size - 3 * PAGE - 100)


def of_another_database(partial: Path) -> None:
    """With the path of this one, and longer."""
    partial.write_bytes(random.Random(1).randbytes(2 * ROW_COUNT * PAGE))


@pytest.mark.parametrize("fate", [as_it_was, torn, of_another_database])
def test_a_first_copy_outlives_its_process(app: Served, replica: Path, fate: Callable[[Path], None]) -> None:
    size = ROW_COUNT * ROW_BYTES
    line = Line(RATE, cut_after=size // 4)

    async def work() -> None:
        await until_broken(app, replica, line, 3)
        change_much(app)
        fate(partial_path(state_dir(replica), PAGE))
        before, line.cut_after = line.passed_bytes, None
        await comes_level(app, replica, line)
        if fate is not of_another_database:
            assert line.passed_bytes - before < 0.9 * size

    run(work())
    same(app, replica)


@pytest.mark.parametrize("restarts", [0, 2])
def test_a_copy_over_a_replica_goes_on_where_it_broke_off(app: Served, replica: Path, restarts: int) -> None:
    line = Line(rate=RATE)

    async def work() -> None:
        await comes_level(app, replica, line)
        change_much(app)
        changed_bytes = ROW_COUNT // 2 * ROW_BYTES
        line.passed_bytes, line.cut_after = 0, changed_bytes // 5
        for _ in range(restarts):
            await until_broken(app, replica, line, 2)
        async with following(app, replica, line) as follower:
            await until(level(follower, app), 30)
        assert line.passed_bytes < 1.6 * changed_bytes

    run(work())
    same(app, replica)


def test_a_copy_goes_on_at_a_primary_of_another_term(app: Served, replica: Path) -> None:
    """Which went on from the same state, and has transactions of its own."""
    line = Line(rate=RATE)

    async def work() -> None:
        await comes_level(app, replica, line)
        change_much(app)
        line.cut_after = ROW_COUNT * ROW_BYTES // 8
        await until_broken(app, replica, line, 2)
        app.restart(lambda database: setattr(database.log, "term", 2))
        change_much(app)
        line.cut_after = None
        await comes_level(app, replica, line)

    run(work())
    same(app, replica)


@pytest.mark.parametrize("kept", [False, True])
def test_a_copy_of_pages_of_another_size_begins_anew_and_goes_on(
    path: Path, tmp_path: Path, replica: Path, kept: bool
) -> None:
    """The database gets other pages while a copy has broken off: a first one, or one over a replica (`kept`)."""
    line = Line(rate=RATE)

    async def work() -> None:
        with primary(path) as app:
            if kept:
                await comes_level(app, replica, line)
                change_much(app)
            line.cut_after = ROW_COUNT * ROW_BYTES // 8
            await until_broken(app, replica, line, 2)
        give_other_pages(path)
        with primary(path) as app:
            size = ROW_COUNT * ROW_BYTES
            line.passed_bytes, line.cut_after = 0, size // 4
            await comes_level(app, replica, line)
            assert line.passed_bytes < 1.5 * size
            same(app, replica)

    run(work())


def give_other_pages(path: Path) -> None:
    with sql(path) as one:
        assert one("PRAGMA journal_mode = DELETE") == [["delete"]]
        one(f"PRAGMA page_size = {2 * PAGE}")
        one("VACUUM")
        assert one("PRAGMA journal_mode = WAL") == [["wal"]]


def test_what_fails_when_a_replica_has_been_replaced_leaves_nobody_at_the_old_one(
    path: Path, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Path] = []

    def failing(folder: Path) -> None:
        if not failed:
            failed.append(folder)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync_directory(folder)

    async def work() -> None:
        with primary(path) as app:
            await comes_level(app, replica, Line(rate=RATE))
        give_other_pages(path)
        monkeypatch.setattr("walcast_follower.bootstrap.new_replica.fsync_directory", failing)
        with primary(path) as app:
            await comes_level(app, replica, Line(rate=RATE))
            same(app, replica)

    run(work())
    assert failed


class Disturbed:
    """The copies that a primary sends; between their messages the app goes on."""

    def __init__(self, app_goes_on: Callable[[], object], *, rounds: bool = True) -> None:
        self.copies = 0
        self.messages = 0
        self.starts = 0
        self._app_goes_on = app_goes_on
        self._rounds = rounds

    async def __call__(self, database: Database, theirs: bytes, *, rounds: bool) -> AsyncGenerator[pb.CopyReply, None]:
        self.copies += 1
        async for reply in copy_pages(database, theirs, rounds=rounds and self._rounds):
            self.starts += reply.WhichOneof("kind") == "start"
            yield reply
            self.messages += 1
            await asyncio.to_thread(self._app_goes_on)


@pytest.mark.parametrize("of_now", [True, False], ids=["a primary of now", "an older one"])
def test_a_copy_is_not_begun_anew_because_the_log_moves_on(
    app: Served, replica: Path, monkeypatch: pytest.MonkeyPatch, of_now: bool
) -> None:
    """All along the copy, which is slower than the log is kept, even where a copy has it kept for longer. In one call
    where the primary sends rounds; else each next call has what changed."""
    line = Line()

    def log_moves_on() -> None:
        if disturbed.messages < 12:
            for _ in range(5):
                one("UPDATE t SET x = randomblob(3000) WHERE rowid <= 12")

    disturbed = Disturbed(log_moves_on, rounds=of_now)
    monkeypatch.setattr("walcast_primary.publish.publisher.copy_pages", disturbed)
    with sql(app.path) as one:
        run(comes_level(app, replica, line))
    assert (disturbed.copies == 1) == of_now
    assert disturbed.starts == 2
    assert line.passed_bytes < 1.3 * ROW_COUNT * ROW_BYTES
    same(app, replica)


@pytest.mark.parametrize("rounds", [False, True])
def test_further_rounds_come_only_to_who_asks_for_them(
    app: Served, replica: Path, monkeypatch: pytest.MonkeyPatch, rounds: bool
) -> None:
    """`walcast verify` does not: it compares with one state."""

    def log_moves_on() -> None:
        if following_too and disturbed.messages < 12:
            for _ in range(5):
                one("UPDATE t SET x = randomblob(3000) WHERE rowid <= 12")

    async def work() -> None:
        async with following(app, replica, Line()) as follower:
            await until(level(follower, app), 30)
            disturbed.messages, following_too[:] = 0, [True]
            async with follower.where.client.copy(PAGE, None, rounds=rounds) as copy:
                while (kind := (await copy.read()).WhichOneof("kind")) != "end":
                    kinds.add(kind)

    kinds: set[str | None] = set()
    following_too: list[bool] = []
    disturbed = Disturbed(log_moves_on)
    monkeypatch.setattr("walcast_primary.publish.publisher.copy_pages", disturbed)
    with sql(app.path) as one:
        run(work())
    assert kinds == ({"pages", "start"} if rounds else {"pages"})


def test_a_copy_comes_to_its_end_while_the_app_goes_on(
    app: Served, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which grows and shrinks its database, and writes a page again and again."""
    hot = ["UPDATE t SET x = randomblob(3000) WHERE rowid <= 12"] * 4
    grow, shrink = "INSERT INTO t SELECT randomblob(3000) FROM t LIMIT 100", "DELETE FROM t WHERE rowid > 150"
    statements = iter([*hot, grow, *hot, shrink, *hot, "VACUUM", *hot, grow, *hot, shrink, "VACUUM", *hot, grow])

    def goes_on() -> None:
        for statement in itertools.islice(statements, 2):
            one(statement)

    disturbed = Disturbed(goes_on)
    monkeypatch.setattr("walcast_primary.publish.publisher.copy_pages", disturbed)
    with sql(app.path) as one:
        run(comes_level(app, replica, Line()))
    assert disturbed.starts > 1
    assert next(statements, None) is None
    same(app, replica)


def test_a_copy_that_cannot_be_made_durable_is_not_believed(
    app: Served, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next sync of the same file would succeed, though pages are not on disk."""
    fsync, failed = os.fsync, list[int]()

    def failing(fd: int) -> None:
        if not failed and Path(f"/proc/self/fd/{fd}").readlink().suffix == ".partial":
            failed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    line = Line(rate=RATE)
    run(comes_level(app, replica, line))
    assert failed
    assert line.passed_bytes > 1.9 * ROW_COUNT * ROW_BYTES, "everything came again"
    same(app, replica)


def test_where_there_is_no_room_for_the_pages_twice_they_are_moved(
    app: Served, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list[int]()
    cut = PartialCopy.cut

    def watched(partial: PartialCopy, pages: int) -> None:
        cut(partial, pages)
        left.append(pages)

    async def work() -> None:
        line = Line(rate=RATE)
        await comes_level(app, replica, line)
        change_much(app)
        monkeypatch.setattr("walcast_follower.subscribe.copy_collector.free_bytes", lambda path: 0)
        monkeypatch.setattr("walcast_follower.subscribe.copy_collector.BATCH_BYTES", 16 * PAGE)
        monkeypatch.setattr(PartialCopy, "cut", watched)
        await comes_level(app, replica, line)

    run(work())
    assert len(left) > 5
    assert left == sorted(left, reverse=True)
    same(app, replica)


def test_a_copy_that_cannot_be_put_into_the_replica_is_read_again(
    app: Served, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the partial copy is damaged on disk before it is read: it alone comes again."""
    line, damaged = Line(rate=RATE), list[int]()
    read = PartialCopy.read

    def reading(partial: PartialCopy, pgno: int) -> bytes:
        if not damaged:
            damaged.append(pgno)
            with partial.path.open("r+b") as file:
                file.seek((pgno - 1) * PAGE + 99)
                file.write(b"damaged")
        return read(partial, pgno)

    async def work() -> None:
        await comes_level(app, replica, line)
        change_much(app)
        line.passed_bytes = 0
        monkeypatch.setattr(PartialCopy, "read", reading)
        await comes_level(app, replica, line)

    run(work())
    assert line.passed_bytes < 1.3 * ROW_COUNT // 2 * ROW_BYTES
    same(app, replica)


# The file itself


def page(seed: int) -> bytes:
    return random.Random(seed).randbytes(PAGE)


def test_a_partial_copy_says_of_itself_only_what_its_bytes_say(tmp_path: Path) -> None:
    first = PartialCopy.open(tmp_path, PAGE)
    first.write([3, 1, 9000, 9, 3], [page(0), page(1), page(2), bytes(PAGE), page(3)])
    sums = first.checksums.pages[:9000].copy()
    assert first.size_bytes < 40 * PAGE, "what has not come takes no room"
    first.close()
    again = PartialCopy.open(tmp_path, PAGE)
    sums[8] = 0  # zeros: whoever reads them cannot tell
    assert again.checksums.pages.tolist() == sums.tolist()
    assert again.read(3) == page(3)
    assert partial_sizes(tmp_path) == [PAGE]
    again.discard()
    assert not partial_sizes(tmp_path)


def test_after_an_error_in_a_write_a_partial_copy_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksums in memory may not be those of the pages any more."""
    partial = PartialCopy.open(tmp_path, PAGE)
    partial.write([1], [page(1)])

    def failing(fd: int, data: bytes, at: int) -> None:
        os.pwrite(fd, data, at)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("walcast_follower.bootstrap.partial_copy.pwrite_all", failing)
    with pytest.raises(Unavailable):
        partial.write([1], [page(2)])
    assert not partial.is_open
    assert PartialCopy.open(tmp_path, PAGE).read(1) == page(2)


def test_what_a_follower_left_is_removed_by_a_primary(app: Served) -> None:
    partial = PartialCopy.open(state_dir(app.path), PAGE)
    partial.write([1], [page(1)])
    partial.close()
    app.restart()
    assert not partial.path.exists()
    app.stop()

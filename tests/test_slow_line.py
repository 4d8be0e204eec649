"""A follower behind a line that is slow, breaks, or damages a byte: it gets further each time, and never ends."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from support.e2e_oracle import Served, served
from support.slow_line import Line, line_to
from support.writers import sql

from follower.client import Client
from follower.following import Following
from node.grpc_server import listen
from primary.gate import Gate
from primary.publisher import Publisher
from primary.served import Served as ServedDatabase
from walcast import wire
from walcast.rpc import replication_pb2 as pb
from walcast.wire import Address

ROW_BYTES = 3000  # about one a page


ROWS = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) INSERT INTO t SELECT randomblob({}) FROM n"


def add(path: Path, rows: int) -> None:
    """Rows that do not compress, by another process, as one transaction."""
    with sql(path) as app:
        app(ROWS.format(rows, ROW_BYTES))


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "app.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (x)")
        db.execute(ROWS.format(400, ROW_BYTES))
        db.commit()
    with served(path) as made:
        yield made


@asynccontextmanager
async def following(app: Served, replica: Path, line: Line) -> AsyncIterator[Following]:
    """A follower behind the line; it must not have ended by itself."""
    publisher = Publisher({"app": ServedDatabase(app.database)}, lambda: pb.StatusReply(), Gate(listening=lambda: at))
    server, _, at = listen(publisher, Address("127.0.0.1", 0), wire.Tls(), connections=10)
    await server.start()
    replica.parent.mkdir()
    try:
        async with line_to(at, line):
            client = Client(line.address, wire.Tls(), database="app", follower_id="f")
            follower = Following(replica, client)
            task = asyncio.create_task(follower.run())
            try:
                yield follower
                assert not task.done(), task.exception()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    finally:
        publisher.stop()
        await server.stop(0)


async def until(what: Callable[[], bool], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not what():
            await asyncio.sleep(0.05)


def level(follower: Following, app: Served) -> Callable[[], bool]:
    return lambda: follower.applier is not None and follower.applier.position == app.position


def run(work: Awaitable[None]) -> None:
    async def alone() -> None:
        await work

    asyncio.run(alone())


def test_a_copy_goes_on_where_it_broke_off_though_the_log_moves_on(app: Served, tmp_path: Path) -> None:
    """Each connection brings a fifth of the database."""
    size = app.path.stat().st_size
    line = Line(cut_after=size // 5)

    async def work() -> None:
        async with following(app, tmp_path / "edge" / "app.db", line) as follower:
            await until(lambda: line.connections >= 3, 20)
            await asyncio.to_thread(add, app.path, 5)
            await until(lambda: follower.applier is not None, 20)
            line.cut_after = None
            await until(level(follower, app), 20)

    run(work())
    assert line.passed_bytes < 2 * size


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_byte_costs_a_connection(app: Served, tmp_path: Path, seed: int) -> None:
    where = random.Random(seed)
    size = app.path.stat().st_size
    line = Line(damage=sorted(where.randrange(100, size // 2) for _ in range(3)))
    print(f"damage at {line.damage}")

    async def work() -> None:
        async with following(app, tmp_path / "edge" / "app.db", line) as follower:
            await until(level(follower, app), 40)

    run(work())
    assert not line.damage
    assert line.passed_bytes < 1.5 * size


@pytest.mark.parametrize("at", [130, 133])
def test_a_damaged_header_does_not_spoil_a_connection_for_good(app: Served, tmp_path: Path, at: int) -> None:
    """It goes into the table that HTTP/2 keeps for the connection."""
    line = Line(damage=[at])

    async def work() -> None:
        async with following(app, tmp_path / "edge" / "app.db", line) as follower:
            await until(level(follower, app), 20)

    run(work())


@pytest.mark.slow
def test_a_follower_behind_twenty_kilobytes_a_second_comes_level(app: Served, tmp_path: Path) -> None:
    """A copy of 1.6 MB, and then one transaction of 600 KB."""
    line = Line(rate=20_000)

    async def work() -> None:
        async with following(app, tmp_path / "edge" / "app.db", line) as follower:
            await until(lambda: follower.applier is not None, 150)
            await asyncio.to_thread(add, app.path, 200)
            await until(level(follower, app), 90)

    run(work())
    assert line.connections <= 3

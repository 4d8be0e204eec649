"""A follower behind a line that is slow, breaks, or damages a byte: it gets further each time, and never ends."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.e2e_oracle import Served, served
from support.far_follower import ROW_BYTES, ROWS, add, following, level, run, until
from support.slow_line import Line


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

"""A WAL whose checksums do not chain: what SQLite before 3.50.2 makes of a savepoint that was rolled back."""

from __future__ import annotations

import logging
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from subprocess import PIPE

import pytest
from support.e2e_oracle import served
from support.nodes import barrier, follower, poll, primary, wait_level
from support.writers import Sql, sql

from walcast.wal import FRAME_HEADER_SIZE, frame_offset

pytestmark = pytest.mark.skipif(sqlite3.sqlite_version_info >= (3, 50, 2), reason="this SQLite has not that fault")

PAGE_SIZE = 1024
# Twice, a page cache of one page is outgrown, and what was written behind the savepoint is rolled back.
UNCHAINING = "PRAGMA cache_size = 1; PRAGMA secure_delete = 0;" + "".join(
    f"BEGIN; {insert} SAVEPOINT s; {insert} DELETE FROM t; ROLLBACK TO s; COMMIT;"
    for insert in (
        "INSERT INTO t SELECT zeroblob(716) FROM (SELECT 1 FROM spread LIMIT 20);",
        "INSERT INTO t SELECT zeroblob(141) FROM (SELECT 1 FROM spread LIMIT 29);",
    )
)
APP = f"""\
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.executescript({UNCHAINING!r})
for _ in range(3):
    db.execute("INSERT INTO t VALUES ('after')")
print(db.execute("SELECT count(*) FROM t").fetchone()[0], flush=True)
sys.stdin.read()
os._exit(1)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "app.db"
    with closing(sqlite3.connect(made, isolation_level=None)) as db:
        db.executescript(f"PRAGMA page_size = {PAGE_SIZE}; PRAGMA journal_mode = WAL; CREATE TABLE spread (x);")
        db.executemany("INSERT INTO spread VALUES (?)", [[i] for i in range(100)])
        db.execute("CREATE TABLE t (x)")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return made


@pytest.fixture
def app(path: Path) -> Iterator[Sql]:
    """In a process of its own: two SQLites in one process do not see each other's locks."""
    with sql(path) as app:
        app("PRAGMA wal_autocheckpoint = 0;")
        yield app


def chains(path: Path) -> bool:
    """Has the newest frame the checksum that the wal-index tells?"""
    with Path(f"{path}-shm").open("rb") as index, Path(f"{path}-wal").open("rb") as wal:
        header = index.read(48)
        wal.seek(frame_offset(struct.unpack_from("=I", header, 16)[0], PAGE_SIZE))
        return wal.read(FRAME_HEADER_SIZE)[16:] == struct.pack(">2I", *struct.unpack_from("=2I", header, 24))


def count(path: Path) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(db.execute("SELECT count(*) FROM t").fetchone()[0])


def test_sqlite_does_it(path: Path, app: Sql) -> None:
    app(UNCHAINING)
    assert not chains(path)


def test_its_commits_are_captured_and_the_wal_begins_anew(
    path: Path, app: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    with served(path) as capture, caplog.at_level(logging.WARNING):
        app(UNCHAINING)
        salt = Path(f"{path}-wal").read_bytes()[16:24]
        assert capture.position
        assert [record for record in caplog.records if "update the app's SQLite" in record.getMessage()]

        def renewed() -> bool:
            app("INSERT INTO t VALUES ('after');")
            return Path(f"{path}-wal").read_bytes()[16:24] != salt

        assert poll(renewed)
        capture.verify()


def test_they_are_captured_as_frames_also_when_commits_that_chain_follow_before_the_first_look(
    path: Path, tmp_path: Path
) -> None:
    """Compared pages would name no commit in the WAL, and what a crash takes could not be told from what was changed
    while no primary ran."""
    with (
        primary(path) as node,
        subprocess.Popen([sys.executable, "-c", APP, path], stdin=PIPE, stdout=PIPE, text=True) as process,
    ):
        node.signal(signal.SIGSTOP)
        assert process.stdout is not None
        rows = int(process.stdout.readline())
        assert chains(path)
        node.signal(signal.SIGCONT)
        barrier(node.address)
        assert not node.events("compared all pages")
        node.kill()
        process.kill()
    with primary(path):
        assert count(path) == rows == 52


def test_a_follower_gets_them(path: Path, app: Sql, tmp_path: Path) -> None:
    with primary(path) as node, follower(tmp_path / "edge" / "app.db", node.address):
        app(UNCHAINING)
        wait_level(node.address, tmp_path / "edge" / "app.db")
        assert count(tmp_path / "edge" / "app.db") == 49


def test_what_a_crash_takes_from_the_app_comes_back(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", APP, path]
    with primary(path) as node, subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        rows = int(process.stdout.readline())
        barrier(node.address)
        node.kill()
        process.kill()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{tmp_path}/alone.db{suffix}")
    with closing(sqlite3.connect(tmp_path / "alone.db")) as alone:
        assert alone.execute("SELECT count(*) FROM t").fetchone() != (rows,)
    with primary(path):
        assert count(path) == rows == 52

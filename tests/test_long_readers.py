"""Readers beside the primary that make the WAL grow: who they are is said, once."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.e2e_oracle import Served, served
from support.e2e_state import create
from support.writers import sql

from primary.long_readers import LONG_S, LONG_WAL_BYTES, LongReaders

# A process of this name that holds a read transaction, as Litestream does.
REPLICATOR = """
import ctypes, sqlite3, sys
ctypes.CDLL(None).prctl(15, sys.argv[2].encode())
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN"); db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
print("reading", flush=True)
sys.stdin.read()
"""
INSERT = "INSERT INTO filler (body) VALUES (randomblob(2000))"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "app.db"
    create(path)
    with served(path) as made:
        yield made


@contextmanager
def reading(path: Path, name: str) -> Iterator[int]:
    command = [sys.executable, "-c", REPLICATOR, str(path), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"reading\n"
            yield process.pid
        finally:
            process.kill()


def write(app: Served) -> None:
    with sql(app.path) as one:
        one(INSERT)
        assert app.commits


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[object, object]]:
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    return [(vars(record)["program"], vars(record)["pid"]) for record in warnings if "program" in vars(record)]


def test_a_litestream_that_reads_beside_the_primary_is_named_once(
    app: Served, caplog: pytest.LogCaptureFixture
) -> None:
    write(app)
    with reading(app.path, "litestream") as pid:
        write(app)
        watch = LongReaders("app", app.database.files)
        watch.look(4096, 0.0)
        watch.look(4096, 20.0)
    assert said(caplog) == [("litestream", pid)]


def test_any_other_reader_is_named_once_it_has_made_the_wal_long(app: Served, caplog: pytest.LogCaptureFixture) -> None:
    write(app)
    with reading(app.path, "report") as pid:
        write(app)
        watch = LongReaders("app", app.database.files)
        watch.look(LONG_WAL_BYTES, 0.0)
        watch.look(4096, LONG_S)
        assert said(caplog) == []
        watch.look(LONG_WAL_BYTES, LONG_S)
        watch.look(LONG_WAL_BYTES, LONG_S + 20.0)
    assert said(caplog) == [("report", pid)]

"""Readers beside the primary that make the WAL grow: who they are is said, once."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.archiving import LITESTREAM
from support.e2e_oracle import Served, served
from support.e2e_state import create
from support.nodes import poll, primary
from support.writers import sql

from walcast.remedies import FailureKind
from walcast_node.commands.status_facts import local_status
from walcast_primary.checkpoint.long_readers import LONG_S, LONG_WAL_BYTES, LongReaders

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
        assert str(pid) in str(watch.trouble)
    watch.look(4096, 30.0)
    assert watch.trouble is None
    assert said(caplog) == [("litestream", pid)]


def test_any_other_reader_is_named_once_it_has_made_the_wal_long(app: Served, caplog: pytest.LogCaptureFixture) -> None:
    write(app)
    with reading(app.path, "report") as pid:
        write(app)
        watch = LongReaders("app", app.database.files)
        watch.look(LONG_WAL_BYTES, 0.0)
        watch.look(4096, LONG_S)
        assert (said(caplog), watch.trouble) == ([], None)
        watch.look(LONG_WAL_BYTES, LONG_S)
        watch.look(4096, LONG_S + 20.0)
        assert str(pid) in str(watch.trouble)
    watch.look(4096, LONG_S + 30.0)
    assert watch.trouble is None
    assert said(caplog) == [("report", pid)]


def test_a_real_litestream_beside_a_primary_is_a_trouble_in_its_status_and_not_of_its_health(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    create(path)
    command = [str(LITESTREAM), "replicate", str(path), f"file://{tmp_path}/theirs"]
    with (
        sql(path) as one,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as litestream,
    ):
        try:
            assert poll(lambda: one(INSERT) == [] and list(tmp_path.glob("theirs/**/*.ltx")), every_s=0.1)
            with primary(path, "--http", "127.0.0.1:0") as node:

                def troubles() -> list[dict[str, Any]]:
                    one(INSERT)
                    found: list[dict[str, Any]] = local_status(path)["databases"][0]["troubles"]
                    return found

                [trouble] = poll(troubles, 30.0, 0.1)
                assert trouble["kind"] == FailureKind.WAL_HELD
                assert str(litestream.pid) in trouble["text"]
                http = json.loads(node.out.read_text().splitlines()[0])["http"]
                with urllib.request.urlopen(f"http://{http}/healthz") as answer:
                    assert answer.status == 200
                assert [line["program"] for line in node.events() if "program" in line] == ["litestream"]
        finally:
            litestream.terminate()

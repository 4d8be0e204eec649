"""`walcast snapshot DB URL`, as cron runs it: under load, with a primary and without, verified, and only then told."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.archiving import levels, restored, restored_by_litestream
from support.e2e_state import TOTAL, create
from support.nodes import follower, poll, primary, walcast
from support.s3 import counted_s3
from support.writers import checkpointed, sql, writer

from walcast.archive import SNAPSHOT_LEVEL
from walcast.store import open_store
from walcast.store.directory import DirectoryStore


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    create(path)
    return path


@contextmanager
def monitor() -> Iterator[tuple[str, list[str]]]:
    """A server that somebody wants pinged: its URL, and who asked for what."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/done", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def snapshot(db: Path, url: str | Path, *flags: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    done = walcast("snapshot", db, url, "--json", *flags, env=env)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def balanced(data: bytes, folder: Path) -> bool:
    """Is it a state that some commit made, whole?"""
    path = folder / "balanced.db"
    path.write_bytes(data)
    with closing(sqlite3.connect(path)) as connection:
        whole = connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return whole and connection.execute("SELECT sum(balance) FROM accounts").fetchone()[0] == TOTAL


@pytest.mark.parametrize("served", [False, True], ids=["nobody serves it", "a primary serves it"])
def test_a_database_under_load_is_backed_up_exactly_and_its_writers_do_not_wait(
    db: Path, tmp_path: Path, served: bool
) -> None:
    store = DirectoryStore(tmp_path / "backup")
    with monitor() as (url, asked), writer(db, history=tmp_path / "history") as busy:
        if served:
            with primary(db, tmp_path / "archive"):
                facts = snapshot(db, store.url, "--ping-url", url)
        else:
            facts = snapshot(db, store.url, "--ping-url", url)
        said = busy.stop()
    assert asked == ["/done"]
    assert facts["verified"] is True
    there = levels(store)
    assert [(file.key, file.size) for file in there[SNAPSHOT_LEVEL]] == [(facts["key"], facts["bytes"])]
    data = restored(store, tmp_path / "ours.db")
    assert restored_by_litestream(store, tmp_path / "theirs.db") == data
    assert balanced(data, tmp_path)
    assert said["longest_s"] < 1.0


def test_a_quiet_database_is_backed_up_byte_for_byte_and_the_line_says_so(db: Path, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "backup")
    done = walcast("snapshot", db, store.url)
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    (file,) = levels(store)[SNAPSHOT_LEVEL]
    assert f"{file.key} in {store.url}: {file.size} bytes, verified" in line
    assert restored(store, tmp_path / "ours.db") == checkpointed(db)


def test_each_one_is_another_moment_and_old_ones_go_when_told(db: Path, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "backup")
    txids = []
    for _ in range(3):
        with sql(db) as stock:
            stock("UPDATE accounts SET balance = balance + 1")
        txids.append(snapshot(db, store.url)["txid"])
    assert sorted(set(txids)) == txids
    assert len(levels(store)[SNAPSHOT_LEVEL]) == 3
    facts = snapshot(db, store.url, "--retention-days", "0")
    assert facts["deleted"] == 2
    assert [file.max_txid for file in levels(store)[SNAPSHOT_LEVEL]] == [txids[-1]]
    assert restored(store, tmp_path / "ours.db") == checkpointed(db)


def test_a_primary_takes_it_up_and_goes_on_from_it(db: Path, tmp_path: Path) -> None:
    archive = DirectoryStore(tmp_path / "archive")
    snapshot(db, archive.url)
    with primary(db, archive.url) as node:
        with sql(db) as stock:
            stock("UPDATE accounts SET balance = balance + 1")
        assert poll(lambda: 0 in levels(archive)), node.err.read_text()
        facts = snapshot(db, archive.url)
        assert facts["txid"] == max(file.max_txid for file in levels(archive)[0])
    assert len(levels(archive)[SNAPSHOT_LEVEL]) == 2
    assert restored(archive, tmp_path / "ours.db") == checkpointed(db)


def test_into_s3_and_nothing_is_told_when_it_failed(db: Path, tmp_path: Path) -> None:
    with counted_s3(tmp_path / "s3") as server, monitor() as (url, asked):
        env = server.environment()
        snapshot(db, server.url(), env=env)
        with open_store(server.spec()) as store:
            assert restored(store, tmp_path / "ours.db") == checkpointed(db)
        wrong = env | {"AWS_SECRET_ACCESS_KEY": "wrong"}
        done = walcast("snapshot", db, server.url("other"), "--ping-url", url, env=wrong)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert asked == []


@pytest.mark.parametrize("url", ["ftp://example.com/x", "example.com/x", "http://"])
def test_a_ping_url_that_cannot_be_one_is_refused_before_anything_is_done(db: Path, tmp_path: Path, url: str) -> None:
    done = walcast("snapshot", db, tmp_path / "backup", "--ping-url", url)
    assert done.returncode == 1
    assert "ping" in done.stderr
    assert not (tmp_path / "backup").exists()


def test_a_replica_an_archive_of_another_history_and_no_database_are_refused(db: Path, tmp_path: Path) -> None:
    edge, ahead = tmp_path / "f" / "app.db", tmp_path / "ahead"
    other = tmp_path / "other.db"
    create(other, seed=1)
    for _ in range(3):
        with sql(other) as stock:
            stock("UPDATE accounts SET balance = balance + 1")
        snapshot(other, ahead)
    with primary(db) as node:
        with follower(edge, node.address):
            done = walcast("snapshot", edge, tmp_path / "backup")
            assert done.returncode == 1
            assert "replica" in done.stderr
        done = walcast("snapshot", db, ahead)
        assert done.returncode == 1
        assert "belongs to the database" in done.stderr
        (ahead / "walcast-database").unlink()  # an older walcast's archive
        done = walcast("snapshot", db, ahead)
        assert done.returncode == 1
        assert "another history" in done.stderr
    assert walcast("snapshot", tmp_path / "none.db", tmp_path / "backup").returncode == 1
    assert not (tmp_path / "backup").exists()


def test_a_primary_answers_on_its_local_socket_for_its_owner_only(db: Path) -> None:
    with primary(db) as node:
        socket = db.with_name("app.db-walcast") / "socket"
        assert socket.stat().st_mode & 0o777 == 0o600
        facts = json.loads(walcast("status", db, "--json").stdout)
        assert facts["role"] == "primary"
        assert facts["databases"][0]["path"] == str(db)
        node.kill()
        assert socket.exists()
        node.start()
        node.ready()
        assert json.loads(walcast("status", db, "--json").stdout)["role"] == "primary"
        assert node.stop() == 0
        assert not socket.exists()


def test_a_path_longer_than_a_socket_address_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    path = folder / "app.db"
    create(path)
    with primary(path):
        assert snapshot(path, tmp_path / "backup")["verified"]
    assert len(os.fspath(path)) > 200

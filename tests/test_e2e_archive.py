"""A real primary archives to a folder and to a real S3 server; walcast and the real Litestream restore it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.nodes import follower, poll, primary, wait_level, walcast
from support.s3 import counted_s3, rclone_s3

from walcast.archive import SNAPSHOT_LEVEL, list_files
from walcast.restore import restore
from walcast.store import open_store

LITESTREAM = Path(sys.executable).with_name("litestream")


@dataclass
class Archive:
    """A place to archive to: its URL for us and for Litestream, and the credentials."""

    url: str
    litestream_url: str
    environment: dict[str, str]


@pytest.fixture(params=["folder", "s3"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    if request.param == "folder":
        yield Archive(str(tmp_path / "archive"), f"file://{tmp_path / 'archive'}", {})
        return
    with rclone_s3(tmp_path / "s3") as server:
        keys = {name: value for name, value in server.environment().items() if name.startswith("AWS_")}
        url = server.url("db")
        yield Archive(url, url.replace("path-style=", "force-path-style="), keys)


def made(path: Path) -> Path:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table t(id integer primary key, v)")
        db.executemany("insert into t(v) values (?)", [("x" * 300,)] * 2000)
        db.commit()
    return path


def write(path: Path, commits: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as db:
        for i in range(commits):
            db.execute("insert into t(v) values (?)", (f"{i}" * 40,))


def archived_txid(address: str) -> tuple[int, int]:
    facts = json.loads(walcast("status", address, "--json").stdout)["databases"][0]
    return facts["archive"]["txid"], facts["txid"]


def checkpointed(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma wal_checkpoint(truncate)")
    return path.read_bytes()


def test_what_a_primary_archives_is_the_database(archive: Archive, tmp_path: Path) -> None:
    app, edge = made(tmp_path / "p" / "app.db"), tmp_path / "f" / "app.db"
    with primary(app, archive.url, env=archive.environment) as node:
        write(app, 50)
        assert poll(lambda: len(set(archived_txid(node.address))) == 1)
        write(app, 50)
        assert poll(lambda: len(set(archived_txid(node.address))) == 1)
        with follower(edge, node.address, "--archive", archive.url, env=archive.environment) as copy:
            wait_level(node.address, edge)
            write(app, 20)
            wait_level(node.address, edge)
            assert "bootstrapped from the archive" in copy.err.read_text()
        assert poll(lambda: len(set(archived_txid(node.address))) == 1)
    expected = checkpointed(app)
    assert checkpointed(edge) == expected
    ours, theirs = tmp_path / "ours.db", tmp_path / "theirs.db"
    done = walcast("restore", archive.url, "-o", ours, env=archive.environment)
    assert done.returncode == 0, done.stderr
    assert ours.read_bytes() == expected
    command = [str(LITESTREAM), "restore", "-o", str(theirs), archive.litestream_url]
    subprocess.run(command, env=archive.environment, check=True, capture_output=True, timeout=60)
    assert theirs.read_bytes() == expected


def test_an_archive_that_was_away_is_caught_up_with(tmp_path: Path) -> None:
    app, folder = made(tmp_path / "p" / "app.db"), tmp_path / "archive"
    with primary(app, folder) as node:
        assert poll(lambda: len(set(archived_txid(node.address))) == 1)
        away = folder.rename(tmp_path / "away")
        folder.write_text("not a folder")
        write(app, 30)
        facts = poll(
            lambda: json.loads(walcast("status", node.address, "--json").stdout)["databases"][0]["archive"]["error"]
        )
        assert facts
        folder.unlink()
        away.rename(folder)
        write(app, 5)
        assert poll(lambda: len(set(archived_txid(node.address))) == 1)
    output = tmp_path / "restored.db"
    assert walcast("restore", folder, "-o", output).returncode == 0
    assert output.read_bytes() == checkpointed(app)


def test_a_primary_that_lost_its_state_goes_on_behind_its_archive(tmp_path: Path) -> None:
    app, folder = made(tmp_path / "p" / "app.db"), tmp_path / "archive"
    with primary(app, folder) as node:
        write(app, 30)
        assert poll(lambda: len(set(archived_txid(node.address))) == 1)
        before = archived_txid(node.address)[0]
    for path in sorted((app.parent / "app.db-walcast").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with primary(app, folder) as node:
        write(app, 10)
        assert poll(lambda: len(set(archived_txid(node.address))) == 1 and archived_txid(node.address)[0] > before)
    output = tmp_path / "restored.db"
    assert walcast("restore", folder, "-o", output).returncode == 0
    assert output.read_bytes() == checkpointed(app)


def test_an_outage_longer_than_the_log_stops_nothing_and_ends_with_one_difference(tmp_path: Path) -> None:
    app, edge = made(tmp_path / "p" / "app.db"), tmp_path / "f" / "app.db"
    with counted_s3(tmp_path / "s3") as server, open_store(server.spec()) as store:
        env = server.environment()
        with primary(app, server.url(), "--log-max-bytes", str(1 << 20), env=env) as node:
            assert poll(lambda: len(set(archived_txid(node.address))) == 1)
            before = archived_txid(node.address)[0]
            listed = server.traffic.requests["LIST"]
            with follower(edge, node.address, env=env):
                with server.traffic.outage("503"):
                    with closing(sqlite3.connect(app, isolation_level=None, timeout=30)) as db:
                        for _ in range(4):
                            for _ in range(60):
                                db.execute("update t set v = hex(randomblob(150)) where id % 19 = 0")
                            wait_level(node.address, edge)
                    assert log_bytes(app) < (1 + 4 + 1) << 20, "the bound, what is allocated ahead, the notes"
                    assert poll(lambda: archive_error(node.address))
                assert poll(lambda: len(set(archived_txid(node.address))) == 1)
                assert archive_error(node.address) is None
                assert server.traffic.requests["LIST"] == listed
            bridge = node.wait_event("archived what was missed, as one file")
            assert bridge["from_txid"] == before + 1
        # At a compaction's boundary there may be a file of a level over the raw ones, which stay.
        after = [file for file in list_files(store) if file.max_txid > before]
        assert [file.max_txid for file in after if file.level == 0 and file.min_txid == before + 1] == [bridge["txid"]]
        assert SNAPSHOT_LEVEL not in {file.level for file in after}
    # What was restorable before is restorable still, and so is what came after.
    with rclone_s3(tmp_path / "s3") as server, open_store(server.spec()) as store:
        restore(store, tmp_path / "before.db", txid=before)
        restore(store, tmp_path / "after.db", integrity_check="full")
    assert (tmp_path / "after.db").read_bytes() == checkpointed(app)


def log_bytes(app: Path) -> int:
    return sum(file.stat().st_size for file in app.with_name("app.db-walcast").rglob("*") if file.is_file())


def archive_error(address: str) -> str | None:
    error: str | None = json.loads(walcast("status", address, "--json").stdout)["databases"][0]["archive"]["error"]
    return error

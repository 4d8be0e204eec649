"""A database that gets pages of another size: its replicas, its archive, and what reads them."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from support.nodes import follower, poll, primary, walcast

from walcast.archive.checks import Findings, Read, check_reads
from walcast.archive.files import ArchiveFile
from walcast.restore.verify import verify_archive
from walcast.statedir import state_dir
from walcast.store import open_store


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


def make(path: Path, page_size: int, *values: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened(path) as db:
        db.execute(f"PRAGMA page_size = {page_size}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (a TEXT)")
        db.executemany("INSERT INTO t VALUES (?)", [(value,) for value in values])
    return path


def give_page_size(path: Path, page_size: int) -> None:
    """As an app's maintenance does."""
    with opened(path) as db:
        for text in ("journal_mode = DELETE", f"page_size = {page_size}"):
            db.execute(f"PRAGMA {text}").fetchall()
        db.execute("VACUUM")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("INSERT INTO t VALUES ('after')")


def values(path: Path) -> list[str]:
    with opened(path) as db:
        return [row[0] for row in db.execute("SELECT a FROM t ORDER BY rowid")]


def test_a_replica_follows_a_database_to_another_page_size_and_old_connections_are_told(tmp_path: Path) -> None:
    db, replica, archive = make(tmp_path / "app.db", 4096, "before"), tmp_path / "edge" / "r.db", tmp_path / "archive"
    with primary(db, str(archive)) as node, follower(replica, node.address) as following:
        assert poll(lambda: replica.exists() and values(replica) == ["before"])
        with opened(replica) as reader:
            reader.execute("SELECT * FROM t").fetchall()
            node.stop()
            give_page_size(db, 8192)
            node.start()
            node.ready()
            assert poll(lambda: values(replica) == ["before", "after"], 20, 0.05)
            with pytest.raises(sqlite3.OperationalError, match="unable to open"):
                reader.execute("SELECT * FROM t").fetchall()
            with opened(db) as writer:
                writer.execute("INSERT INTO t VALUES ('later')")
            assert poll(lambda: values(replica) == ["before", "after", "later"], 20, 0.05)
            assert following.running
    with open_store(str(archive)) as store:
        found = verify_archive(store, scratch=tmp_path)
    assert (found.problems, found.page_size) == ([], 8192)


def test_replace_takes_a_database_of_another_page_size_and_keeps_what_was_a_replica(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one" / "app.db", 4096, "one"), make(tmp_path / "other" / "app.db", 1024, "other")
    replica = tmp_path / "edge" / "app.db"
    with primary(one) as node, follower(replica, node.address):
        assert poll(lambda: replica.exists() and values(replica) == ["one"])
    with primary(other) as node:
        with follower(replica, node.address, wait=False) as refused:
            assert refused.wait() == 1
        assert values(replica) == ["one"]
        with follower(replica, node.address, "--replace"):
            assert poll(lambda: values(replica) == ["other"], 20, 0.05)
    [kept] = state_dir(replica).glob("replaced-*.db")
    assert values(kept) == ["one"]


def test_a_backup_with_other_pages_that_is_copied_over_a_served_database_ends_it_in_one_line(tmp_path: Path) -> None:
    db, backup, replica = make(tmp_path / "app.db", 4096, "x"), tmp_path / "backup.db", tmp_path / "edge" / "r.db"
    make(backup, 8192, "backup")
    with primary(db) as node, follower(replica, node.address):
        assert poll(lambda: replica.exists() and values(replica) == ["x"])
        shutil.copyfile(backup, db)
        values(db)
        assert node.wait() == 1
        said = [line for line in node.err.read_text().splitlines() if json.loads(line)["event"] == "failed"]
        assert len(said) == 1, said
        node.start()
        node.ready()
        assert poll(lambda: values(replica) == ["backup"], 20, 0.05)


def test_a_file_that_was_put_beside_the_wal_of_another_is_refused(tmp_path: Path) -> None:
    db, new = make(tmp_path / "app.db", 4096, "old"), tmp_path / "new.db"
    with opened(db) as app:
        app.execute("VACUUM INTO ?", (str(new),))
        app.execute("INSERT INTO t VALUES ('in the WAL')")
        new.rename(db)
        done = walcast("primary", db, "--listen", "127.0.0.1:0")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (1, 1), done.stderr
    for suffix in ("-wal", "-shm"):
        Path(f"{db}{suffix}").unlink(missing_ok=True)
    with primary(db):
        assert values(db) == ["old"]


def read(level: int, low: int, high: int, page_size: int) -> Read:
    return Read(ArchiveFile(level, low, high, 1, 0, f"{level}/{low}-{high}"), 0, page_size, 1, 0, 0)


@pytest.mark.parametrize(
    ("reads", "problems"),
    [
        ([read(0, 2, 2, 4096), read(0, 4, 4, 8192), read(9, 1, 1, 4096), read(9, 1, 3, 8192)], 0),
        ([read(0, 2, 2, 4096), read(0, 4, 4, 8192), read(9, 1, 1, 4096)], 1),  # no snapshot begins it anew
        ([read(0, 2, 2, 4096), read(1, 2, 4, 4096), read(9, 1, 1, 4096), read(9, 1, 3, 8192)], 1),  # leads across it
        ([read(0, 2, 2, 4096), read(9, 1, 2, 8192)], 1),
    ],
)
def test_page_sizes_in_an_archive_change_with_a_snapshot_only(reads: list[Read], problems: int) -> None:
    findings = Findings("memory:")
    check_reads(reads, findings)
    assert len(findings.problems) == problems, findings.problems

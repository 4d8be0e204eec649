"""A database that gets pages of another size: its replicas, its archive, and what reads them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from support.apply_replica import replica_of
from support.apply_source import Source
from support.nodes import ENVIRONMENT, follower, poll, primary, walcast

from walcast import Replica, ReplicaReplaced
from walcast.adapters.sqlalchemy import replica_engine
from walcast.archive.checks import Findings, Read, check_reads
from walcast.archive.files import ArchiveFile
from walcast.dbfiles import DatabaseFiles
from walcast.errors import Stopped, Unavailable
from walcast.locks import is_locked
from walcast.restore.verify import verify_archive
from walcast.statedir import state_dir
from walcast.store import open_store
from walcast.walindex import LOCK_CHECKPOINT
from walcast_follower.apply.applier import Applier
from walcast_follower.bootstrap.new_replica import put_in_place
from walcast_follower.bootstrap.replaced_databases import KEPT_MOST, keep_aside
from walcast_follower.bootstrap.replacement import replacing


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as db:
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


def now(replica: Path) -> list[str]:
    """None yet, or for whoever opens it at the moment at which it is replaced."""
    try:
        return values(replica) if replica.exists() else []
    except sqlite3.OperationalError:
        return []


def error_of(reader: sqlite3.Connection) -> int:
    """SQLite's code; 0 for none."""
    try:
        reader.execute("SELECT * FROM t").fetchall()
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode & 0xFF
    return 0


def test_a_replica_follows_a_database_to_another_page_size_and_old_connections_are_told(tmp_path: Path) -> None:
    db, replica, archive = make(tmp_path / "app.db", 4096, "before"), tmp_path / "edge" / "r.db", tmp_path / "archive"
    with primary(db, str(archive)) as node, follower(replica, node.address) as following:
        assert poll(lambda: now(replica) == ["before"])
        with opened(replica) as reader:
            reader.execute("SELECT * FROM t").fetchall()
            node.stop()
            give_page_size(db, 8192)
            node.start()
            node.ready()
            assert poll(lambda: now(replica) == ["before", "after"], 20, 0.05)
            assert poll(lambda: error_of(reader) == sqlite3.SQLITE_CANTOPEN, 20, 0.05)
            with opened(db) as writer:
                writer.execute("INSERT INTO t VALUES ('later')")
            assert poll(lambda: now(replica) == ["before", "after", "later"], 20, 0.05)
            assert following.running
    with open_store(str(archive)) as store:
        found = verify_archive(store, scratch=tmp_path)
    assert (found.problems, found.page_size) == ([], 8192)


DJANGO = """
import sys
import django
from django.conf import settings
from walcast.adapters.django import replica_database
replica = replica_database(sys.argv[1]) | {"CONN_MAX_AGE": None}
default = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(DATABASES={"default": default, "replica": replica})
django.setup()
from django.core.signals import request_finished, request_started
from django.db import connections
for _ in sys.stdin:
    request_started.send(None)
    with connections["replica"].cursor() as cursor:
        print(cursor.execute("SELECT count(*) FROM t").fetchone()[0], flush=True)
    request_finished.send(None)
"""


OPENING = """
import shutil, sqlite3, sys
shutil.copyfile(sys.argv[1], sys.argv[2])
try:
    sqlite3.connect(sys.argv[1], timeout=0).execute("SELECT * FROM sqlite_schema").fetchall()
except sqlite3.OperationalError as error:
    print(error)
"""


def test_connections_that_apps_keep_are_opened_anew_when_the_replica_was_replaced(tmp_path: Path) -> None:
    db, replica = make(tmp_path / "app.db", 4096, "before"), tmp_path / "edge" / "r.db"
    with (
        primary(db) as node,
        follower(replica, node.address),
        subprocess.Popen(
            [sys.executable, "-c", DJANGO, replica], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
        ) as django,
    ):

        def asked_of_django() -> bytes:
            assert django.stdin
            assert django.stdout
            django.stdin.write(b"\n")
            django.stdin.flush()
            return django.stdout.readline()

        assert poll(lambda: now(replica) == ["before"])
        engine = replica_engine(replica)
        assert asked_of_django() == b"1\n"
        with closing(Replica(replica).connect()) as kept, engine.connect() as held:
            assert kept.execute("SELECT count(*) FROM t").fetchone() == (1,)
            assert held.execution_options(isolation_level="AUTOCOMMIT").scalar(text("SELECT count(*) FROM t")) == 1
            with engine.connect() as pooled:
                assert pooled.scalar(text("SELECT count(*) FROM t")) == 1
            node.stop()
            give_page_size(db, 8192)
            node.start()
            node.ready()
            assert poll(lambda: now(replica) == ["before", "after"], 20, 0.05)
            with engine.connect() as pooled:
                assert pooled.scalar(text("SELECT count(*) FROM t")) == 2
            assert poll(lambda: error_of(kept) == sqlite3.SQLITE_CANTOPEN, 20, 0.05)
            with pytest.raises(ReplicaReplaced):
                kept.execute("SELECT * FROM t")
            with pytest.raises(OperationalError) as wrapped:
                held.scalar(text("SELECT count(*) FROM t"))
            assert wrapped.value.connection_invalidated
        engine.dispose()
        assert asked_of_django() == b"2\n"
        assert django.stdin
        django.stdin.close()


def test_of_the_replicas_that_are_kept_aside_the_newest_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(tmp_path)
    applier = replica_of(source, tmp_path)
    kept = []
    for i in range(KEPT_MOST + 2):
        source.transfer().apply(applier)
        kept.append(keep_aside(applier, tmp_path / "state"))
        os.utime(kept[-1], (i, i))
    assert sorted((tmp_path / "state").glob("replaced-*")) == sorted(kept[-KEPT_MOST:])
    said = [vars(record)["deleted"] for record in caplog.records if "deleted" in vars(record)]
    assert said == [str(path) for path in kept[:2]]
    applier.close()
    source.close()


def test_a_replica_is_kept_aside_whatever_its_indexes_need(tmp_path: Path) -> None:
    """Only the app has its collations."""
    path = make(tmp_path / "r.db", 4096, "kept")
    with opened(path) as db:
        db.create_collation("apps", lambda one, other: (one > other) - (one < other))
        db.execute("CREATE INDEX i ON t (a COLLATE apps)")
    applier = Applier.open(path, tmp_path / "state")
    kept = keep_aside(applier, tmp_path / "state")
    applier.close()
    assert values(kept) == ["kept"]
    assert [entry.name for entry in kept.parent.glob("replaced-*")] == [kept.name]


def test_a_replica_that_is_being_replaced_is_whole_without_its_wal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may stop there: of a database that is a file and a WAL, one of the two goes first."""
    source = Source(tmp_path)
    applier = replica_of(source, tmp_path)
    for _ in range(5):
        source.grow(20).apply(applier)
    new = make(tmp_path / "new.db", 8192, "new")
    alone = tmp_path / "alone.db"

    def stopped(*_: object) -> None:
        assert not Path(f"{applier.path}-wal").exists()
        # In a process of its own: to close it here would drop SQLite's locks.
        command = [sys.executable, "-c", OPENING, str(applier.path), str(alone)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "database is locked\n"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def replace_it() -> None:
        with replacing(applier):
            put_in_place(new, applier.path, tmp_path / "state", 1, source.first_position)

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(Stopped):  # what it applied from now on would be in a WAL that nobody opens
        replace_it()
    assert alone.read_bytes() == source.close()
    applier.close()


def test_what_others_copy_back_is_durable_before_the_wal_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a try that fails before that leaves a replica that goes on, and no descriptor more."""
    source = Source(tmp_path)
    applier = replica_of(source, tmp_path)
    source.grow(20).apply(applier)
    events: list[str] = []
    sync, shm_fd = DatabaseFiles.sync, os.open(f"{applier.path}-shm", os.O_RDWR)

    def synced(files: DatabaseFiles) -> None:
        assert applier.backfilled_frames == applier.wal_frames
        assert is_locked(shm_fd, LOCK_CHECKPOINT), "nobody else makes a checkpoint meanwhile"
        events.append("synced")
        sync(files)

    def fail() -> None:
        with replacing(applier):
            events.append("replacing")
            raise Unavailable("a reader")

    monkeypatch.setattr(DatabaseFiles, "sync", synced)
    descriptors = []
    for _ in range(2):
        with pytest.raises(Unavailable):
            fail()
        descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
    assert events == ["synced", "replacing"] * 2
    assert descriptors[0] == descriptors[1]
    source.grow(1).apply(applier)
    applier.close()
    os.close(shm_fd)
    source.close()


def test_replace_takes_a_database_of_another_page_size_and_keeps_what_was_a_replica(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one" / "app.db", 4096, "one"), make(tmp_path / "other" / "app.db", 1024, "other")
    replica = tmp_path / "edge" / "app.db"
    with primary(one) as node, follower(replica, node.address):
        assert poll(lambda: now(replica) == ["one"])
    with primary(other) as node:
        with follower(replica, node.address, wait=False) as refused:
            assert refused.wait() == 1
        assert values(replica) == ["one"]
        with follower(replica, node.address, "--replace"):
            assert poll(lambda: now(replica) == ["other"], 20, 0.05)
    [kept] = state_dir(replica).glob("replaced-*.db")
    assert values(kept) == ["one"]


def test_a_backup_with_other_pages_that_is_copied_over_a_served_database_ends_it_in_one_line(tmp_path: Path) -> None:
    db, backup, replica = make(tmp_path / "app.db", 4096, "x"), tmp_path / "backup.db", tmp_path / "edge" / "r.db"
    make(backup, 8192, "backup")
    with primary(db) as node, follower(replica, node.address):
        assert poll(lambda: now(replica) == ["x"])
        shutil.copyfile(backup, db)
        values(db)
        assert node.wait() == 1
        said = [line for line in node.err.read_text().splitlines() if json.loads(line)["event"] == "failed"]
        assert len(said) == 1, said
        node.start()
        node.ready()
        assert poll(lambda: now(replica) == ["backup"], 20, 0.05)


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

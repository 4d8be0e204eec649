"""What walcast makes of a database: nobody gets by it what the database file's own mode does not give him.

The umask is 000, under which a file is open to everybody unless somebody sees to it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from support.nodes import Node, follower, poll, primary, wait_level, walcast
from support.users import (
    APP,
    APP_GROUP,
    STRANGER,
    STRANGER_GROUP,
    as_user,
    folder_for_all,
    modes,
    needs_root,
    open_to_others,
    umask,
)

from walcast.errors import WalcastError
from walcast.replica import Replica
from walcast.store.directory import DirectoryStore

IS_ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    with umask(0o000):
        yield


def create(db: Path, mode: int) -> None:
    db.parent.mkdir()
    with closing(sqlite3.connect(db)) as app:
        app.execute("PRAGMA journal_mode = WAL")
        app.execute("CREATE TABLE secret(text)")
    db.chmod(mode)
    write(db)


def write(db: Path) -> None:
    with closing(sqlite3.connect(db)) as app, app:
        app.execute("INSERT INTO secret VALUES ('s')")


@contextmanager
def reading(db: Path) -> Iterator[sqlite3.Connection]:
    """An app that has it open, so that `-wal` and `-shm` are there."""
    with closing(sqlite3.connect(db)) as app:
        app.execute("SELECT * FROM secret").fetchall()
        yield app


def opened(folder: Path) -> dict[str, str]:
    """But for what the test itself keeps there."""
    return {name: mode for name, mode in open_to_others(folder).items() if not name.endswith((".out", ".err"))}


def archived(archive: Path) -> bool:
    return any(DirectoryStore(archive).list("ltx/9/"))


def test_what_is_made_of_a_database_for_its_owner_only_is_too(tmp_path: Path) -> None:
    db, archive, out = tmp_path / "p" / "app.db", tmp_path / "archive", tmp_path / "new" / "restored.db"
    create(db, 0o600)
    with primary(db, archive, "--auto-failover", "--id", "p") as p:
        assert poll(lambda: archived(archive))
        with follower(tmp_path / "f" / "app.db", p.address, "--archive", archive) as f:
            write(db)
            wait_level(p.address, f_path := tmp_path / "f" / "app.db")
            with reading(f_path):
                assert {"app.db-wal", "app.db-shm"} <= set(modes(f_path.parent))
                _nothing_open(tmp_path, p, f)
            assert walcast("restore", archive, "-o", out).returncode == 0
            assert walcast("snapshot", db, tmp_path / "backups").returncode == 0
            _nothing_open(tmp_path, p, f)
    assert (tmp_path / "backups").is_dir()


def _nothing_open(folder: Path, *nodes: Node) -> None:
    own = {str(node.directory.relative_to(folder)) for node in nodes}  # made by the test
    assert {name: mode for name, mode in opened(folder).items() if name not in own} == {}


def test_a_replica_has_the_mode_that_was_asked_for_or_that_of_the_file_before(tmp_path: Path) -> None:
    db, asked, before = (tmp_path / name / "app.db" for name in ("p", "asked", "before"))
    create(db, 0o600)
    before.parent.mkdir()
    before.parent.chmod(0o755)
    before.touch()
    before.chmod(0o660)
    if IS_ROOT:
        os.chown(before, APP, APP_GROUP)
    with (
        primary(db) as p,
        follower(asked, p.address, "--mode", "0640"),
        follower(before, p.address, "--mode", "0644"),
    ):
        wait_level(p.address, asked, before)
        for replica, mode, status in ((asked, 0o640, 0o640), (before, 0o660, 0o640)):
            with reading(replica):
                found = modes(replica.parent)
                assert [found[f"app.db{suffix}"] for suffix in ("", "-wal", "-shm")] == [mode] * 3
                state = {name.partition("/")[2]: bits for name, bits in found.items() if "-walcast/" in name}
            assert state.pop("status") == status
            assert {name for name, bits in state.items() if bits & 0o077} == set()
        if IS_ROOT:
            owners = [Path(f"{before}{suffix}").stat() for suffix in ("", "-wal", "-shm")]
            assert {(found.st_uid, found.st_gid) for found in owners} == {(APP, APP_GROUP)}


def test_a_mode_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    answer = walcast("follower", tmp_path / "app.db", "--primary", "127.0.0.1:9", "--mode", "0755")
    assert answer.returncode == 2


@needs_root
def test_an_app_of_another_user_reads_a_replica_and_its_status_by_the_group_that_the_file_has() -> None:
    """The replica's file was made for the app's group; walcast runs as root, and the app as another user."""
    with folder_for_all() as folder:
        db, replica = folder / "p" / "app.db", folder / "f" / "app.db"
        create(db, 0o600)
        replica.parent.mkdir()
        replica.parent.chmod(0o755)
        replica.touch()
        os.chown(replica, APP, APP_GROUP)
        replica.chmod(0o660)
        with primary(db) as p, follower(replica, p.address):
            goal = wait_level(p.address, replica)
            apps = Replica(replica)

            def pry() -> list[str]:
                got: list[str] = []
                with suppress(WalcastError):
                    got.append(str(apps.position()))
                with suppress(WalcastError, sqlite3.Error), closing(apps.connect()) as app:
                    got += [row[0] for row in app.execute("SELECT text FROM secret")]
                return got

            def read() -> tuple[int, str]:
                apps.wait_for(goal)
                with closing(apps.connect()) as app:
                    return len(app.execute("SELECT * FROM secret").fetchall()), apps.state()

            assert as_user(APP, APP_GROUP, read) == (1, "streaming")
            assert as_user(STRANGER, STRANGER_GROUP, read, [APP_GROUP]) == (1, "streaming")
            assert as_user(STRANGER, STRANGER_GROUP, pry) == []
            replica.chmod(0o600)  # by an admin, while it is followed
            assert poll(lambda: (replica.with_name("app.db-walcast") / "status").stat().st_mode & 0o777 == 0o600)


@needs_root
def test_the_side_files_of_a_database_that_root_serves_are_its_owners() -> None:
    with folder_for_all() as folder:
        db = folder / "app" / "app.db"
        create(db, 0o640)
        for path in (db.parent, db):
            os.chown(path, APP, APP_GROUP)
        with primary(db, folder / "archive"):
            owners = [Path(f"{db}{suffix}").stat() for suffix in ("", "-wal", "-shm", "-walcast/status")]
            assert {(found.st_uid, found.st_gid) for found in owners} == {(APP, APP_GROUP)}
            assert [found.st_mode & 0o777 for found in owners] == [0o640] * 4
            as_user(APP, APP_GROUP, lambda: write(db))
            with pytest.raises(PermissionError):
                as_user(APP, APP_GROUP, lambda: (db.with_name("app.db-walcast") / "database-id").read_bytes())

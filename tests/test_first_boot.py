"""The first boot: no database yet, a file of zero bytes, or an archive to go on from."""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from support.folders import rows, serving, status, write
from support.nodes import LOOPBACK, poll, primary, walcast
from support.s3 import counted_s3
from support.users import STRANGER, STRANGER_GROUP, as_user, folder_for_all, needs_root

from walcast.errors import NotAllowed
from walcast.filesystem import is_missing
from walcast.position import Position
from walcast.restore import restore
from walcast.store import open_store
from walcast_node.config.settings import DatabaseSettings
from walcast_node.process.first_boot import check_rights, is_awaited, opened_when_free
from walcast_primary.capture.opening import DatabaseInUse

APP = """\
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("CREATE TABLE t (x INTEGER NOT NULL)")
db.execute("INSERT INTO t VALUES (1)")
time.sleep(60)
"""


def restored(url: Path, copy: Path) -> list[int]:
    with open_store(str(url)) as store:
        restore(store, copy)
    return rows(copy)


def lose(database: Path) -> None:
    """As a container's disk that goes with it."""
    for path in database.parent.glob(f"{database.name}*"):
        if path.is_file():
            path.unlink()
    folder = database.with_name(f"{database.name}-walcast")
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


# Waiting for the app


def test_the_app_is_started_and_makes_the_database(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    db, command = tmp_path / "app.db", f"{sys.executable} {tmp_path}/app.py {tmp_path}/app.db"
    with primary(db, tmp_path / "archive", "--restore", "--exec", command) as node:
        assert node.wait_event("archived a snapshot")
        assert poll(lambda: rows(db) == [1])
        assert node.stop() == 128 + 15
        assert node.wait_event("stopping: everything went out")
    assert restored(tmp_path / "archive", tmp_path / "back.db") == [1]


def test_others_are_served_while_one_is_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "there.db", 1)
    file = tmp_path / "walcast.yml"
    file.write_text(f"wait-for-db: forever\ndbs: [{{path: {tmp_path}/there.db}}, {{path: {tmp_path}/late.db}}]\n")
    with serving(file) as node:
        facts = node.facts  # type: ignore[attr-defined]
        assert (facts["databases"], facts["awaited"]) == (["there"], ["late"])
        late = status(node)["late"]
        assert (late["state"], [trouble["kind"] for trouble in late["troubles"]]) == ("waiting", ["not-made"])
        write(tmp_path / "late.db", 1)
        assert poll(lambda: [e for e in node.events("serving") if e["database"] == "late"])
        assert node.stop() == 0


def test_status_has_the_one_database_of_a_file_while_it_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "walcast.yml"
    file.write_text(f"wait-for-db: forever\ndbs: [{{path: {tmp_path}/late.db}}]\n")
    with serving(file) as node:
        late = status(node)["late"]
        assert (late["state"], [trouble["kind"] for trouble in late["troubles"]]) == ("waiting", ["not-made"])
        assert late["since"]
        write(tmp_path / "late.db", 1)
        assert poll(lambda: status(node)["late"]["state"] == "serving")


def test_one_of_several_is_restored_when_it_is_lost(tmp_path: Path) -> None:
    write(tmp_path / "there.db", 1)
    write(tmp_path / "lost.db", 1)
    archive = {"lost": f"file://{tmp_path}/archive/lost", "there": f"file://{tmp_path}/archive/there"}
    databases = ", ".join(
        f"{{path: {tmp_path}/{name}.db, restore-if-db-not-exists: true, replica: {{url: '{archive[name]}'}}}}"
        for name in archive
    )
    (tmp_path / "walcast.yml").write_text(f"dbs: [{databases}]\n")
    with serving(tmp_path / "walcast.yml") as node:
        assert poll(lambda: len(node.events("archived a snapshot")) == 2)
        assert node.stop() == 0
    lose(tmp_path / "lost.db")
    with serving(tmp_path / "walcast.yml") as node:
        assert node.facts["databases"] == ["lost", "there"]  # type: ignore[attr-defined]
        assert node.stop() == 0
    assert rows(tmp_path / "lost.db") == [1]


@pytest.mark.parametrize("failover", [False, True])
def test_several_are_waited_for_at_once(tmp_path: Path, failover: bool) -> None:
    names = ["one", "two"]
    databases = ", ".join(
        f"{{path: {tmp_path}/{name}.db, replica: {{url: 'file://{tmp_path}/archive/{name}'}}}}" for name in names
    )
    (tmp_path / "walcast.yml").write_text(f"wait-for-db: forever\ndbs: [{databases}]\n")
    with serving(tmp_path / "walcast.yml", *(["--auto-failover"] if failover else [])) as node:
        facts = node.facts  # type: ignore[attr-defined]
        assert facts["awaited"] == names
        write(tmp_path / "one.db", 1)
        assert node.wait_event("archived a snapshot")["url"].endswith("/one")
        write(tmp_path / "two.db", 1)
        assert node.wait_event("archived a snapshot", 2)["url"].endswith("/two")
        assert node.stop() == 0


def test_it_is_waited_for_as_long_as_was_asked(tmp_path: Path) -> None:
    where = ("primary", tmp_path / "app.db", "--listen", LOOPBACK)
    done = walcast(*where, "--wait-for-db", "0.2")
    assert done.returncode == 1
    assert "within 0.2 s" in done.stderr
    done = walcast(*where)
    assert done.returncode == 1
    assert "--wait-for-db" in done.stderr
    assert not (tmp_path / "app.db").exists()


def test_a_database_that_its_app_holds_as_it_makes_it_is_opened_when_it_is_free() -> None:
    tries = iter([DatabaseInUse("locked"), DatabaseInUse("locked"), None])

    async def open_it() -> str:
        if (error := next(tries)) is not None:
            raise error
        return "open"

    assert asyncio.run(opened_when_free(open_it, lambda: False)) == "open"
    tries = iter([DatabaseInUse("locked")])
    with pytest.raises(DatabaseInUse):
        asyncio.run(opened_when_free(open_it, lambda: True))


@needs_root
def test_a_volume_that_walcast_may_not_write_to_is_said_instead_of_waiting(tmp_path: Path) -> None:
    with folder_for_all() as folder:

        def check() -> None:
            check_rights(folder / "not there yet")
            with pytest.raises(NotAllowed):
                check_rights(folder)

        as_user(STRANGER, STRANGER_GROUP, check)


def test_a_node_that_waits_says_so_and_ends_at_once(tmp_path: Path) -> None:
    with primary(tmp_path / "app.db", "--wait-for-db", "forever") as node:
        [database] = json.loads(walcast("status", node.address, "--json").stdout)["databases"]
        assert (database["role"], "has not made it" in database["trouble"]) == ("primary", True)
        assert node.stop() == 0
    assert not list(tmp_path.glob("app.db*"))


# Zero bytes


def test_a_file_of_zero_bytes_is_no_database_unless_a_wal_is_beside_it(tmp_path: Path) -> None:
    db = tmp_path / "app.db"
    assert is_missing(db)
    db.touch()
    assert is_missing(db)
    assert is_awaited(DatabaseSettings(db, "app", wait_s=math.inf))
    assert not is_awaited(DatabaseSettings(db, "app"))
    (tmp_path / "app.db-wal").write_bytes(b"x")
    assert not is_missing(db)
    assert not is_missing(tmp_path)


def test_a_restore_if_there_is_no_database_replaces_a_file_of_zero_bytes_alone(tmp_path: Path) -> None:
    write(tmp_path / "first.db", 1, 2)
    assert walcast("snapshot", tmp_path / "first.db", tmp_path / "archive").returncode == 0
    db = tmp_path / "app.db"
    db.touch()
    with open_store(str(tmp_path / "archive")) as store:
        (tmp_path / "app.db-wal").write_bytes(b"x")
        assert restore(store, db, if_db_not_exists=True).skipped
        (tmp_path / "app.db-wal").unlink()
        assert restore(store, db, if_db_not_exists=True).restored
        assert rows(db) == [1, 2]
        write(db, 3)
        assert restore(store, db, if_db_not_exists=True).skipped
    assert rows(db) == [1, 2, 3]


@pytest.mark.parametrize("how", ["zero bytes", "an empty database"])
def test_emptiness_is_not_archived_over_something(tmp_path: Path, how: str) -> None:
    db, archive = tmp_path / "app.db", tmp_path / "archive"
    write(db, 1, 2)
    with primary(db, archive) as node:
        node.wait_event("archived a snapshot")
        assert node.stop() == 0
    db.unlink()  # with the state folder there: the id is the archive's
    if how == "zero bytes":
        db.touch()
    else:
        with closing(sqlite3.connect(db)) as made:
            made.execute("PRAGMA journal_mode=WAL")
    before = sorted(path.name for path in archive.rglob("*"))
    done = walcast("primary", db, archive, "--listen", LOOPBACK)
    assert done.returncode == 1
    assert "walcast restore" in done.stderr
    assert sorted(path.name for path in archive.rglob("*")) == before
    if how == "zero bytes":
        with primary(db, archive, "--restore") as node:
            assert rows(db) == [1, 2]
            assert node.stop() == 0


def test_an_empty_database_goes_on_with_the_archive_of_an_empty_database(tmp_path: Path) -> None:
    db, archive = tmp_path / "app.db", tmp_path / "archive"
    with closing(sqlite3.connect(db)) as made:
        made.execute("PRAGMA journal_mode=WAL")
    for _ in range(2):
        with primary(db, archive) as node:
            node.wait_event("archived a snapshot")
            assert node.stop() == 0


# Restore, then serve


def test_a_restored_database_goes_on_with_its_archive_and_uploads_what_is_new_alone(tmp_path: Path) -> None:
    db = tmp_path / "disk" / "app.db"
    write(db, *range(300))
    with counted_s3(tmp_path / "s3") as s3:
        env = s3.environment()

        with primary(db, s3.url(), env=env) as node:
            node.wait_event("archived a snapshot")
            assert node.stop() == 0
        whole = max(path.stat().st_size for path in s3.folder.rglob("*.ltx"))
        for start in range(1, 4):
            lose(db)
            known = {path.name for path in s3.folder.rglob("*.ltx")}
            changed_between = start % 2 == 0  # as by a migration that an entrypoint runs
            if changed_between:
                assert walcast("restore", s3.url(), "-o", db, env=env).returncode == 0
                write(db, 1000 + start)
            s3.traffic.requests.clear()
            with primary(db, s3.url(), "--restore", env=env) as node:
                if not changed_between:
                    write(db, 1000 + start)
                assert node.stop() == 0
                compared = node.events("compared all pages")[-1]
                done = node.events("stopping: everything went out")[-1]
            assert rows(db) == [*range(300), *range(1001, 1001 + start)]
            assert (compared["reason"], compared["changed_pages"] > 0) == ("it was restored", changed_between)
            assert Position.parse(done["position"]).txid == done["archived_txid"] == start + 1
            assert s3.traffic.requests["PUT"] <= 3  # two ask whether the store honours preconditions
            [new] = [path for path in s3.folder.rglob("*.ltx") if path.name not in known]
            assert new.stat().st_size < whole
        with open_store(s3.spec()) as store:
            restore(store, tmp_path / "back.db")
        assert rows(tmp_path / "back.db") == [*range(300), 1001, 1002, 1003]


# A snapshot by hand


def test_a_snapshot_of_an_empty_database_is_refused_where_the_archive_has_something(tmp_path: Path) -> None:
    first, db, archive = tmp_path / "first.db", tmp_path / "app.db", tmp_path / "archive"
    write(first, 1, 2)
    assert walcast("snapshot", first, archive).returncode == 0
    with closing(sqlite3.connect(db)) as made:
        made.execute("PRAGMA journal_mode=WAL")
    (archive / "walcast-database").unlink()  # an older walcast's archive, which no id protects
    before = sorted(path.name for path in archive.rglob("*.ltx"))
    assert walcast("snapshot", db, archive).returncode == 1
    with primary(db):
        assert walcast("snapshot", db, archive).returncode == 1
    assert sorted(path.name for path in archive.rglob("*.ltx")) == before
    assert walcast("snapshot", db, archive, "--continue-archive").returncode == 0

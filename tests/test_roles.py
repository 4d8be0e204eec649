"""A database that changes hands between capture and applier in one process, under apps that know nothing of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.archiving import CALM, restored, restored_by_litestream
from support.e2e_oracle import Served, entries
from support.nodes import poll
from support.roles import archiving, demoted, make, promoted, reached, write
from support.writers import Sql, checkpointed, child, sql

from walcast.archive import list_files, ltx_key
from walcast.errors import Stopped
from walcast.position import Position
from walcast.restore import restore
from walcast.store import Store, open_store
from walcast.terms import TERM_TXIDS, TermStart, first_txid
from walcast_follower.apply.applier import Applier
from walcast_primary.archiving.archiver import Archiver
from walcast_primary.archiving.quarantine import of_no_history
from walcast_primary.archiving.tenured_store import tenured
from walcast_primary.database import Database
from walcast_primary.publish.served_database import Refused
from walcast_primary.publish.served_database import Served as OnAir
from walcast_primary.tenure import Tenure, now_s

SWAPS = 6


def swapped(database: Database, term: int) -> Database:
    """Capture → applier → capture; writers go on."""
    state = database.state
    database = promoted(demoted(database), term, state)
    database.loop.let_writers_go()
    return database


def test_no_commit_gets_in_between_and_none_is_lost_while_the_role_changes(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    make(path)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    database = Database(path, "app")
    database.start()
    with (
        child("role_apps.py", "write", str(path)) as writer,
        child("role_apps.py", "read", str(path)) as reader,
        sql(path) as looking,
    ):
        for app in (writer, reader):
            print("go", file=app.process.stdin, flush=True)
        for term in range(2, SWAPS + 2):
            before = rows(looking)
            assert poll(lambda n=before: rows(looking) > n), "nobody can write"
            captured = database.loop.hold_writers().result(30.0)
            before, state = rows(looking), database.state
            applier = demoted(database)
            assert applier.position == captured.position
            time.sleep(rng.uniform(0, 0.02))
            database = promoted(applier, term, state)
            assert rows(looking) == before
            database.loop.let_writers_go()
        wrote, read = writer.stop(), reader.stop()
        position = database.loop.barrier().result(30.0).position
        assert wrote["locked"] > 0
        assert rows(looking) == wrote["committed"]
        assert read["looks"] > 0
    assert database.log.term == SWAPS + 1
    assert position.txid > SWAPS * TERM_TXIDS
    database.stop()
    again = Database(path, "app")  # the file is what the log says
    again.start()
    assert again.log.position == position
    again.stop()


def rows(app: Sql) -> int:
    return int(app("SELECT count(*) FROM t")[0][0])


def test_writers_that_are_held_are_locked_out_until_they_are_let_go(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    make(path)
    database = Database(path, "app")
    database.start()
    with sql(path, 0) as app:
        database.loop.hold_writers().result(30.0)
        assert "locked" in app.error("INSERT INTO t VALUES (1, 1)")
        assert rows(app) == 0
        database.loop.let_writers_go()
        app("INSERT INTO t VALUES (1, 1)")
    database.stop()


def test_writers_are_held_once_the_app_has_ended_its_transaction(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    make(path)
    database = Database(path, "app")
    database.start()
    with sql(path, 0) as app:
        app("BEGIN IMMEDIATE")
        app("INSERT INTO t VALUES (1, 1)")
        before = database.log.position.txid
        held = database.loop.hold_writers()
        assert not poll(held.done, 0.3)
        app("COMMIT")
        assert held.result(30.0).position.txid == before + 1
        assert "locked" in app.error("INSERT INTO t VALUES (2, 2)")
    database.stop()


# The tenure


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "archive")) as opened:
        yield opened


def test_nothing_is_put_or_deleted_when_the_tenure_is_over(store: Store) -> None:
    tenure = Tenure()
    kept = tenured(store, tenure)
    kept.put("a", b"1", timestamp_ms=0)
    tenure.set(-1.0, now_s())
    for change in (lambda: kept.put("b", b"2", timestamp_ms=0), lambda: kept.delete(["a"]), kept.tidy):
        with pytest.raises(Stopped):
            change()
    assert [found.key for found in store.list()] == ["a"]
    assert kept.get("a") == b"1"


def test_an_upload_ends_when_the_tenure_does(store: Store, tmp_path: Path) -> None:
    tenure = Tenure()
    kept = tenured(store, tenure)

    class Body:
        def __init__(self) -> None:
            self.reads = 0

        def read(self, size: int = -1) -> bytes:
            self.reads += 1
            if self.reads == 3:
                tenure.end("deposed")
            return b"x" * 1024

    with pytest.raises(Stopped, match="deposed"):
        kept.put("long", Body(), timestamp_ms=0)  # type: ignore[arg-type]
    assert list(store.list()) == []


def test_a_primary_sends_nothing_before_and_after_its_tenure(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    make(path)
    tenure = Tenure()
    database = Database(path, "app", tenure=tenure)
    database.start()
    served = asyncio.run(_on_air(database))
    served.check_tenure()
    for begin_s, end_s in ((now_s() + 100, now_s() + 200), (now_s() - 200, now_s() - 100)):
        tenure.set(begin_s, end_s)
        with pytest.raises(Refused):
            served.check_tenure()
    tenure.set(now_s() - 1, now_s() + 100)
    served.check_tenure()
    assert 99_000 <= tenure.left_ms <= 100_000
    database.stop()


async def _on_air(database: Database) -> OnAir:
    return OnAir(database)


# The archive over several terms


def assert_restored(store: Store, path: Path) -> None:
    """Both programs restore what is in the database, which nobody has open."""
    same = checkpointed(path)
    assert restored(store, path.with_name("ours.db")) == same
    assert restored_by_litestream(store, path.with_name("theirs.db")) == same


def test_an_archive_goes_on_over_the_terms_without_a_snapshot(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "app.db"
    make(path)
    database = Database(path, "app")
    database.start()
    history: tuple[TermStart, ...] = ()
    for term in (2, 3, 4):
        with archiving(database, store, history) as archiver:
            write(path, 20)
            assert reached(database, archiver)
        start = database.log.position
        history += (TermStart(term, start, first_txid(start.txid)),)
        database = swapped(database, term)
    with archiving(database, store, history) as archiver:
        write(path, 5)
        assert reached(database, archiver)
    snapshots = [file for file in list_files(store) if file.level == 9]
    assert len(snapshots) == 1
    database.stop()
    assert_restored(store, path)


def test_what_a_promoted_node_finds_missing_is_bridged_by_the_pages_it_knows_of(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "app.db"
    make(path)
    database = Database(path, "app")
    database.start()
    with archiving(database, store) as archiver:
        write(path, 20)
        assert reached(database, archiver)
    end = database.log.position
    state = database.state
    applier = demoted(database)
    # What the primary sends goes on, and the archive does not: another node's writes, applied here.
    source = tmp_path / "source.db"
    restore(store, source)
    applied = _apply_more(applier, source)
    written = applier.written
    pages = written.after(end)
    assert pages is not None
    assert len(pages)
    history = (TermStart(2, applied, first_txid(applied.txid)),)
    database = promoted(applier, 2, state)
    database.loop.let_writers_go()
    archiver = Archiver(database, store, CALM, history=history, interval_s=0.05)
    archiver.missed(end, applied, pages)
    archiver.start()
    write(path, 3)
    assert reached(database, archiver)
    archiver.stop()
    assert [file.level for file in list_files(store)].count(9) == 1
    database.stop()
    assert_restored(store, path)


def _apply_more(applier: Applier, source: Path) -> Position:
    """Some commits on a copy of the database, captured, and applied to the replica."""
    app = Served(source)
    before = app.base_position
    write(source, 15)
    position = app.position
    for entry in entries(app.database.log, before):
        applier.begin()
        pages = list(entry.pages())
        applier.write_pages([page.pgno for page in pages], [page.data for page in pages])
        txid = applier.position.txid + entry.max_txid - entry.min_txid + 1
        applier.commit(1, Position(txid, entry.post_checksum), entry.header().commit_pages)
    assert applier.position.checksum == position.checksum
    app.stop()
    return applier.position


@pytest.mark.parametrize("late", ["raw", "snapshot"])
def test_what_a_deposed_primary_had_on_its_way_is_set_aside(tmp_path: Path, store: Store, late: str) -> None:
    path = tmp_path / "app.db"
    make(path)
    database = Database(path, "app")
    database.start()
    with archiving(database, store) as archiver:
        write(path, 10)
        assert reached(database, archiver)
    start = database.log.position
    # The other history: what the old primary goes on with, and uploads too late.
    other = tmp_path / "other" / "app.db"
    other.parent.mkdir()
    make(other)
    old = Served(other)
    old.database.loop.skip_to(start.txid)
    with open_store(str(tmp_path / "others")) as elsewhere, archiving(old.database, elsewhere) as archiver:
        assert reached(old.database, archiver)
        write(other, 3)
        assert reached(old.database, archiver)
        files = [file for file in list_files(elsewhere) if file.max_txid > start.txid and file.level != 9]
        assert files
        bodies = [(file, elsewhere.get(file.key)) for file in files]
    history = (TermStart(2, start, first_txid(start.txid)),)
    database = swapped(database, 2)
    for file, body in bodies:
        level, first = (9, 1) if late == "snapshot" else (0, file.min_txid)
        store.put(ltx_key(store, level, first, file.max_txid), body, timestamp_ms=file.timestamp_ms)
    assert len(of_no_history(list_files(store), history)) == len(bodies)
    with archiving(database, store, history) as archiver:
        write(path, 5)
        assert reached(database, archiver)
    assert not of_no_history(list_files(store), history)
    assert len(list(store.list("discarded/"))) == len(bodies)
    database.stop()
    old.stop()
    assert_restored(store, path)

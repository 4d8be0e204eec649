"""An archive belongs to one database: by whose primary it is used, and by which followers."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.archiving import CALM, archived, restored, restored_by_litestream, work_now
from support.e2e_oracle import Served
from support.nodes import follower, poll, position_of, primary, walcast
from support.s3 import S3Server, counted_s3, moto_s3, rclone_s3
from support.writers import checkpointed, sql

from walcast.archive import SNAPSHOT_LEVEL, list_files
from walcast.archive.identity import KEY, claim_archive, read_archive_id
from walcast.discarded import Circumstances
from walcast.errors import ConfigError, Corrupt, Unavailable
from walcast.identity import OtherDatabase, id_of_database, make_database_id, read_database_id, write_database_id
from walcast.restore import restore
from walcast.statedir import StateDir, state_dir
from walcast.store import Store, open_store
from walcast.store.directory import DirectoryStore
from walcast_follower.apply.applier import Applier
from walcast_follower.bootstrap.bootstrap import from_archive
from walcast_follower.bootstrap.rebase import catch_up
from walcast_node.failover.keeper import Keeper
from walcast_node.failover.lease import KEY as LEASE_KEY
from walcast_node.failover.lease import Lease
from walcast_node.failover.state import Node, State
from walcast_primary.archiving import ownership
from walcast_primary.archiving.archiver import Archiver
from walcast_primary.archiving.ownership import identify


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "archive")


def make(path: Path, word: str = "same") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (a)")
        db.execute("INSERT INTO t VALUES (?)", [word])
    return path


def write(path: Path, word: str) -> None:
    """As another process: two SQLite libraries must never open one file in one process."""
    with sql(path) as app:
        app("UPDATE t SET a = ?", word)


def word(path: Path) -> str:
    with closing(sqlite3.connect(path)) as db:
        return str(db.execute("SELECT a FROM t").fetchone()[0])


def serve(path: Path, store: Store | None = None) -> Served:
    """Captured in this process, with an id."""
    app = Served(path)
    identify(app.database, None, None)
    return app


@pytest.fixture
def apps(tmp_path: Path) -> Iterator[list[Served]]:
    """Two databases, alike byte for byte but for what is written later."""
    two = [serve(make(tmp_path / name / "app.db")) for name in ("x", "y")]
    yield two
    for app in two:
        app.stop()


def archiver_of(app: Served, store: Store) -> Archiver:
    return Archiver(app.database, store, CALM, interval_s=0.05)


# The object


def test_whoever_claims_an_archive_first_has_it(store: DirectoryStore) -> None:
    one, two = make_database_id(), make_database_id()
    assert read_archive_id(store) is None
    assert claim_archive(store, one) == one
    assert claim_archive(store, two) == one
    assert claim_archive(store, one) == one
    assert read_archive_id(store) == one


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 4000,
        b'{"walcast_database": 1}',
        b'{"walcast_database": 1, "id": "0"}',
        b'{"walcast_database": 2, "id": "' + b"0" * 32 + b'"}',
        b'{"walcast_database": 1, "id": "' + b"0" * 100_000 + b'"}',
    ],
)
def test_a_damaged_object_is_nobodys_and_cannot_be_claimed(store: DirectoryStore, data: bytes) -> None:
    store.put(KEY, data, timestamp_ms=0)
    with pytest.raises(Corrupt):
        claim_archive(store, make_database_id())


def test_the_object_is_none_of_the_archives_files(apps: list[Served], store: DirectoryStore, tmp_path: Path) -> None:
    app = apps[0]
    archiver = archiver_of(app, store)
    archiver.start()
    assert archived(app, archiver)
    archiver.stop()
    assert read_archive_id(store) == app.database.id
    done = walcast("verify", store.url, "--json")
    assert (done.returncode, json.loads(done.stdout)["problems"]) == (0, [])
    app.stop()
    assert restored(store, tmp_path / "ours.db") == checkpointed(app.path)
    assert restored_by_litestream(store, tmp_path / "theirs.db") == checkpointed(app.path)


# Two primaries


@pytest.fixture(params=["folder", "preconditions", "none"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Store]]:
    """One archive, of which two know."""
    if request.param == "folder":
        yield [DirectoryStore(tmp_path / "archive"), DirectoryStore(tmp_path / "archive")]
        return
    with moto_s3() if request.param == "preconditions" else rclone_s3(tmp_path / "s3") as server:
        assert isinstance(server, S3Server)
        with open_store(server.spec()) as one, open_store(server.spec()) as two:
            yield [one, two]


def test_of_two_primaries_that_begin_at_the_same_time_one_has_the_archive(
    apps: list[Served], shared: list[Store], tmp_path: Path
) -> None:
    archivers = [archiver_of(app, store) for app, store in zip(apps, shared, strict=True)]
    for app in apps:
        write(app.path, str(app.database.id))
    for archiver in archivers:
        archiver.start()
    assert poll(lambda: all(archiver.txid or archiver.error for archiver in archivers))
    [winner] = [app for app in apps if app.database.id == read_archive_id(shared[0])]
    loser = apps[1 - apps.index(winner)]
    refused = archivers[apps.index(loser)]
    before = loser.position
    write(loser.path, "goes on")
    assert loser.position.txid > before.txid, "captured all the same"
    assert archived(winner, archivers[apps.index(winner)])
    assert str(loser.database.id) in (refused.error or "")
    assert str(winner.database.id) in (refused.error or "")
    assert (refused.txid, list(refused._catalogue.all() if refused._catalogue else [])) == (0, [])
    for archiver in archivers:
        archiver.stop()
    assert restored(shared[0], tmp_path / "restored.db") != b""
    assert word(tmp_path / "restored.db") == winner.database.id


def test_one_that_finds_the_archive_to_be_anothers_stops_uploading_until_it_is_its_own_again(
    apps: list[Served], store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ownership, "CHECK_EVERY_S", 0.0)
    monkeypatch.setattr(ownership.Ownership.check, "__kwdefaults__", {"older_than_s": 0.0})
    monkeypatch.setattr("walcast_primary.archiving.archiver.RETRY_S", (0.05,))
    app, other = apps
    archiver = archiver_of(app, store)
    archiver.start()
    assert archived(app, archiver)
    mine = (store.root / KEY).read_bytes()
    assert other.database.id is not None
    ownership.take_over_archive(store, other.database.id)
    write(app.path, "not to be uploaded")
    assert poll(lambda: archiver.error)
    files = list_files(store)
    write(app.path, "nor this")
    assert not poll(lambda: list_files(store) != files, 0.3)
    assert archiver.behind_s > 0
    (store.root / KEY).write_bytes(mine)
    assert archived(app, archiver)
    assert poll(lambda: archiver.error is None)
    archiver.stop()
    app.stop()
    assert restored(store, tmp_path / "restored.db") == checkpointed(app.path)


def test_upkeep_deletes_nothing_in_an_archive_that_is_anothers(
    apps: list[Served], store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, other = apps
    archiver = archiver_of(app, store)
    archiver.start()
    assert archived(app, archiver)
    assert poll(lambda: archiver._upkeep is not None)
    assert other.database.id is not None
    ownership.take_over_archive(store, other.database.id)
    archiver._ownership._checked_s = -1000.0
    assert archiver._upkeep is not None
    for step in ("_compact_levels", "_snapshot_when_due", "_delete_when_due"):
        monkeypatch.setattr(archiver._upkeep, step, lambda now_ms: pytest.fail("worked on another's archive"))
    work_now(archiver._upkeep)
    assert str(other.database.id) in (archiver.upkeep_error or "")
    archiver.stop()


def test_an_idle_archive_is_not_asked_whose_it_is(apps: list[Served], tmp_path: Path) -> None:
    with counted_s3(tmp_path / "s3") as server, open_store(server.spec()) as store:
        archiver = archiver_of(apps[0], store)
        archiver.start()
        assert archived(apps[0], archiver)
        before = dict(server.traffic.requests)
        assert not poll(lambda: dict(server.traffic.requests) != before, 0.5)
        archiver.stop()


def test_a_primary_at_the_archive_of_another_database_does_not_start(store: DirectoryStore, tmp_path: Path) -> None:
    x, y = make(tmp_path / "x" / "app.db"), make(tmp_path / "y" / "app.db")
    with primary(x, store.url) as node:
        write(x, "X")
        assert poll(lambda: archive_txid(node.address))
        mine = id_of_database(x)
        done = walcast("primary", y, store.url, "--listen", "127.0.0.1:0")
        assert done.returncode == 1
        assert mine is not None
        assert mine in done.stderr
        assert store.url in done.stderr
        assert not state_dir(y).exists(), "it never was a primary's"
        node.stop()
    files = list_files(store)
    done = walcast("snapshot", y, store.url)
    assert done.returncode == 1
    assert list_files(store) == files
    # Whoever knows better may say so, once.
    assert walcast("snapshot", y, store.url, "--continue-archive").returncode == 0
    assert id_of_database(y) == mine
    with primary(y, store.url) as node:
        assert poll(lambda: archive_txid(node.address))


def archive_txid(address: str) -> int:
    status = json.loads(walcast("status", address, "--json").stdout)["databases"][0]
    return int(status["archive"]["txid"]) if status["archive"]["error"] is None else 0


# Databases that go on with an archive


def archive_once(path: Path, store: Store) -> str:
    app = serve(path)
    archiver = archiver_of(app, store)
    archiver.start()
    assert archived(app, archiver)
    archiver.stop()
    app.stop()
    assert app.database.id is not None
    return app.database.id


def identified(path: Path, store: Store, *, take_over: bool = False) -> str:
    """The id with which a database goes on with the archive."""
    app = Served(path)
    try:
        identify(app.database, store, read_archive_id(store), take_over=take_over)
        assert app.database.id is not None
        return app.database.id
    finally:
        app.stop()


def test_a_restored_database_is_the_archives_also_once_an_app_has_written_to_it(
    store: DirectoryStore, tmp_path: Path
) -> None:
    mine = archive_once(make(tmp_path / "x" / "app.db"), store)
    again = tmp_path / "again" / "app.db"
    restore(store, again)
    assert sorted(file.name for file in state_dir(again).iterdir()) == ["database-id", "restored"]
    write(again, "before walcast ran")
    assert identified(again, store) == mine


def test_what_is_restored_over_another_database_is_that_one_no_longer(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = archive_once(make(tmp_path / "x" / "app.db", "X"), store)
    other = make(tmp_path / "y" / "app.db", "Y")
    write_database_id(state_dir(other), make_database_id())

    def cut(*_: object, **__: object) -> None:
        raise Unavailable("the power is off")

    with monkeypatch.context() as patched:
        patched.setattr("walcast.restore.restoring.put_in_place", cut)
        with pytest.raises(Unavailable):
            restore(store, other, force=True)
    assert (word(other), id_of_database(other)) == ("Y", None)
    restore(store, other, force=True)
    assert (word(other), id_of_database(other)) == ("X", mine)


def test_a_damaged_object_keeps_no_restore_from_being_made(store: DirectoryStore, tmp_path: Path) -> None:
    archive_once(make(tmp_path / "x" / "app.db", "X"), store)
    (store.root / KEY).write_bytes(b"damaged")
    restore(store, tmp_path / "restored.db")
    assert word(tmp_path / "restored.db") == "X"
    assert id_of_database(tmp_path / "restored.db") is None


def test_a_database_in_the_archives_newest_state_is_the_archives_without_an_id(
    store: DirectoryStore, tmp_path: Path
) -> None:
    path = make(tmp_path / "x" / "app.db")
    archive_once(path, store)
    write(path, "more")
    mine = archive_once(path, store)
    shutil.rmtree(state_dir(path))
    assert identified(path, store) == mine


def test_a_database_whose_log_has_the_archives_states_is_the_archives(store: DirectoryStore, tmp_path: Path) -> None:
    """As after an upgrade, with commits that the archive has not."""
    path = make(tmp_path / "x" / "app.db")
    app = serve(path)
    mine = app.database.id
    archiver = archiver_of(app, store)
    archiver.start()
    write(path, "one")
    assert archived(app, archiver)
    archiver.stop()
    write(path, "two")
    app.stop()
    (state_dir(path) / "database-id").unlink()
    assert identified(path, store) == mine


def test_a_database_that_is_on_no_history_of_the_archive_is_refused_unless_somebody_knows_better(
    store: DirectoryStore, tmp_path: Path
) -> None:
    path, other = make(tmp_path / "x" / "app.db"), make(tmp_path / "y" / "app.db")
    mine = archive_once(path, store)
    for number in range(2):  # as long as the archive is in the first state, in which the other one is too, and later
        with pytest.raises(OtherDatabase) as refused:
            identified(other, store)
        assert (refused.value.mine, refused.value.theirs) == ("", mine)
        write(path, f"went on {number}")
        assert archive_once(path, store) == mine
    with pytest.raises(OtherDatabase) as refused:
        identified(other, store)
    assert (refused.value.mine, refused.value.theirs) == ("", mine)
    assert id_of_database(other) is None
    assert identified(other, store, take_over=True) == mine


def test_a_database_with_an_id_takes_an_archive_over_when_it_is_told_to(
    apps: list[Served], store: DirectoryStore
) -> None:
    apps[0].stop()
    archive_once(apps[0].path, store)
    app = apps[1]
    with pytest.raises(OtherDatabase):
        identify(app.database, store, read_archive_id(store))
    identify(app.database, store, read_archive_id(store), take_over=True)
    archiver = Archiver(app.database, store, CALM, interval_s=0.05, take_over=True)
    archiver.start()
    assert archived(app, archiver)
    archiver.stop()
    assert read_archive_id(store) == app.database.id


def test_an_archive_without_an_id_gets_that_of_the_database_that_goes_on_with_it(
    store: DirectoryStore, tmp_path: Path
) -> None:
    path = make(tmp_path / "x" / "app.db")
    archive_once(path, store)
    (store.root / KEY).unlink()
    before = len([file for file in list_files(store) if file.level == SNAPSHOT_LEVEL])
    mine = archive_once(path, store)
    assert read_archive_id(store) == mine
    assert len([file for file in list_files(store) if file.level == SNAPSHOT_LEVEL]) == before, "gone on with"


# Followers


def test_a_replica_that_is_made_from_an_archive_has_the_archives_id(store: DirectoryStore, tmp_path: Path) -> None:
    mine = archive_once(make(tmp_path / "x" / "app.db"), store)
    edge = tmp_path / "edge" / "app.db"
    edge.parent.mkdir()
    state = StateDir(edge)
    write_database_id(state.path, make_database_id())  # of a database that is no more
    assert from_archive(store, edge, state.path) is not None
    assert read_database_id(state.path) == mine
    (store.root / KEY).unlink()
    edge.unlink()
    assert from_archive(store, edge, state.path) is not None
    assert read_database_id(state.path) is None
    state.close()


def test_a_replica_does_not_catch_up_from_the_archive_of_another_database(
    store: DirectoryStore, tmp_path: Path
) -> None:
    archive_once(make(tmp_path / "x" / "app.db", "X"), store)
    edge = tmp_path / "edge" / "app.db"
    edge.parent.mkdir()
    state = StateDir(edge)
    applier = Applier.open(edge, state.path, from_archive(store, edge, state.path))
    write_database_id(state.path, make_database_id())
    for keeping in (None, Circumstances(edge, "the test")):
        with pytest.raises(OtherDatabase):
            catch_up(store, applier, keeping)
    applier.close()
    state.close()
    assert word(edge) == "X"


def test_a_replica_from_the_archive_of_another_database_is_refused_by_the_primary(
    store: DirectoryStore, tmp_path: Path
) -> None:
    mine = archive_once(make(tmp_path / "x" / "app.db", "X"), store)
    edge = tmp_path / "edge" / "app.db"
    with primary(make(tmp_path / "y" / "app.db", "Y")) as node:
        with follower(edge, node.address, "--archive", store.url, wait=False) as wrong:
            assert wrong.wait() == 1
            assert mine in wrong.err.read_text()
        assert word(edge) == "X"
        with follower(edge, node.address, "--replace"):
            assert poll(lambda: position_of(edge).txid and word(edge) == "Y")


# The lease


def test_a_node_whose_database_is_another_than_the_leases_is_refused(store: DirectoryStore, tmp_path: Path) -> None:
    x, y = make(tmp_path / "x" / "app.db", "X"), make(tmp_path / "y" / "app.db", "Y")
    with primary(x, store.url, "--auto-failover", "--lease-time", "2") as node:
        found = store.read(LEASE_KEY)
        assert found is not None
        lease = Lease.decode(found.data)
        assert lease.database == id_of_database(x)
        assert walcast("snapshot", y, tmp_path / "backup").returncode == 0
        mine = id_of_database(y)
        assert mine is not None
        as_follower = ["follower", y, "--primary", node.address, "--archive", store.url]
        as_primary = ["primary", y, store.url, "--listen", "127.0.0.1:0"]
        for command in (as_follower, as_primary):
            done = walcast(*command, "--auto-failover", "--advertise", "127.0.0.1:1")
            assert done.returncode == 1
            for name in (mine, lease.database, lease.holder):
                assert name in done.stderr
    assert word(y) == "Y"


@pytest.mark.parametrize(
    ("database", "mine", "heeded"),
    [("a" * 32, "b" * 32, False), ("a" * 32, "a" * 32, True), ("", "b" * 32, True), ("a" * 32, "", True)],
)
def test_a_lease_of_another_database_is_no_lease(store: DirectoryStore, database: str, mine: str, heeded: bool) -> None:
    store.swap(LEASE_KEY, Lease(1, "h", "h:1", 10.0, "n", database=database).encode(0.0), None)
    keeper = Keeper(
        store,
        State(Node("me", "me:1", "run", 10.0)),
        act=lambda action: None,
        changed=lambda state: None,
        claim=lambda nonce: pytest.fail("claims"),
        database_id=lambda: mine,
    )
    if heeded:
        assert keeper._read()[0] is not None
        return
    with pytest.raises(Unavailable, match=database):
        keeper._read()


def test_a_damaged_object_keeps_a_primary_from_starting(store: DirectoryStore, tmp_path: Path) -> None:
    store.put(KEY, b"damaged", timestamp_ms=0)
    with pytest.raises(ConfigError):
        ownership.find_owner(store)

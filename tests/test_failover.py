"""Failover of a set with a lease, with real processes: what each claim of the documentation comes to.

The tests share one set of three nodes; whoever is the primary when a test begins is the primary. A test that leaves a
set which does not come together again costs the next one a new set.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from support import failover_app
from support.failover_campaign import Ledger
from support.nodes import poll, walcast
from support.replica_set import LEASE_S, ReplicaSet, SetNode, replica_set
from support.writers import child, pause

from walcast import wire
from walcast.archive import list_files
from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.replica import Replica
from walcast.statedir import state_dir
from walcast.store import open_store
from walcast.terms import TermStart, read_standing
from walcast.token import NotEnoughFollowers
from walcast_follower.apply.applier import Applier
from walcast_node.commands.status_facts import primary_status
from walcast_node.failover.lease import KEY
from walcast_primary.recovery.damage import Note, write_note

FOLLOWER_KEYS = {
    "role",
    "state",
    "position",
    "txid",
    "lag_txids",
    "lag_ms",
    "primary",
    "term",
    "id",
    "lease",
    "trouble",
}
DATABASE_KEYS = {"name", "path", "position", "txid", "page_size", "pages", "wal_bytes", "archive", "followers", "lease"}


def create(path: Path) -> None:
    failover_app.create(path)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("CREATE TABLE t (a)")
    db.close()


class Shared:
    """A set that tests use one after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stack = ExitStack()
        self.made = 0
        self.set: ReplicaSet | None = None

    def get(self) -> ReplicaSet:
        """A set that is level."""
        if self.set is not None:
            try:
                self.set.settle()
            except AssertionError:
                self.close()
        if self.set is None:
            self.made += 1
            self.set = self.stack.enter_context(replica_set(self.directory / str(self.made), create=create))
        return self.set

    def close(self) -> None:
        self.set = None
        self.stack.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    made = Shared(tmp_path_factory.mktemp("set"))
    yield made
    made.close()


@pytest.fixture
def it(shared: Shared) -> ReplicaSet:
    """Three nodes, level."""
    return shared.get()


def rows(node: SetNode) -> list[Any]:
    """What an app on that host reads of `t`."""
    return [a for (a,) in node.app()("SELECT a FROM t ORDER BY rowid")]


def last_start(node: SetNode) -> TermStart:
    """Where the newest term began, as the node knows."""
    standing = read_standing(state_dir(node.db))
    assert standing is not None
    return standing.history[-1]


def archived_between(it: ReplicaSet, after_txid: int, before_txid: int) -> list[str]:
    """What the archive has of TXIDs in between: nothing, if they are those of a gap."""
    with open_store(str(it.directory / "shared")) as store:
        return [file.key for file in list_files(store) if after_txid < file.max_txid < before_txid]


# A primary whose database is damaged


def test_a_damaged_primary_follows_whoever_took_over_and_is_mended(it: ReplicaSet) -> None:
    old = it.primary
    old.app()("INSERT INTO t VALUES ('before the damage')")
    old.barrier(followers=2)
    old.kill()
    new = it.wait_primary(other_than=old.id)
    with closing(sqlite3.connect(old.db)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # so that no frame hides the page
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 't'").fetchone()
    with old.db.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    write_note(state_dir(old.db), Note(str(page), "planted", 0))
    old.start(ready=False)
    poll(lambda: old.streams_from(new))
    it.settle()
    assert rows(old) == rows(new)
    assert old.events("cannot be the primary; following")


def test_a_replica_is_in_the_term_in_which_its_primary_published_its_state(it: ReplicaSet) -> None:
    """Two nodes may have given the same state the same TXID, in different terms."""
    it.primary.barrier(followers=2)
    assert it.followers[0].promote()["missing"] == 0
    new = it.wait_level()
    replica = it.followers[0]
    replica.kill()
    applier = Applier.open(replica.db, state_dir(replica.db))
    position, term = applier.position, applier.term
    applier.name(term - 1, position)
    applier.close()
    replica.start()
    assert poll(lambda: replica.term == term)
    assert new.term == term
    assert replica.status()["position"] == str(position)


# Asked for


def test_promote_asks_the_primary_and_loses_nothing(it: ReplicaSet) -> None:
    old, new = it.primary, it.followers[0]
    term = old.term
    old.app()("INSERT INTO t VALUES ('asked')")
    said = walcast("promote", new.db, "--json")
    assert said.returncode == 0, said.stderr
    facts = json.loads(said.stdout)
    assert (facts["missing"], facts["known"], facts["term"]) == (0, True, term + 1)
    assert it.wait_level() is new
    assert "asked" in rows(new)
    assert old.app().error("INSERT INTO t VALUES ('late')") == "database is locked"


def test_a_switchover_under_load_loses_nothing_and_the_pause_is_short(it: ReplicaSet, tmp_path: Path) -> None:
    old, new = it.primary, it.followers[-1]
    kept = {node.id: node.discarded() for node in it.nodes.values()}
    ledgers = {node.id: tmp_path / f"{node.id}.ledger" for node in it.nodes.values()}
    with ExitStack() as stack:
        apps = [
            stack.enter_context(
                child("failover_app.py", str(n.db), n.address, f"{tmp_path}{n.id}", str(ledgers[n.id]), "0.002")
            )
            for n in it.nodes.values()
        ]
        assert poll(lambda: len(Ledger.read({old.id: ledgers[old.id]}).acked) > 20)
        said = walcast("switchover", old.address, "--to", new.id, "--json")
        assert said.returncode == 0, said.stderr
        assert poll(lambda: ledgers[new.id].exists() and len(Ledger.read({new.id: ledgers[new.id]}).acked) > 20)
        for app in apps:
            app.stop()
    facts = json.loads(said.stdout)
    assert (facts["primary"], facts["lost"]) == (new.gate, 0)
    assert 0 < facts["pause_ms"] < 1000
    assert it.wait_level() is new
    committed = set(Ledger.read(ledgers).committed)
    there = {(app.removeprefix(str(tmp_path)), n) for app, n in new.app()("SELECT app, n FROM rows")}
    assert committed <= there
    assert {node.id: node.discarded() for node in it.nodes.values()} == kept


def test_a_switchover_to_a_stopped_follower_changes_nothing_and_writers_go_on(it: ReplicaSet) -> None:
    old, target = it.primary, it.followers[0]
    term, app = old.term, old.app()
    target.pause()
    app("INSERT INTO t VALUES ('it does not have this')")
    said = walcast("switchover", old.address, "--to", target.id, "--timeout", "0.5")
    assert said.returncode == 1
    assert "nothing happened" in said.stderr
    app("INSERT INTO t VALUES ('on')")
    assert (old.role, old.term) == ("primary", term)
    target.resume()
    assert it.wait_level() is old


def test_a_switchover_to_nobody_known_changes_nothing(it: ReplicaSet) -> None:
    old = it.primary
    said = walcast("switchover", old.address, "--to", "nobody")
    assert said.returncode == 1
    assert "no follower 'nobody' is connected; there is: " in said.stderr
    old.app()("INSERT INTO t VALUES ('on')")
    follower = it.followers[0]
    said = walcast("switchover", follower.address, "--to", old.id)
    assert said.returncode == 1
    assert f"it is at {old.gate}" in said.stderr  # asked of a follower, it says where to ask


def test_promote_with_force_waits_for_the_lease_of_a_primary_that_lives(it: ReplicaSet) -> None:
    old, new = it.primary, it.followers[0]
    app = old.app()
    facts = new.promote(force=True)
    assert old.role != "primary"
    assert app.error("INSERT INTO t VALUES ('late')") == "database is locked"
    assert facts["missing"] == 0
    assert it.wait_level() is new
    new.app()("INSERT INTO t VALUES ('forced')")


def test_promote_with_force_says_what_is_known_to_be_missing_when_the_primary_is_dead(it: ReplicaSet) -> None:
    old, new = it.primary, it.followers[0]
    old.kill()
    asked = walcast("promote", new.db)  # nobody to ask
    if asked.returncode:
        assert "promote with --force" in asked.stderr
    said = walcast("promote", new.db, "--force")
    if said.returncode == 0:
        assert (
            "no transaction of the old primary is known to be missing; what it committed after it was last heard of"
            in (said.stdout)
        )
    else:  # the other one was faster, by itself
        assert "another node became the primary" in said.stderr or "this node is the primary" in said.stderr


# By itself


def test_after_a_kill_the_set_goes_on_and_what_only_the_dead_one_had_is_kept(it: ReplicaSet) -> None:
    old = it.primary
    others = it.followers
    apps = {node.id: node.app() for node in it.nodes.values()}
    apps[old.id]("INSERT INTO t VALUES ('before')")
    before = old.barrier(followers=2)
    copies = {node.id: len(node.events("copied from the primary")) for node in others}
    kept = len(old.discarded())
    old.kill()
    since_s = time.monotonic()

    def written() -> SetNode | None:
        return next((n for n in others if apps[n.id].ask("INSERT INTO t VALUES ('after')")["error"] is None), None)

    new = poll(written, 10.0)
    assert new
    assert time.monotonic() - since_s < LEASE_S + 2.0
    [other] = [node for node in others if node is not new]
    after = new.barrier(followers=1)
    assert before < after
    for node in (new, other):
        Replica(node.db).wait_for(before)
        Replica(node.db).wait_for(after)
        assert apps[node.id]("SELECT a FROM t ORDER BY rowid")[-2:] == [["before"], ["after"]]  # the same connections
    assert len(other.events("copied from the primary")) == copies[other.id], "attached with a copy"
    # The app on the dead one's host writes on, for nobody.
    apps[old.id]("INSERT INTO t VALUES ('void')")
    old.start(ready=False)
    assert it.wait_level() is new
    assert apps[old.id]("SELECT a FROM t ORDER BY rowid")[-1] == ["after"]
    assert len(old.discarded()) == kept + 1
    summary = json.loads((old.discarded()[-1] / "summary.json").read_text())
    assert "t" in json.dumps(summary["tables"])
    assert str(old.discarded()[-1]) in old.status()["discarded"]


def test_a_holder_that_was_stopped_past_its_lease_sends_nothing_more(it: ReplicaSet) -> None:
    old = it.primary
    app = old.app()
    old.pause()
    app("INSERT INTO t VALUES ('unseen')")  # nobody holds writers now
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(old.barrier(timeout=20.0))
        except NotEnoughFollowers as error:
            answers.append(error.token)
        except WalcastError as error:
            answers.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    new = it.wait_primary(other_than=old.id)
    old.resume()
    asking.join()
    assert isinstance(answers[0], Unavailable), answers
    assert it.wait_level() is new
    begun = last_start(new)
    assert archived_between(it, begun.start.txid, begun.first_txid) == []
    assert "unseen" not in rows(old)
    assert "unseen" not in rows(new)
    assert old.discarded()


def test_a_holder_that_is_cut_off_is_fenced_before_another_one_takes_over(it: ReplicaSet) -> None:
    old = it.primary
    app = old.app()
    old.lose_store()
    old.cut()
    new = it.wait_primary(other_than=old.id)
    assert old.role == "fenced"
    assert app.error("INSERT INTO t VALUES ('late')") == "database is locked"
    new.app()("INSERT INTO t VALUES ('here')")
    it.gates.heal()
    old.find_store()
    assert it.wait_level() is new
    assert app("SELECT a FROM t ORDER BY rowid")[-1] == ["here"]


def test_a_store_that_is_away_fences_and_nobody_takes_over_from_a_primary_that_lives(it: ReplicaSet) -> None:
    old = it.primary
    app, term = old.app(), old.term
    promotions = {node.id: len(node.events("promoted: this node is the primary now")) for node in it.nodes.values()}
    for node in it.nodes.values():
        node.lose_store()
    assert old.is_("fenced", LEASE_S + 1.0)
    assert app.error("INSERT INTO t VALUES ('late')") == "database is locked"
    assert old.events("fenced: writers are held until the lease can be renewed")
    assert "apps cannot write" in old.facts()["trouble"]
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"http://{old.process.ready()['http']}/healthz", timeout=5)
    assert raised.value.code == 503
    assert json.load(raised.value)["failure"] == "fenced"
    raised.value.close()
    old.find_store()
    assert poll(lambda: app.ask("INSERT INTO t VALUES ('on')")["error"] is None, LEASE_S + 2.0)
    for node in it.nodes.values():
        node.find_store()
    assert it.wait_level() is old
    assert old.term == term
    now = {node.id: len(node.events("promoted: this node is the primary now")) for node in it.nodes.values()}
    assert now == promotions


def test_a_lease_that_is_none_fences_and_a_removed_one_is_made_anew(it: ReplicaSet) -> None:
    old = it.primary
    app, term = old.app(), old.term

    def spoil() -> bool:  # it is renewed meanwhile
        with open_store(str(it.directory / "shared")) as store:
            found = store.read(KEY)
            assert found is not None
            try:
                store.swap(KEY, b"garbage", found.version)
            except WalcastError:
                return False
        return True

    assert poll(spoil, 5.0)
    assert old.is_("fenced", LEASE_S + 1.0)
    assert KEY in old.facts()["trouble"]
    assert app.error("INSERT INTO t VALUES ('late')") == "database is locked"
    for path in (it.directory / "shared" / KEY).iterdir():
        path.unlink()
    assert poll(lambda: app.ask("INSERT INTO t VALUES ('on')")["error"] is None, 3 * LEASE_S)
    assert it.wait_level() is old
    assert old.term >= term


# Who else


def test_a_second_primary_of_one_archive_says_why_not(it: ReplicaSet, tmp_path: Path) -> None:
    create(tmp_path / "app.db")
    flags = ["--auto-failover", "--lease-time", "2", "--listen", "127.0.0.1:0"]
    before = (tmp_path / "app.db").read_bytes()
    said = walcast("primary", tmp_path / "app.db", it.directory / "shared", *flags, timeout=15.0)
    assert said.returncode == 1
    assert len([line for line in said.stderr.splitlines() if line.startswith("error: ")]) == 1, said.stderr
    assert (tmp_path / "app.db").read_bytes() == before
    it.primary.app()("INSERT INTO t VALUES ('on')")


def test_a_node_started_as_the_primary_follows_once_it_was_deposed(it: ReplicaSet) -> None:
    a = it.node("a")
    assert a.process.arguments[0] == "primary"
    if a.role == "primary":
        it.followers[0].promote()
        it.wait_level()
    a.process.stop()
    a.start()
    assert it.wait_level() is not a
    assert a.status()["role"] == "follower"


def test_status_says_what_the_interface_names(it: ReplicaSet) -> None:
    primary, follower = it.primary, it.followers[0]
    for facts in (primary_status(wire.Address.parse(primary.address), wire.Tls()), primary.status()):
        assert (facts["role"], facts["term"]) == ("primary", primary.term)
        [database] = facts["databases"]
        assert database.keys() >= DATABASE_KEYS
        assert database["lease"]["holder"] == primary.id
        assert database["lease"]["address"] == primary.gate
        assert 0 < database["lease"]["left_s"] <= LEASE_S == database["lease"]["lease_s"]
        assert database["archive"].keys() >= {"url", "txid", "error"}
        assert {f["id"] for f in database["followers"]} == {node.id for node in it.followers}
        assert {f["address"] for f in database["followers"]} == {node.gate for node in it.followers}
        assert {f["state"] for f in database["followers"]} == {"streaming"}
    facts = follower.status()
    assert facts.keys() >= FOLLOWER_KEYS
    assert (facts["role"], facts["state"], facts["primary"]) == ("follower", "streaming", primary.gate)
    assert (facts["term"], facts["lag_txids"], facts["trouble"]) == (primary.term, 0, None)
    asked = primary_status(wire.Address.parse(follower.address), wire.Tls())
    assert asked["role"] == "follower"
    with pytest.raises(ConfigError):
        primary.promote()


@pytest.mark.slow
def test_an_archive_folder_that_is_not_mounted_makes_no_second_primary(it: ReplicaSet, tmp_path: Path) -> None:
    """The holder finds an empty folder where the archive was; the others have the archive, and hear it no more."""
    old = it.primary
    app = old.app()
    (tmp_path / "empty").mkdir()
    old.lose_store(tmp_path / "empty")
    old.cut()
    it.wait_primary(other_than=old.id)
    pause(LEASE_S)  # for what should not happen
    assert old.role == "fenced"
    assert app.error("INSERT INTO t VALUES ('late')") == "database is locked"

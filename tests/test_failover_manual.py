"""Sets without a lease: nobody takes over by itself; an operator promotes, and whoever was the primary is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.nodes import poll, walcast
from support.replica_set import ReplicaSet, SetNode, replica_set
from support.s3 import rclone_s3

from walcast.errors import Unavailable
from walcast.terms import read_standing


@contextmanager
def manual(directory: Path, **options: object) -> Iterator[ReplicaSet]:
    with replica_set(directory, auto=False, **options) as it:  # type: ignore[arg-type]
        yield it


def last(node: SetNode) -> object:
    return node.app()("SELECT a FROM t ORDER BY rowid DESC LIMIT 1")[0][0]


def test_a_set_without_a_lease_does_what_it_is_told(tmp_path: Path) -> None:
    # b knows two addresses: first that of a node that is no primary.
    with manual(tmp_path, archive=False, primaries=("c", "b", "a")) as it:
        a, b, c = it.nodes.values()
        assert it.wait_level() is a
        a.app()("INSERT INTO t VALUES ('a')")
        it.wait_level()

        said = walcast("switchover", a.address, "--to", "b", "--json")
        assert said.returncode == 0, said.stderr
        assert json.loads(said.stdout)["term"] == 2
        assert it.wait_level() is b
        assert a.app().error("INSERT INTO t VALUES ('late')") == "database is locked"

        b.app()("INSERT INTO t VALUES ('b')")
        facts = c.promote()
        assert (facts["term"], facts["missing"], facts["known"]) == (3, 0, True)
        assert it.wait_level() is c
        assert (last(a), last(b)) == ("b", "b")

        # The primary dies; nobody takes over; asked, the followers say that force is needed.
        void = c.app()
        c.kill()
        with pytest.raises(Unavailable, match="--force"):
            a.promote()
        assert {a.role, b.role} == {"follower"}
        facts = a.promote(force=True)
        assert (facts["term"], facts["missing"], facts["known"]) == (4, 0, False)
        a.app()("INSERT INTO t VALUES ('a again')")
        assert poll(lambda: b.streams_from(a))

        # It comes back, thinks that it is the primary, is told, and keeps what only it had.
        void("INSERT INTO t VALUES ('void')")
        c.start(ready=False)
        assert it.wait_level() is a
        assert last(c) == "a again"
        assert len(c.discarded()) == 1
        c.process.stop()
        c.start()
        assert c.role == "follower"
        it.same_bytes()


def test_a_primary_that_was_stopped_is_told_when_it_wakes_up(tmp_path: Path) -> None:
    with manual(tmp_path, archive=False, ids=("a", "b")) as it:
        a, b = it.nodes.values()
        a.pause()
        assert b.promote(force=True)["term"] == 2
        b.app()("INSERT INTO t VALUES ('b')")
        a.resume()
        assert it.wait_level() is b
        assert a.app().error("INSERT INTO t VALUES ('late')") == "database is locked"
        it.same_bytes()


@pytest.mark.slow
def test_nodes_whose_databases_have_different_names_find_each_other(tmp_path: Path) -> None:
    with manual(tmp_path, archive=False, names={"b": "copy.db", "c": "other.db"}) as it:
        a, b, c = it.nodes.values()
        b.promote()
        assert it.wait_level() is b
        c.promote()
        assert it.wait_level() is c
        a.promote()
        assert it.wait_level() is a


@pytest.mark.slow
def test_a_store_that_ignores_preconditions_means_no_automatic_failover_and_says_so(tmp_path: Path) -> None:
    with (
        rclone_s3(tmp_path / "s3") as server,
        replica_set(tmp_path / "set", archive=server.url("db"), environment=server.environment()) as it,
    ):
        a, b, _ = it.nodes.values()
        for node in it.nodes.values():
            [event] = node.events("no automatic failover")
            assert event["reason"] == "the store ignores preconditions"
        assert "no automatic failover" in a.facts()["trouble"]
        a.app()("INSERT INTO t VALUES ('a')")
        b.promote()
        assert it.wait_level() is b
        b.app()("INSERT INTO t VALUES ('b')")
        assert poll(lambda: b.facts()["archive"]["txid"] == b.facts()["txid"])
        b.kill()
        assert a.promote(force=True)["missing"] == 0
        b.start(ready=False)
        assert it.wait_level() is a
        it.same_bytes()


def test_the_role_file_names_the_node_that_a_switchover_went_to(tmp_path: Path) -> None:
    """A node that was killed right after it gave its place away does not take it back."""
    with manual(tmp_path, archive=False, ids=("a", "b")) as it:
        a, b = it.nodes.values()
        b.promote()
        assert it.wait_level() is b
        a.kill()
        b.kill()
        a.start(ready=False)
        assert a.is_("follower", 5.0)
        standing = read_standing(a.db.with_name("app.db-walcast"))
        assert standing is not None
        assert (standing.role, standing.primary) == ("follower", b.gate)
        b.start()
        assert it.wait_level() is b


def test_a_primary_by_force_that_was_killed_tells_the_one_before_when_it_is_back(tmp_path: Path) -> None:
    """Also when that one is at an address which nobody gave it."""
    with manual(tmp_path, archive=False) as it:
        a, b, c = it.nodes.values()
        c.promote()
        assert it.wait_level() is c
        c.pause()
        assert b.promote(force=True)["term"] == 3
        b.kill()
        c.resume()
        b.start(ready=False)
        assert it.wait_level() is b
        assert a.streams_from(b)

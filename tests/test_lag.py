"""`Replica.lag` at a real follower: how old what readers see may be, not how late the last commit came."""

from __future__ import annotations

import signal
from pathlib import Path

from support.nodes import follower, poll, primary, wait_level
from support.replica_set import create_database
from support.writers import sql

import walcast


def test_a_replica_that_has_caught_up_is_not_behind_though_nothing_more_is_committed(tmp_path: Path) -> None:
    db, copy = tmp_path / "app.db", tmp_path / "edge" / "app.db"
    create_database(db)
    with primary(db) as node, follower(copy, node.address) as behind, sql(db) as app:
        wait_level(node.address, copy)
        replica = walcast.Replica(copy)
        behind.signal(signal.SIGSTOP)
        app("INSERT INTO t VALUES (1)")
        with walcast.Primary(node.address) as asked:
            token = asked.barrier()
        assert poll(lambda: replica.lag().ms > 1000), "a follower that is stuck says that it is level"
        behind.signal(signal.SIGCONT)
        replica.wait_for(token, timeout=20)
        assert poll(lambda: replica.lag().ms < 100, 10), f"{replica.lag().ms} ms behind, with all there is"


def test_a_replica_whose_primary_falls_silent_is_behind_long_before_the_stream_is_given_up(tmp_path: Path) -> None:
    db, copy = tmp_path / "app.db", tmp_path / "edge" / "app.db"
    create_database(db)
    with primary(db) as node, follower(copy, node.address):
        wait_level(node.address, copy)
        replica = walcast.Replica(copy)
        node.signal(signal.SIGSTOP)
        try:
            assert poll(lambda: replica.lag().ms > 1000, 8)
            assert replica.state() == "streaming"
        finally:
            node.signal(signal.SIGCONT)
        assert poll(lambda: replica.lag().ms < 100, 10)

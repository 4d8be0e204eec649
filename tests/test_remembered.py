"""Roles that are remembered: who starts a primary and gets a follower is told; snapshots go by what a node is."""

from __future__ import annotations

import asyncio
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from support import nodes
from support.nodes import Node, poll, walcast
from support.replica_set import create_database

from walcast.terms import read_standing
from walcast_node.commands.status_facts import local_status
from walcast_node.failover import remembered_role as module
from walcast_node.failover.remembered_role import EVENT, Remembered, remind


def restarted(node: Node) -> None:
    node.stop()
    node.start()


def test_a_primary_that_is_a_follower_now_says_so_first_with_the_command_that_changes_it(tmp_path: Path) -> None:
    mine, other = tmp_path / "a.db", tmp_path / "b" / "a.db"
    create_database(mine)
    with (
        nodes.primary(mine, "--id", "a") as primary,
        nodes.follower(other, primary.address, "--id", "b") as follower,
    ):
        follower.wait_event("streaming")
        assert walcast("switchover", primary.address, "--to", "b").returncode == 0
        primary.wait_event("streaming")
        restarted(primary)
        facts = primary.ready()
        [said] = primary.events(EVENT)
        life = [event["event"] for event in primary.events()]
        assert life.index(EVENT) == life.index("starting", life.index("ended")) - 1
        assert said["level"] == "warning"
        assert datetime.fromisoformat(said["since"])
        standing = read_standing(tmp_path / "a.db-walcast")
        assert standing is not None
        assert said["follows"] == standing.primary
        assert f"walcast promote {mine}" in said["to_change"]
        assert len(facts["following"]) == 1
        status = local_status(mine)
        assert (status["role"], [trouble["kind"] for trouble in status["troubles"]]) == ("follower", ["follower-now"])

        # Snapshots: not here, there; and after the promotion the other way round.
        assert "is a replica of" in walcast("snapshot", mine, tmp_path / "archive").stderr
        assert walcast("snapshot", other, tmp_path / "archive").returncode == 0
        primary.wait_event("streaming", 2)
        promoted = walcast("promote", mine)
        assert promoted.returncode == 0, promoted.stderr
        assert poll(lambda: local_status(mine)["role"] == "primary")
        assert [trouble["kind"] for trouble in local_status(mine)["databases"][0]["troubles"]] == []
        assert walcast("snapshot", mine, tmp_path / "archive").returncode == 0


def test_a_snapshot_is_taken_of_whatever_is_the_primary_also_of_what_was_a_replica(tmp_path: Path) -> None:
    """Started as the primary by hand: nothing but its process, or its last word, tells what it is."""
    origin, copy = tmp_path / "app.db", tmp_path / "edge" / "app.db"
    create_database(origin)
    with nodes.primary(origin) as first, nodes.follower(copy, first.address) as follower:
        follower.wait_event("streaming")
    assert walcast("snapshot", copy, tmp_path / "archive").returncode == 1, "it is a replica still"
    (copy.parent / "app.db-walcast" / "role").unlink(missing_ok=True)
    with nodes.primary(copy) as second:
        done = walcast("snapshot", copy, tmp_path / "archive")
        assert done.returncode == 0, done.stderr
        assert poll(lambda: local_status(copy)["role"] == "primary")
        second.stop()
    done = walcast("snapshot", copy, tmp_path / "archive")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("auto", "lines"), [(False, 3), (True, 0)])
def test_the_reminder_is_repeated_rarely_until_it_is_the_primary(
    auto: bool, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where roles move by themselves."""
    now, said = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Log:
        def log(self, level: int, event: str, **_: object) -> None:
            said.append((now, event))

        def debug(self, *_: object, **__: object) -> None: ...

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    monkeypatch.setattr(module, "log", Log())
    monkeypatch.setattr("walcast.rarely.time.monotonic", lambda: now)
    rarely = module.Rarely
    monkeypatch.setattr(module, "Rarely", lambda logger: rarely(logger, clock=lambda: now))
    what = Remembered(Path("/srv/app.db"), "2026-01-31T12:00:00Z", "10.0.0.1:7420", 2, auto)
    asyncio.run(remind(what, lambda: now < 5000))
    assert [event for _, event in said] == [EVENT] * lines
    assert all(later[0] - before[0] >= 60 for before, later in pairwise(said))

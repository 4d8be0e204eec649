"""What `walcast status` says of a follower: how far behind it is, and why it does not follow."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import nodes
from support.nodes import poll
from support.replica_set import create_database
from test_status import checked

from walcast import wire
from walcast.errors import DiskFull, Exhausted, Unavailable
from walcast.facts import primary_facts
from walcast.position import Position
from walcast.remedies import FailureKind
from walcast.rpc import replication_pb2 as pb
from walcast.statedir import StateDir
from walcast.statusfile import State, Status, StatusWriter
from walcast_follower.subscribe.primary_client import Client
from walcast_node.commands.status_facts import follower_status, local_status, status_of
from walcast_node.failover.member_status import missing_kind, stale_words


def test_a_follower_that_nobody_tells_of_its_primary_knows_no_lag_but_a_time(tmp_path: Path) -> None:
    create_database(tmp_path / "app.db")
    replica = tmp_path / "edge" / "app.db"
    with nodes.primary(tmp_path / "app.db") as primary, nodes.follower(replica, primary.address) as follower:
        follower.wait_event("streaming")
        assert poll(lambda: checked(local_status(replica))["databases"][0]["lag"]["bytes"] == 0)
        primary.stop()
        follower.wait_event("trying again")
        shown = checked(local_status(replica))
        [database] = shown["databases"]
        assert database["state"] == "disconnected"
        assert (database["lag"]["transactions"], database["lag"]["bytes"]) == (None, None)  # nobody tells
        assert database["lag"]["ms"] > 0
        assert shown["lag"] == database["lag"]
        assert database["troubles"][0]["kind"] == "stale"
        assert primary.address in database["troubles"][0]["text"]


def test_a_stream_tells_how_much_is_left_of_it(tmp_path: Path) -> None:
    """What a follower's `lag.bytes` is made of: the bytes that it has still to get, down to none."""
    create_database(tmp_path / "app.db")
    with nodes.primary(tmp_path / "app.db") as primary:
        start = nodes.barrier(primary.address)
        with closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None, timeout=10)) as app:
            app.execute("create table more(x)")
            for _ in range(4):
                app.execute("insert into more values (randomblob(100000))")
        end = nodes.barrier(primary.address)

        async def chunks() -> list[pb.Chunk]:
            client = Client(wire.Address.parse(primary.address), wire.Tls(), database="app", follower_id="reader")
            found: list[pb.Chunk] = []
            try:
                async with client.stream(start, 0, observer=True) as stream:
                    while not found or found[-1].behind_bytes:
                        message = await stream.read()
                        if message.WhichOneof("kind") == "chunk":
                            found.append(message.chunk)
            finally:
                await client.close()
            return found

        found = asyncio.run(chunks())
        left = [chunk.behind_bytes for chunk in found]
        assert left == sorted(left, reverse=True)
        assert left[0] > 300_000
        assert left[-1] == 0
        assert found[-1].position_txid == end.txid
        ended = [chunk for chunk in found if chunk.ends]
        for chunk, later in pairwise(ended):
            between = sum(len(one.data) for one in found[found.index(chunk) + 1 : found.index(later) + 1])
            assert 0 <= chunk.behind_bytes - later.behind_bytes - between < 1000  # the log has some bytes of its own


def test_a_follower_without_a_replica_says_why(tmp_path: Path) -> None:
    replica = tmp_path / "app.db"
    with nodes.follower(replica, "127.0.0.1:1", wait=False) as node:
        node.wait_event("trying again")
        shown = checked(local_status(replica))
        [database] = shown["databases"]
        assert (shown["role"], shown["state"]) == ("follower", "bootstrapping")
        assert database["since"]
        assert "127.0.0.1:1" in database["troubles"][0]["text"]
        assert database["troubles"][0]["kind"] == "no-replica"


def test_a_primary_that_waits_for_its_app_says_so(tmp_path: Path) -> None:
    with nodes.primary(tmp_path / "app.db", "--wait-for-db", "forever") as primary:
        shown = checked(status_of(primary.address, wire.Tls()))
        [database] = shown["databases"]
        assert (shown["role"], shown["state"], database["state"]) == ("primary", "waiting", "waiting")
        assert database["since"]
        assert [trouble["kind"] for trouble in database["troubles"]] == ["not-made"]
        create_database(tmp_path / "app.db")
        assert poll(lambda: checked(status_of(primary.address, wire.Tls()))["state"] == "serving")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DiskFull("/edge/app.db-wal"), FailureKind.NOT_APPLIED),
        (Exhausted("/edge/app.db", "Too many open files"), FailureKind.NOT_APPLIED),
        (Unavailable("10.0.0.1:7420: cannot be reached"), FailureKind.STALE),
        (None, FailureKind.STALE),
    ],
)
def test_a_follower_whose_own_disk_is_full_sends_nobody_to_the_primary(
    error: Unavailable | None, kind: FailureKind
) -> None:
    now = time.time_ns()
    for state in (State.DISCONNECTED, State.BOOTSTRAPPING):
        status = Status(state=state, position=Position(7, 1), level_ns=now, written_ns=now)
        said = stale_words(Path("/edge/app.db"), status, now, error)
        assert (str(error) in (said or "")) is (error is not None)
        following = SimpleNamespace(showing=SimpleNamespace(error=error), status=status)
        member = SimpleNamespace(following=following, awaits_app=asyncio.Event())
        without = FailureKind.NO_REPLICA if kind is FailureKind.STALE else kind
        assert missing_kind(member) is (kind if state is State.DISCONNECTED else without)  # type: ignore[arg-type]


def test_a_follower_never_calls_itself_the_primary_that_it_was_before_it_was_killed(tmp_path: Path) -> None:
    """Its own first status file replaces that of the killed primary only after the local socket answers."""
    db = tmp_path / "app.db"
    create_database(db)
    with closing(StateDir(db)) as state, closing(StatusWriter(state.path)) as writer:
        writer.write(Status(State.PRIMARY, term=1, written_ns=time.time_ns()))
        reply = pb.StatusReply(databases=[pb.DatabaseStatus(name="app", path=str(db), role="follower", term=2)])
        member = primary_facts(reply)["databases"][0]
        before = follower_status(db, member)
        writer.write(Status(State.STREAMING, term=2, written_ns=time.time_ns()))
        after = follower_status(db, member)
    assert replica_role(before) == ("follower", 2)
    assert replica_role(after) == ("follower", 2)
    assert after["state"] == "streaming"


def replica_role(facts: dict[str, Any]) -> tuple[str, int]:
    """Said of the node, and the same of its one database."""
    (database,) = facts["databases"]
    assert (database["role"], database["term"]) == (facts["role"], facts["term"])
    return str(facts["role"]), int(facts["term"])

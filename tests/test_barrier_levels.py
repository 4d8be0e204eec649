"""Barriers that wait for followers: what is applied there, and what is on their disks."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.nodes import PATIENCE_S, follower, poll, primary, wait_level, walcast
from support.replica_set import create_database
from support.writers import sql

from walcast import NotEnoughFollowers, Primary, Replica, wire
from walcast.discarded import list_discarded
from walcast.errors import Unavailable
from walcast.levels import Level
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.statedir import state_dir
from walcast_follower.apply.position_journal import RECORD_SIZE
from walcast_follower.following import NOT_APPLIED
from walcast_follower.in_thread import InThread
from walcast_follower.subscribe.acknowledger import Acknowledger
from walcast_follower.subscribe.primary_client import _check_resumed
from walcast_node.commands.status_table import table
from walcast_primary.publish.followers import NEVER, Follower, Followers

CHECKSUM = 1 << 63


def at(txid: int) -> Position:
    return Position(txid, CHECKSUM + txid)


# The follower's side


class Disk:
    """An applier whose syncs take as long as the test wants, and fail when it says so."""

    def __init__(self) -> None:
        self.position = at(5)
        self.durable = Position()
        self.syncs = 0
        self.fails = False
        self.may_end = threading.Event()
        self.may_end.set()

    def sync(self) -> Position:
        began_at = self.position
        self.syncs += 1
        assert self.may_end.wait(PATIENCE_S)
        if self.fails:
            raise Unavailable("the disk fails")
        self.durable = began_at
        return began_at


class Stream:
    """Takes acknowledgements."""

    def __init__(self) -> None:
        self.acks: list[pb.Ack] = []
        self.left = ""

    async def acknowledge(self, ack: pb.Ack) -> None:
        self.acks.append(ack)

    def leave(self, why: str) -> None:
        self.left = why


def acknowledging(work: Callable[[Acknowledger, Disk, Stream], Coroutine[Any, Any, None]], disk: Disk) -> Stream:
    stream = Stream()

    async def run() -> None:
        threads = InThread()
        acks = Acknowledger(stream, disk, threads)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(PATIENCE_S):
                await work(acks, disk, stream)
        finally:
            acks.close()
            disk.may_end.set()
            await threads.settled()

    asyncio.run(run())
    return stream


async def until(what: Callable[[], object]) -> None:
    while not what():
        await asyncio.sleep(0.001)


def test_a_follower_syncs_only_when_it_is_asked_to_and_says_how_far_with_every_acknowledgement() -> None:
    async def work(acks: Acknowledger, disk: Disk, stream: Stream) -> None:
        await acks.heartbeat(1, sync_requested=False)
        await acks.applied(0)
        assert disk.syncs == 0
        await acks.heartbeat(2, sync_requested=True)
        await until(lambda: stream.acks[-1].durable_txid == 5)
        disk.position = at(6)
        await acks.heartbeat(3, sync_requested=False)

    stream = acknowledging(work, Disk())
    assert (stream.acks[-1].received_txid, stream.acks[-1].applied_txid, stream.acks[-1].durable_txid) == (6, 6, 5)


def test_applying_goes_on_during_a_sync_and_all_that_is_asked_meanwhile_shares_one_more() -> None:
    async def work(acks: Acknowledger, disk: Disk, stream: Stream) -> None:
        disk.may_end.clear()
        await acks.heartbeat(1, sync_requested=True)
        await until(lambda: disk.syncs == 1)
        for txid in range(6, 26):
            disk.position = at(txid)
            await acks.heartbeat(txid, sync_requested=True)
            assert (stream.acks[-1].applied_txid, stream.acks[-1].durable_txid) == (txid, 0)
            await asyncio.sleep(0)
        assert disk.syncs == 1
        disk.may_end.set()
        await until(lambda: stream.acks[-1].durable_txid == 25)
        await acks.heartbeat(99, sync_requested=True)  # it is durable already
        assert stream.acks[-1].durable_txid == 25
        await until(lambda: acks._syncing is None)

    disk = Disk()
    acknowledging(work, disk)
    assert disk.syncs == 2


def test_a_sync_that_fails_is_not_acknowledged_and_the_next_request_tries_again() -> None:
    async def work(acks: Acknowledger, disk: Disk, stream: Stream) -> None:
        disk.fails = True
        for _ in range(3):
            tried = disk.syncs
            await until(lambda: acks._syncing is None)
            await acks.heartbeat(1, sync_requested=True)
            await until(lambda tried=tried: disk.syncs > tried)
        await until(lambda: acks._syncing is None)
        assert {ack.durable_txid for ack in stream.acks} == {0}
        disk.fails = False
        await acks.heartbeat(1, sync_requested=True)
        await until(lambda: stream.acks[-1].durable_txid == 5)

    acknowledging(work, Disk())


def test_what_was_durable_of_another_history_is_not_said_of_this_one() -> None:
    async def work(acks: Acknowledger, disk: Disk, stream: Stream) -> None:
        await acks.heartbeat(1, sync_requested=False)

    left, level = Disk(), Disk()
    left.durable = Position(4, CHECKSUM + 99)
    level.durable = level.position
    assert acknowledging(work, left).acks[-1].durable_txid == 0
    assert acknowledging(work, level).acks[-1].durable_txid == 5


# The primary's side


def test_a_follower_is_not_believed_more_than_can_be() -> None:
    one = Follower("one", "peer", member=True, sent_txid=10)
    one.acknowledged(1 << 63, 1 << 63, 1 << 63)
    assert (one.received_txid, one.applied_txid, one.durable_txid) == (10, 10, 10)
    two = Follower("two", "peer", member=True, sent_txid=10)
    two.acknowledged(5, 9, 9)
    assert (two.received_txid, two.applied_txid, two.durable_txid) == (5, 5, 5)
    two.acknowledged(8, 7, 1)
    assert (two.received_txid, two.applied_txid, two.durable_txid) == (8, 7, 5), "and never goes back"


def waiting(work: Callable[[Followers, Follower], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        followers, one = Followers(), Follower("one", "peer", member=True, sent_txid=100)
        one.acknowledged(100, 100)
        followers.add(one)
        async with asyncio.timeout(PATIENCE_S):
            await work(followers, one)

    asyncio.run(run())


def test_a_barrier_counts_a_follower_only_after_its_sync() -> None:
    async def work(followers: Followers, one: Follower) -> None:
        assert await followers.wait(100, 1, Level.APPLIED, PATIENCE_S) == 1
        assert await followers.wait(100, 1, Level.DURABLE, 0.01) == 0
        durable = asyncio.create_task(followers.wait(100, 1, Level.DURABLE, PATIENCE_S))
        await asyncio.sleep(0)
        one.acknowledged(100, 100, 99)
        followers.progressed()
        await asyncio.sleep(0)
        assert not durable.done()
        one.acknowledged(100, 100, 100)
        followers.progressed()
        assert await durable == 1

    waiting(work)


def test_followers_are_asked_to_sync_only_while_somebody_waits_for_it_and_behind_what_is_waited_for() -> None:
    async def work(followers: Followers, one: Follower) -> None:
        assert (one.ask_from_txid, followers.ask(one, 100)) == (NEVER, (False, False))
        applied = asyncio.create_task(followers.wait(101, 1, Level.APPLIED, PATIENCE_S))
        await asyncio.sleep(0)
        assert (one.ask_from_txid, followers.ask(one, 101)) == (101, (True, False))
        durable = asyncio.create_task(followers.wait(102, 1, Level.DURABLE, PATIENCE_S))
        await asyncio.sleep(0)
        assert followers.ask(one, 101) == (True, False), "102 is not sent yet"
        assert one.ask_from_txid == 102
        assert followers.ask(one, 102) == (True, True)
        assert one.ask_from_txid == NEVER
        assert followers.ask(one, 103) == (True, True), "again with each heartbeat, until it is there"
        again = Follower("one", "peer", member=True, sent_txid=103)
        followers.add(again)
        assert again.ask_from_txid == 101, "a stream that begins meanwhile is asked, too"
        followers.remove(one)
        again.acknowledged(103, 103)
        followers.progressed()
        assert await applied == 1
        assert followers.ask(again, 103) == (True, True)
        again.acknowledged(103, 103, 103)
        followers.progressed()
        assert await durable == 1
        assert followers.ask(again, 103) == (False, False)

    waiting(work)


def test_who_takes_over_has_it_on_disk_and_has_answered_since() -> None:
    async def work(followers: Followers, one: Follower) -> None:
        other = Follower("other", "peer", member=True, sent_txid=100)
        followers.add(other)
        one.acknowledged(100, 100, 100)
        taking = asyncio.create_task(followers.until_durable(one, 100))
        await asyncio.sleep(0)
        assert (one.ask_from_txid, other.ask_from_txid) == (100, NEVER)
        assert followers.ask(one, 100) == (True, False)
        followers.progressed()
        await asyncio.sleep(0)
        assert not taking.done()
        one.acknowledged(100, 100, 100, echo_us=1)
        followers.progressed()
        await taking
        later = asyncio.create_task(followers.until_durable(other, 100))
        await asyncio.sleep(0)
        assert followers.ask(other, 100) == (True, True)
        followers.remove(other)
        with pytest.raises(Unavailable, match="is gone"):
            await later

    waiting(work)


def test_another_level_is_refused_here() -> None:
    with pytest.raises(ValueError, match="no barrier level 'received': give 'durable' or 'applied'"):
        Primary("127.0.0.1:1").barrier(level="received")


# Real nodes


def status(address: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(walcast("status", address, "--json").stdout)
    [found] = facts["databases"][0]["followers"]
    return found  # type: ignore[no-any-return]


def test_a_follower_whose_disk_fails_counts_as_applied_only_until_the_disk_is_well(tmp_path: Path) -> None:
    db, copy, switch = tmp_path / "app.db", tmp_path / "edge" / "app.db", tmp_path / "fails"
    create_database(db)
    flags = ("--id", "edge-1", "--listen", "127.0.0.1:0")
    environment = {"UNSYNCABLE": str(switch)}
    with (
        primary(db) as node,
        follower(copy, node.address, *flags, script="unsyncable_follower.py", env=environment) as edge,
        sql(db) as app,
        Primary(node.address) as by_grpc,
    ):
        by_socket = Primary(db)
        app("INSERT INTO t VALUES (1)")
        token = by_socket.barrier(followers=1, timeout=20)
        edge_1 = status(node.address)
        assert edge_1["received_txid"] == edge_1["applied_txid"] == edge_1["durable_txid"] == token.txid
        switch.touch()
        app("INSERT INTO t VALUES (2)")
        token = by_socket.barrier(followers=1, timeout=20, level="applied")
        assert by_grpc.barrier(followers=1, timeout=20, level="applied") == token
        for asked in (by_socket, by_grpc):
            with pytest.raises(
                NotEnoughFollowers, match=r"0 of 1 followers have \S+ on disk .*level durable"
            ) as caught:
                asked.barrier(followers=1, timeout=0.2)
            assert (caught.value.applied, caught.value.wanted, caught.value.level) == (0, 1, Level.DURABLE)
            assert caught.value.token == token
        edge_1 = status(node.address)
        assert edge_1["durable_txid"] < edge_1["applied_txid"] == token.txid
        refused = walcast("switchover", node.address, "--to", "edge-1", "--timeout", "0.3")
        assert refused.returncode == 1, refused.stdout
        assert "on disk" in refused.stderr
        switch.unlink()
        app("INSERT INTO t VALUES (3)")
        assert by_socket.barrier(followers=1, timeout=20) > token
        assert edge.wait_event("synced again: everything was written anew")
        app("INSERT INTO t VALUES (4)")
        by_grpc.barrier(followers=1, timeout=20)
        assert by_socket.barrier(followers=1, timeout=20).txid == status(node.address)["durable_txid"]


def lose_names(copy: Path) -> None:
    """As a power failure does that comes before the journal's tail is on disk, and after the WAL's: one name stays."""
    positions = state_dir(copy) / "positions"
    assert positions.stat().st_size > RECORD_SIZE
    with positions.open("r+b") as file:
        file.truncate(RECORD_SIZE)


def test_a_state_that_lost_its_name_is_named_by_the_primary_and_not_taken_for_an_edit(tmp_path: Path) -> None:
    db, copy = tmp_path / "app.db", tmp_path / "edge" / "app.db"
    create_database(db)
    with primary(db) as node, sql(db) as app:
        with follower(copy, node.address) as edge:
            for x in range(5):
                app("INSERT INTO t VALUES (?)", x)
                wait_level(node.address, copy)
            edge.kill()
        lose_names(copy)
        for x in range(5):
            app("INSERT INTO t VALUES (?)", x)
        with follower(copy, node.address) as edge:
            position = wait_level(node.address, copy)
            assert edge.wait_event("the primary knows the replica's state")
            assert len(edge.events("copied from the primary")) == 1, "of the follower before it"
            assert Replica(copy).position() == position
        assert list_discarded(copy) == []


def test_of_a_state_that_nobody_knows_it_is_not_said_that_somebody_wrote(tmp_path: Path) -> None:
    db, copy = tmp_path / "app.db", tmp_path / "edge" / "app.db"
    create_database(db)
    with primary(db) as node, sql(db) as app:
        with follower(copy, node.address) as edge:
            app("INSERT INTO t VALUES (1)")
            wait_level(node.address, copy)
            edge.stop()
        with sql(copy) as mine:
            mine("INSERT INTO t VALUES (99)")
        with follower(copy, node.address) as edge:
            wait_level(node.address, copy)
            assert edge.wait_event("nobody knows the replica's state: mending it by its pages")
            [kept] = list_discarded(copy)
            facts = json.loads((kept.path / "summary.json").read_text())
            assert facts["why"] == NOT_APPLIED
            assert "or a power failure" in (kept.path / "summary.txt").read_text().replace("\n", " ")
    assert poll(lambda: Replica(copy).state() == "stopped")


@pytest.mark.parametrize(
    ("txid", "checksum", "term"), [(0, CHECKSUM, 1), (5, CHECKSUM + 1, 1), (11, CHECKSUM, 1), (5, CHECKSUM, 3)]
)
def test_a_primary_that_lies_about_the_name_of_a_state_is_not_believed(txid: int, checksum: int, term: int) -> None:
    address = wire.Address("127.0.0.1", 1)
    welcome = pb.Welcome(term=2, position=pb.Position(txid=10, checksum=CHECKSUM + 7))
    with pytest.raises(Unavailable):
        _check_resumed(address, welcome, CHECKSUM)
    welcome.resume_at.CopyFrom(pb.Position(txid=txid, checksum=checksum, term=term))
    with pytest.raises(Unavailable):
        _check_resumed(address, welcome, CHECKSUM)
    welcome.resume_at.CopyFrom(pb.Position(txid=5, checksum=CHECKSUM, term=2))
    _check_resumed(address, welcome, CHECKSUM)


def test_a_state_that_lost_its_name_can_be_promoted_when_the_primary_is_gone(tmp_path: Path) -> None:
    """What it has may be confirmed as durable, and nobody is left who knows its name."""
    db, copy = tmp_path / "app.db", tmp_path / "edge" / "app.db"
    create_database(db)
    with primary(db) as node, sql(db) as app:
        with follower(copy, node.address) as edge:
            for x in range(5):
                app("INSERT INTO t VALUES (?)", x)
                wait_level(node.address, copy)
            edge.kill()
        node.kill()
        lose_names(copy)
        with follower(copy, node.address, "--listen", "127.0.0.1:0", wait=False) as edge:
            assert edge.wait_event("the replica's state has no name here")
            refused = walcast("promote", copy)
            assert refused.returncode == 1
            assert "knows the state of this replica" in refused.stderr
            done = walcast("promote", copy, "--force", "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["term"] == 2
            with sql(copy) as mine:
                assert mine("SELECT count(*) FROM t") == [[6]]
                mine("INSERT INTO t VALUES (6)")
            assert Primary(copy).barrier().term == 2


def test_the_table_of_followers_fits_a_terminal_with_what_is_archived() -> None:
    one = {"id": "db5080da5400", "state": "catching-up", "applied_txid": 2097352, "durable_txid": 2097340}
    lag = {"transactions": 13, "bytes": 4096, "ms": 20.0}
    database = {"name": "app", "role": "primary", "state": "serving", "txid": 2097352, "wal_bytes": 4_000_000}
    database |= {"archive": {"txid": 2097339, "error": None, "lag": lag}, "troubles": []}
    database |= {"followers": [one | {"lag_txids": 0, "lag_ms": 0.8}]}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table({"role": "primary", "term": 3, "databases": [database]}))
    text = console.export_text()
    assert f"{2097339:016x}" in text, "archived"
    assert f"{2097352:016x} {2097340:016x}" in text, "applied, durable"

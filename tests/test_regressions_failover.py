"""Faults of failover that were found once: what was lost, and what left a set without a primary."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from support.archiving import CALM
from support.nodes import Node, poll
from support.replica_set import ReplicaSet, SetNode, create_database, replica_set
from support.writers import seen_from_outside, sql

from walcast import wire
from walcast.discarded import list_discarded, rebuild
from walcast.errors import ConfigError, Unavailable
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.rpc import replication_pb2_grpc as rpc
from walcast.statedir import StateDir, state_dir
from walcast.store import ObjectInfo
from walcast.store.directory import DirectoryStore
from walcast.terms import TermStart, first_txid, read_standing, write_standing
from walcast_follower.apply.applier import Applier
from walcast_follower.apply.position_journal import Journal
from walcast_follower.bootstrap.bootstrap import from_archive
from walcast_follower.following import Following
from walcast_follower.subscribe.primary_client import Client
from walcast_node.failover import role_changes
from walcast_node.failover import switchover as switching
from walcast_node.failover.leasing import Leasing
from walcast_primary.archiving.archiver import Archiver
from walcast_primary.database import Database
from walcast_primary.publish.followers import Follower, Offer
from walcast_primary.publish.gate import Gate
from walcast_primary.publish.publisher import Publisher
from walcast_primary.publish.served_database import Refused, Served
from walcast_primary.recovery.resume import State
from walcast_primary.tenure import Tenure

NOWHERE = wire.Address("127.0.0.1", 1)
SWITCHOVER_S = 30.0


# A deposed primary, in this process


@contextmanager
def archiving(database: Database, store: DirectoryStore, history: tuple[TermStart, ...] = ()) -> Iterator[None]:
    """Everything that is committed in the block is in the archive after it."""
    archiver = Archiver(database, store, CALM, history=history, interval_s=0.05)
    archiver.start()
    try:
        yield
        goal = database.loop.barrier().result(30.0).position.txid
        assert poll(lambda: archiver.txid >= goal)
    finally:
        archiver.stop()


@dataclass
class Deposed:
    """A primary of term 1 that has a row which nobody else has; the archive goes on from before it, in term 2."""

    path: Path
    store: DirectoryStore
    database: Database

    def following(self, store: DirectoryStore) -> Following:
        """It follows now, and no primary can be reached."""
        captured = self.database.loop.hold_writers().result(30.0)
        held = self.database.release()
        journal = Journal(held.state.path)
        journal.append(self.database.log.term, captured.position, 0)
        journal.close()
        client = Client(NOWHERE, wire.Tls(), database="app", follower_id="a")
        return Following(self.path, client, store=store, held=held)


@pytest.fixture
def deposed(tmp_path: Path) -> Deposed:
    store = DirectoryStore(tmp_path / "archive")
    path, other = tmp_path / "a" / "app.db", tmp_path / "b" / "app.db"
    for made in (path, other):
        made.parent.mkdir()
    create_database(path)
    old = Database(path, "app")
    old.start()
    with archiving(old, store), sql(path) as app:
        app("INSERT INTO t VALUES ('before')")
    fork = old.log.position
    with sql(path) as app:
        app("INSERT INTO t VALUES ('only here')")
    old.loop.barrier().result(30.0)
    state = StateDir(other)
    applier = Applier.open(other, state.path, from_archive(store, other, state.path))
    assert applier.position == fork
    at = State(applier.checksums, fork, applier.timestamp_ms)
    new = Database(other, "app", held=applier.release(state))
    new.start(at=at, term=2)
    new.loop.let_writers_go()
    with archiving(new, store, (TermStart(2, fork, first_txid(fork.txid)),)), sql(other) as app:
        app("INSERT INTO t VALUES ('of term 2')")
    new.stop()
    return Deposed(path, store, old)


@asynccontextmanager
async def running(following: Following) -> AsyncIterator[Following]:
    """It lives in the block."""
    task = asyncio.create_task(following.run())
    try:
        async with asyncio.timeout(30.0):
            while following.applier is None:
                await asyncio.sleep(0.005)
        yield following
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def member(following: Following) -> Any:
    """As much of one as a claim and a promotion look at."""
    settings = SimpleNamespace(priority=0)
    return SimpleNamespace(id="a", following=following, store=following._store, settings=settings)


def kept_rows(path: Path, base: bytes, scratch: Path) -> list[Any]:
    """What the newest folder of `discarded/` brings back over the file that was right after."""
    kept = list_discarded(path)
    assert kept, "nothing is kept"
    scratch.mkdir()
    (scratch / "base.db").write_bytes(base)
    rebuild(max(kept, key=lambda found: found.kept_at_ms).path, scratch / "base.db", scratch / "rebuilt.db")
    return rows_of(scratch / "rebuilt.db")


def rows_of(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return [a for (a,) in db.execute("SELECT a FROM t ORDER BY rowid")]


@pytest.mark.parametrize("by", ["claim", "promotion"])
def test_what_only_a_deposed_node_had_is_kept_before_the_archive_overwrites_it(
    deposed: Deposed, tmp_path: Path, by: str
) -> None:
    """It was told of no fork: no primary was there to say so."""

    async def claim() -> None:
        async with running(deposed.following(deposed.store)) as following:
            assert (await Leasing(member(following))._claim("nonce")).term == 2

    async def promotion() -> None:
        async with running(deposed.following(deposed.store)) as following:
            applier = await following.release()
            assert applier is not None
            await role_changes._catch_up(member(following), following, applier)
            assert applier.term == 2
            applier.close()
            following.state.close()

    asyncio.run(claim() if by == "claim" else promotion())
    with closing(sqlite3.connect(deposed.path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert rows_of(deposed.path) == [0, "before", "of term 2"]
    assert kept_rows(deposed.path, deposed.path.read_bytes(), tmp_path / "kept") == [0, "before", "only here"]


class Hanging(DirectoryStore):
    """Answers once it is let; knows how many threads ask at a time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go = threading.Event()
        self.asking = self.most = 0
        self._lock = threading.Lock()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._lock:
            self.asking += 1
            self.most = max(self.most, self.asking)
        assert self.go.wait(30.0)
        with self._lock:
            self.asking -= 1
        return super().list(prefix)


def test_nobody_has_the_applier_while_a_claim_that_was_given_up_still_uses_it(deposed: Deposed) -> None:
    store = Hanging(deposed.store.root)

    async def steps() -> None:
        async with running(deposed.following(store)) as following:
            for _ in range(3):  # each as the keeper does it, which gives up when a lease's time is over
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await Leasing(member(following))._claim("nonce")
            assert store.asking == store.most == 1
            releasing = asyncio.create_task(following.release())
            await asyncio.wait([releasing], timeout=0.3)
            assert not releasing.done(), "given away under a thread"
            store.go.set()
            applier = await asyncio.wait_for(releasing, 30.0)
            assert applier is not None
            assert (store.asking, applier.term) == (0, 2)  # what was begun came to its end
            applier.close()
            following.state.close()

    try:
        asyncio.run(steps())
    finally:
        store.go.set()


# The stream of an offer


class Log:
    """As much of a log as a stream without transactions looks at."""

    position = Position(5, 7)
    term = 1

    def listen(self, _: Callable[[], None]) -> None:
        pass


def test_a_heartbeat_that_falls_due_while_the_place_is_offered_does_not_break_the_stream() -> None:
    async def run() -> list[str | None]:
        database: Any = SimpleNamespace(log=Log(), tenure=Tenure(), loop=SimpleNamespace(failure=None), name="app")
        served = Served(database)
        served.heartbeat_s = 0.02
        follower = Follower("b", "peer", sent_txid=5)
        follower.acknowledged(5, 5)
        offer = follower.offer = Offer(asyncio.get_running_loop().create_future())
        database.tenure.end("handed over to b")
        offer.message = pb.HandOver(term=2)
        sent: list[str | None] = []
        gate = Gate(listening=lambda: NOWHERE)

        async def send() -> None:
            async for message in Publisher({"app": served}, None, gate)._send_from(served, follower, 5, 0):
                sent.append(message.WhichOneof("kind"))

        sending = asyncio.create_task(send())
        await asyncio.wait([sending], timeout=0.2)  # for what should not happen
        assert not sending.done(), sending.exception()
        offer.taken.set_result(pb.HandOverReply(term=2, taken=True))
        served.wake()
        with pytest.raises(Refused, match="handed over to b"):
            await asyncio.wait_for(sending, 5.0)
        return sent

    assert asyncio.run(run()) == ["hand_over"]


def test_of_a_tenure_that_is_over_a_moment_is_left_and_never_what_means_without_end() -> None:
    tenure = Tenure()
    assert tenure.left_ms == 0
    tenure.end("handed over")
    assert tenure.left_ms == 1
    tenure = Tenure()
    tenure.set(-1.0, 0.0)
    assert tenure.left_ms == 1


# Sets of real processes, each used by several tests


class Shared:
    """A set that tests use one after the other, made anew when it does not come together again."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.options = options
        self.stack = ExitStack()
        self.delays = directory / "delays"
        self.made = 0
        self.set: ReplicaSet | None = None

    def get(self) -> ReplicaSet:
        shutil.rmtree(self.delays, ignore_errors=True)
        self.delays.mkdir(parents=True)
        if self.set is not None:
            try:
                self.set.settle()
            except AssertionError:
                self.close()
        if self.set is None:
            self.made += 1
            options = {"script": "failover_regressions.py", "environment": {"DELAYS": str(self.delays)}} | self.options
            self.set = self.stack.enter_context(replica_set(self.directory / str(self.made), **options))
        return self.set

    def delay(self, moment: str, seconds: float) -> None:
        (self.delays / moment).write_text(str(seconds))

    def close(self) -> None:
        self.set = None
        self.stack.close()


@pytest.fixture(scope="module")
def with_lease(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    made = Shared(tmp_path_factory.mktemp("lease"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def without_lease(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    made = Shared(tmp_path_factory.mktemp("manual"), auto=False, archive=False, ids=("a", "b"))
    yield made
    made.close()


def switchover(old: SetNode, new: SetNode, *, timeout_ms: int = 5000, patience_s: float = SWITCHOVER_S) -> Any:
    """The call, by a client that goes away after `patience_s`: then None."""
    request = pb.SwitchoverRequest(to=new.id, timeout_ms=timeout_ms)
    with grpc.insecure_channel(old.address) as channel:
        try:
            return rpc.ReplicationStub(channel).Switchover(request, timeout=patience_s)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            return None


def step_down(node: SetNode, **facts: Any) -> pb.StepDownReply:
    with grpc.insecure_channel(node.address) as channel:
        return rpc.ReplicationStub(channel).StepDown(pb.StepDownRequest(**facts), timeout=10.0)


def test_a_client_that_goes_away_while_the_place_is_offered_leaves_a_primary(without_lease: Shared) -> None:
    it = without_lease.get()
    old, [new] = it.primary, it.followers
    without_lease.delay("offer", 2.0)
    assert switchover(old, new, patience_s=1.0) is None
    assert poll(lambda: it.find_primary() is new, 15.0)  # the change goes on without its client
    assert it.wait_level(15.0) is new
    new.app()("INSERT INTO t VALUES ('on')")
    assert old.app().error("INSERT INTO t VALUES ('late')") == "database is locked"


@pytest.mark.parametrize("given", [True, False])
def test_a_client_that_goes_away_while_the_lease_is_given_leaves_a_primary(with_lease: Shared, given: bool) -> None:
    it = with_lease.get()
    old, new = it.primary, it.followers[0]
    with_lease.delay("give", 0.4)
    if not given:
        with_lease.delay("keep", 0.0)
    assert switchover(old, new, patience_s=0.2) is None
    one = new if given else old
    app = one.app()
    assert poll(lambda: app.ask("INSERT INTO t VALUES ('on')")["error"] is None, 15.0, 0.02)
    assert it.wait_level() is one


@pytest.mark.slow
@pytest.mark.parametrize("lease", [True, False])
def test_whenever_the_client_goes_away_there_is_one_primary_that_takes_writes(
    with_lease: Shared, without_lease: Shared, lease: bool
) -> None:
    it = (with_lease if lease else without_lease).get()
    apps = {node.id: node.app() for node in it.nodes.values()}

    def writes(number: int) -> bool:
        # Asked again each time: the switchover may have gone on after its client, and the primary be another one now.
        primary = it.find_primary()
        return primary is not None and apps[primary.id].ask("INSERT INTO t VALUES (?)", number)["error"] is None

    for number in range(25):
        old = it.wait_level()
        switchover(old, it.followers[0], patience_s=0.004 * (number + 1))
        assert poll(lambda n=number: writes(n), 10.0)


def test_a_switchover_to_a_stopped_follower_of_an_idle_database_is_refused_and_writers_go_on(
    without_lease: Shared,
) -> None:
    """It has everything, and has said so long ago."""
    it = without_lease.get()
    old, [target] = it.wait_level(), it.followers
    term = old.term
    target.pause()
    reply = switchover(old, target, timeout_ms=300)
    assert "nothing happened" in reply.refusal.detail
    old.app()("INSERT INTO t VALUES ('on')")
    assert (old.role, old.term) == ("primary", term)
    target.resume()
    assert it.wait_level() is old


def test_a_primary_does_not_make_way_for_a_stranger(without_lease: Shared) -> None:
    """An address is another node's by now: the term that it is told of began on another database's history."""
    it = without_lease.get()
    node = it.wait_level()
    app, term = node.app(), node.term
    for number in range(3):
        app("INSERT INTO t VALUES (?)", number)
    txid = node.barrier().txid
    strange = wire.position_message(Position(txid - 1, 1 << 63 | 12345), term + 1)
    reply = step_down(node, term=term + 1, primary="127.0.0.1:1", position=strange)
    assert reply.refusal.kind == pb.REFUSAL_KIND_DIVERGED
    reply = step_down(node, term=term + 1, primary="nonsense")
    assert "nonsense" in reply.refusal.detail
    app("INSERT INTO t VALUES ('on')")
    assert (node.role, node.term) == ("primary", term)
    assert it.wait_level() is node


def test_what_an_app_wrote_to_a_replica_while_no_walcast_ran_is_kept_before_it_is_mended(
    without_lease: Shared, tmp_path: Path
) -> None:
    it = without_lease.get()
    primary, [replica] = it.wait_level(), it.followers
    before = len(replica.discarded())
    rows = rows_of(primary.db)
    replica.apps.close()
    assert replica.process.stop() == 0
    with closing(sqlite3.connect(replica.db, isolation_level=None)) as db:
        db.execute("INSERT INTO t VALUES ('written on the replica')")
    primary.app()("INSERT INTO t VALUES ('written on the primary')")
    replica.start(ready=False)
    it.wait_level()
    assert len(replica.discarded()) == before + 1
    assert replica.app()("SELECT a FROM t ORDER BY rowid DESC LIMIT 1") == [["written on the primary"]]
    replica.apps.close()
    assert replica.process.stop() == 0
    with closing(sqlite3.connect(replica.db)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    base = seen_from_outside(replica.db)
    assert kept_rows(replica.db, base, tmp_path / "kept") == [*rows, "written on the replica"]
    replica.start(ready=False)


def test_a_database_of_its_own_is_not_led_into_a_set_by_its_archive(with_lease: Shared, tmp_path: Path) -> None:
    """Whether it is to take part in failover or not: it would be made a copy of the set's."""
    it = with_lease.get()
    archive = str(it.directory / "shared")
    processes: list[tuple[Path, bytes, Node]] = []
    try:
        for name, flags in (("auto.db", ["--auto-failover"]), ("manual.db", [])):
            path = tmp_path / name
            create_database(path)
            arguments = ["primary", str(path), archive, "--listen", "127.0.0.1:0", *flags]
            processes.append((path, path.read_bytes(), Node(arguments, tmp_path, name).start()))
        for path, before, process in processes:
            assert process.wait(15.0) == 1
            [error] = [line for line in process.err.read_text().splitlines() if " level=info " not in line]
            assert error.startswith(f"error: {path}: ")
            assert "has a primary already" in error
            assert path.read_bytes() == before
            assert not state_dir(path).exists()
    finally:
        for _, _, process in processes:
            process.end()


def test_a_target_that_finds_the_lease_before_it_is_offered_the_place_has_taken_it(with_lease: Shared) -> None:
    it = with_lease.get()
    old, new = it.wait_level(), it.followers[0]
    term = old.term
    with_lease.delay("offer", 9.0)
    reply = switchover(old, new)
    assert not reply.HasField("refusal"), reply.refusal.detail
    assert (reply.term, reply.primary) == (term + 1, new.gate)
    assert it.wait_level() is new


def descriptors(node: SetNode) -> list[str]:
    found = []
    for entry in Path(f"/proc/{node.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return found


def test_descriptors_do_not_grow_over_ten_switchovers(with_lease: Shared) -> None:
    it = with_lease.get()
    one, two = it.wait_level(), it.followers[0]

    def there_and_back(times: int) -> None:
        for _ in range(times):
            for old, new in ((one, two), (two, one)):
                assert poll(lambda old=old, new=new: new.streams_from(old), 20.0, 0.02)
                reply = switchover(old, new)
                assert not reply.HasField("refusal"), reply.refusal.detail
                with sql(new.db) as app:
                    app("INSERT INTO t VALUES (1)")
        it.wait_level()

    there_and_back(1)  # each has been all that it is going to be
    before = {node.id: Counter(descriptors(node)) for node in it.nodes.values()}
    there_and_back(5)
    for node in it.nodes.values():
        most = before[node.id].total() + 3  # a call may be under way; what is let go of may not be gone yet
        fell = poll(lambda node=node, most=most: len(descriptors(node)) <= most, 5.0, 0.1)
        assert fell, (node.id, Counter(descriptors(node)) - before[node.id])


def archived(node: SetNode) -> bool:
    """Until the archive has everything that is committed now."""
    txid = node.barrier().txid
    return bool(poll(lambda: node.facts()["archive"]["txid"] >= txid))


@pytest.mark.slow
def test_a_deposed_primary_that_takes_over_again_keeps_what_only_it_had(tmp_path: Path) -> None:
    """The one that was the primary meanwhile archived, and died before it could say where the histories part."""
    with replica_set(tmp_path / "set", ids=("a", "b")) as it:
        a, b = it.nodes.values()
        a.app()("INSERT INTO t VALUES ('before')")
        it.wait_level()
        assert archived(a)
        a.cut(b)
        a.lose_store()
        a.app()("INSERT INTO t VALUES ('only a')")
        assert it.wait_primary(other_than="a") is b
        b.app()("INSERT INTO t VALUES ('b')")
        assert archived(b)
        b.kill()
        a.find_store()
        assert a.is_("primary", 30.0)
        assert a.app()("SELECT a FROM t ORDER BY rowid") == [[0], ["before"], ["b"]]
        assert len(a.discarded()) == 1
        it.gates.heal(drop=True)
        b.start(ready=False)
        assert it.wait_level() is a


@pytest.mark.slow
def test_a_node_that_starts_with_the_lease_in_its_name_reads_its_replica_first(tmp_path: Path) -> None:
    """It was given the lease, and lost its power before it could take the place."""
    slow = {"PLANTED_BUG": "slow-open"}
    with replica_set(tmp_path, ids=("a", "b"), lease_s=5.0, script="failover_planted.py", environment=slow) as it:
        a, b = it.node("a"), it.node("b")
        before = read_standing(state_dir(b.db))
        assert before is not None
        b.promote()
        assert it.wait_primary(other_than="a") is b
        a.kill()
        b.kill()
        shutil.rmtree(state_dir(b.db) / "log")
        write_standing(state_dir(b.db), before)
        b.start(ready=False)
        assert b.is_("primary", 20.0), b.process.err.read_text()[-1000:]


def test_promote_waits_for_a_promotion_of_its_own_and_for_no_replica_that_cannot_come(tmp_path: Path) -> None:
    create_database(tmp_path / "app.db")
    following = SimpleNamespace(applier=None)
    member: Any = SimpleNamespace(path=tmp_path / "app.db", serving=None, following=following, tenure=Tenure())

    async def end(what: str) -> Any:
        waiting = asyncio.create_task(switching._replica(member))
        await asyncio.sleep(0)
        assert not waiting.done()
        setattr(member if what == "serving" else following, what, object())
        return await asyncio.wait_for(waiting, 5.0)

    assert asyncio.run(end("applier")) is following
    following.applier = None
    with pytest.raises(ConfigError, match="this node is the primary"):
        asyncio.run(end("serving"))
    member.serving, member.path = None, tmp_path / "none.db"
    with pytest.raises(Unavailable):
        asyncio.run(switching._replica(member))

"""Nothing that runs out for a moment ends a node, or one of its loops: memory, threads, descriptors, room."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import re
import resource
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import apsw
import pytest
from support.nodes import Node as ProcessNode
from support.nodes import follower, poll, primary
from support.replica_set import SetNode, create_database, replica_set
from support.writers import sql

from walcast import dbfiles, lasting
from walcast import turns as turns_module
from walcast.dbfiles import DatabaseFiles, PageReader
from walcast.errors import DiskFull, Exhausted, Unavailable, WalcastError
from walcast.lasting import outlast, outlast_in_thread
from walcast.scrub import is_of_the_file
from walcast.shortage import shortage
from walcast.store.directory import DirectoryStore
from walcast.turns import Turns
from walcast_node.commands.status_facts import local_status
from walcast_node.failover import keeper as keeper_module
from walcast_node.failover.decisions import start
from walcast_node.failover.keeper import Keeper
from walcast_node.failover.lease import KEY, Lease
from walcast_node.failover.state import Node, Role, State
from walcast_node.process.thread_pool import Threads
from walcast_primary.capture.anchor import Anchor, connect
from walcast_primary.recovery.damage import Checked, quick_check

PASSING = (
    MemoryError(),
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    RuntimeError("can't start new thread"),
    DiskFull("/x"),
    Exhausted("/x", "out of memory"),
)
OTHERS = (OSError(errno.EIO, "broken"), RuntimeError("a bug"), Unavailable("away"), ValueError("a bug"))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "AGAIN_S", 0.0)
    monkeypatch.setattr(turns_module, "AGAIN_S", 0.0)
    monkeypatch.setattr(keeper_module, "AGAIN_S", 0.01)


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def work() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return work


async def awaited(work: Callable[[], str]) -> str:
    return work()


def test_work_is_begun_again_when_something_ran_out() -> None:
    work = failing(*PASSING)
    assert asyncio.run(outlast(lambda: awaited(work), "/x", "the test")) == "done"
    assert outlast_in_thread(failing(*PASSING), "/x", "the test") == "done"


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_whatever_else_goes_wrong_is_the_callers(error: Exception) -> None:
    with pytest.raises(type(error)):
        asyncio.run(outlast(lambda: awaited(failing(error)), "/x", "the test"))
    with pytest.raises(type(error)):
        outlast_in_thread(failing(error), "/x", "the test")


def test_the_thread_that_scrubs_outlasts_a_piece_without_memory() -> None:
    class Piece:
        steps = 0

        def step(self) -> float:
            self.steps += 1
            if self.steps == 1:
                raise MemoryError
            return 0.0

    turns, piece = Turns(), Piece()
    turns.add(piece, 0.0)
    assert asyncio.run(_reached(lambda: piece.steps > 1))
    turns.remove(piece)


async def _reached(what: Callable[[], object]) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(10.0):
            while not what():
                await asyncio.sleep(0.01)
    return bool(what())


def lacking(monkeypatch: pytest.MonkeyPatch, chance: random.Random, owner: Any, name: str) -> None:
    work = getattr(owner, name)

    def planted(*arguments: Any, **more: Any) -> Any:
        if chance.random() < 0.3:
            raise MemoryError
        return work(*arguments, **more)

    monkeypatch.setattr(owner, name, planted)


@pytest.mark.parametrize("seed", range(5))
def test_a_keeper_gets_and_keeps_its_lease_while_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    store = DirectoryStore(tmp_path)
    told: list[State] = []
    keeper = Keeper(
        store,
        start(Node("me", "me:1", "run", 0.5, auto=True), term=3, primary=True, first=True),
        act=lambda action: None,
        changed=lambda state: told.append(state),
        claim=lambda nonce: pytest.fail("claims"),
    )
    for owner, name in [
        (keeper_module, "step"),
        (keeper_module, "now_s"),
        (keeper, "_changed"),
        (keeper, "_act"),
        (keeper, "_begin"),
        (keeper, "_read"),
        (keeper, "_record"),
        (keeper, "_failed"),
    ]:
        lacking(monkeypatch, chance, owner, name)

    async def run() -> None:
        running = asyncio.create_task(keeper.run())
        assert await _reached(lambda: keeper.state.role is Role.PRIMARY or running.done())
        found = store.read(KEY)
        assert found is not None
        nonce = Lease.decode(found.data).nonce
        assert await _reached(lambda: running.done() or Lease.decode(store.read(KEY).data).nonce != nonce)  # type: ignore[union-attr]
        assert not running.done(), running.exception()
        assert await _reached(lambda: told[-1] is keeper.state)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    asyncio.run(run())


def test_all_threads_of_a_pool_are_there_before_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with Threads(4) as threads:
        threads.start_all()
        assert len(threads._threads) == 4
        monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("another thread"))
        assert list(threads.map(abs, range(-9, 0))) == list(range(9, 0, -1))


def sqlites(code: int) -> apsw.Error:
    return apsw.exception_for(code)  # type: ignore[return-value]


NO_MEMORY = (apsw.SQLITE_NOMEM, apsw.SQLITE_IOERR_NOMEM, apsw.SQLITE_IOERR_MMAP, apsw.SQLITE_IOERR_SHMMAP)
OF_THE_FILE = (apsw.SQLITE_CORRUPT, apsw.SQLITE_NOTADB, apsw.SQLITE_IOERR_READ, apsw.SQLITE_IOERR_SHORT_READ)


@pytest.mark.parametrize("code", NO_MEMORY)
def test_that_sqlite_has_no_memory_is_no_damage_of_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Damage is for good: a primary that is damaged ends, and is not started again before it is restored."""
    error = sqlites(code)
    assert isinstance(shortage(error, tmp_path), Exhausted)
    assert not is_of_the_file(error)
    for where in ("apsw.Connection", "walcast_primary.recovery.damage.prepare"):
        with monkeypatch.context() as patch:
            patch.setattr(where, lambda *_, **__: (_ for _ in ()).throw(error))
            assert quick_check(tmp_path / "app.db") == Checked("", whole=False)


@pytest.mark.parametrize("code", OF_THE_FILE)
def test_what_sqlite_says_of_the_file_is(code: int) -> None:
    assert shortage(sqlites(code), "/x") is None
    assert is_of_the_file(sqlites(code))


def test_readers_and_anchors_go_on_after_a_read_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite rolls back by itself then, or does not."""
    path = tmp_path / "app.db"
    create_database(path)
    with closing(connect(path)) as connection, closing(DatabaseFiles(path)) as files, closing(Anchor(path)) as anchor:
        with monkeypatch.context() as patch:
            patch.setattr(dbfiles, "begin_reading", lambda _: (_ for _ in ()).throw(sqlites(apsw.SQLITE_IOERR_SHMMAP)))
            with pytest.raises(apsw.IOError), PageReader(files, connection):
                pass
        with PageReader(files, connection) as reader:
            assert reader.header.commit_pages

        def lacking() -> None:
            anchor._free.execute("ROLLBACK")
            raise MemoryError

        with pytest.raises(MemoryError):
            anchor.move(lacking)
        anchor._held.execute("ROLLBACK")
        anchor.move(lambda: None)


def promoted(node: SetNode) -> bool:
    """What an operator does who is told that it did not work."""
    with suppress(Unavailable):
        node.promote()
    return node.role == "primary"


def limit_memory(node: ProcessNode, more_bytes: int | None) -> None:
    """So much more than it has now; None: as it likes."""
    if more_bytes is None:
        resource.prlimit(node.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return
    [has] = re.findall(r"VmSize:\s+(\d+)", Path(f"/proc/{node.pid}/status").read_text())
    resource.prlimit(node.pid, resource.RLIMIT_AS, ((int(has) << 10) + more_bytes, resource.RLIM_INFINITY))


@pytest.mark.slow
@pytest.mark.parametrize("more_bytes", [0, 512 << 10, 2 << 20])
def test_nodes_that_get_no_memory_for_a_while_go_on_when_they_do(tmp_path: Path, more_bytes: int) -> None:
    path, replica = tmp_path / "app.db", tmp_path / "edge" / "app.db"
    create_database(path)
    flags = ("--auto-failover", "--lease-time", "3")
    with (
        primary(path, tmp_path / "archive", *flags, "--id", "a") as one,
        follower(
            replica, one.address, "--archive", tmp_path / "archive", *flags, "--id", "b", "--listen", "127.0.0.1:0"
        ) as other,
        sql(path, 10.0) as app,
    ):
        for node in (one, other):
            limit_memory(node, more_bytes)
        until_s = time.monotonic() + 8.0
        while time.monotonic() < until_s:
            with suppress(Exception):  # fenced, perhaps
                app("INSERT INTO t VALUES (randomblob(8000000))")
        for node in (one, other):
            assert node.running, node.err.read_text()[-3000:]
            limit_memory(node, None)

        assert poll(lambda: are_level(path, replica), 90.0, 0.5)


def are_level(*databases: Path) -> bool:
    """Is one the primary, and are all where it is?"""
    with suppress(WalcastError):
        told = [local_status(database) for database in databases]
        found = [one["databases"][0] if "databases" in one else one for one in told]
        return len({one["position"] for one in found}) == 1 and "primary" in [one["role"] for one in found]
    return False


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_no_node_of_a_set_ends_while_memory_runs_out_in_every_loop(tmp_path: Path, seed: str) -> None:
    planted = {"PLANTED_BUG": "memory", "PLANTED_SEED": seed}
    with replica_set(tmp_path, ids=("a", "b"), script="failover_planted.py", environment=planted) as it:
        a, b = it.node("a"), it.node("b")
        it.wait_level(60.0)
        a.app()("INSERT INTO t VALUES ('before')")
        assert it.wait_level(60.0) is a
        assert poll(lambda: promoted(b), 60.0, 0.5)
        assert it.wait_primary(other_than="a", seconds=60.0) is b
        it.wait_level(60.0)
        b.app()("INSERT INTO t VALUES ('after')")
        assert it.wait_level(60.0) is b
        assert a.process.running
        assert b.process.running

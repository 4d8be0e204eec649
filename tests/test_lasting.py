"""Nothing that runs out for a moment ends a node, or one of its loops: memory, threads, descriptors, room."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.nodes import poll
from support.replica_set import SetNode, replica_set

from node.failover import keeper as keeper_module
from node.failover.decisions import start
from node.failover.keeper import Keeper
from node.failover.lease import KEY, Lease
from node.failover.state import Node, Role, State
from walcast import lasting
from walcast import turns as turns_module
from walcast.errors import DiskFull, Exhausted, Unavailable
from walcast.lasting import outlast, outlast_in_thread
from walcast.store.directory import DirectoryStore
from walcast.turns import Turns

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


def promoted(node: SetNode) -> bool:
    """What an operator does who is told that it did not work."""
    with suppress(Unavailable):
        node.promote()
    return node.role == "primary"


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

"""A follower that has writers held, by asking for the primary's place, must have confirmed first that it has everything
on disk, and since it was asked: one that never confirms costs no writer anything."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.e2e_oracle import Served, served
from support.e2e_state import create

from walcast.rpc import replication_pb2 as pb
from walcast_node.failover.switchover import hand_over
from walcast_primary.publish.followers import Follower
from walcast_primary.publish.served_database import Refused
from walcast_primary.publish.served_database import Served as ServedDatabase
from walcast_primary.tenure import Tenure

SHORT_MS = 200
ENOUGH_S = 20.0

Play = Callable[["Stage"], Awaitable[None]]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "app.db"
    create(path)
    with served(path) as made:
        yield made


class Stage:
    """A primary whose writers can be held, and one follower of it, whose acknowledgements a play makes."""

    def __init__(self, app: Served) -> None:
        self.path = app.path
        self.served = ServedDatabase(app.database)
        self.holds: list[bool] = []  # was the follower confirmed when writers were held
        self.confirmed = False
        self.follower = Follower("f", "ipv4:10.0.0.9:1", address="10.0.0.9:7420", member=True, candidate=True)
        self.follower.sent(self.txid, 0)
        self.served.followers.add(self.follower)
        self._hold = app.database.loop.hold_writers
        self.loop = app.database.loop

    @property
    def txid(self) -> int:
        """The newest."""
        return self.served.log.position.txid

    def hold(self) -> Any:
        self.holds.append(self.confirmed)
        return self._hold()

    def acknowledge(self, *, durable: int = 0, applied: int = 0, reply: bool = True) -> None:
        """So far behind the newest."""
        self.follower.acknowledged(self.txid, self.txid - applied, self.txid - durable, echo_us=int(reply))
        self.confirmed = reply and not durable and not applied
        self.served.followers.progressed()

    async def asked(self) -> None:
        """Until the follower is asked how far it is."""
        async with asyncio.timeout(ENOUGH_S):
            while not self.served.followers.ask(self.follower, self.txid)[0]:
                await asyncio.sleep(0.001)

    def can_write(self) -> bool:
        with closing(sqlite3.connect(self.path, timeout=0.5)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            db.rollback()
            return True


def refused(app: Served, monkeypatch: pytest.MonkeyPatch, play: Play, timeout_ms: int = SHORT_MS) -> Stage:
    """A switchover that comes to nothing."""

    async def run() -> Stage:
        stage = Stage(app)
        monkeypatch.setattr(stage.loop, "hold_writers", stage.hold)
        member: Any = SimpleNamespace(
            changing=asyncio.Lock(),
            serving=SimpleNamespace(served=stage.served, database=app.database),
            tenure=Tenure(),
        )
        playing = asyncio.create_task(play(stage))
        with pytest.raises(Refused):
            async with asyncio.timeout(ENOUGH_S):
                await hand_over(member, pb.SwitchoverRequest(database="app", to="f", timeout_ms=timeout_ms))
        playing.cancel()
        assert await asyncio.to_thread(stage.can_write)
        return stage

    return asyncio.run(run())


async def silent(stage: Stage) -> None:
    """Says nothing."""


async def early(stage: Stage) -> None:
    """Had everything before it was asked, and does not run any more."""
    stage.acknowledge()
    stage.confirmed = False


async def without_reply(stage: Stage) -> None:
    """Acknowledges what it has, and answers no heartbeat."""
    await stage.asked()
    stage.acknowledge(reply=False)


async def one_behind(stage: Stage) -> None:
    """Has all but the last transaction on disk."""
    await stage.asked()
    stage.acknowledge(durable=1)


async def applied_alone(stage: Stage) -> None:
    """Shows everything to its readers, and has nothing of it on disk."""
    await stage.asked()
    stage.acknowledge(durable=stage.txid)


async def gone(stage: Stage) -> None:
    """Hangs up when it is asked."""
    await stage.asked()
    stage.served.followers.remove(stage.follower)


@pytest.mark.parametrize("play", [silent, early, without_reply, one_behind, applied_alone, gone])
def test_no_writer_is_held_for_a_follower_that_does_not_confirm(
    app: Served, monkeypatch: pytest.MonkeyPatch, play: Play
) -> None:
    assert refused(app, monkeypatch, play).holds == []


def test_writers_are_held_once_it_has_confirmed_and_go_on_when_it_then_says_nothing(
    app: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def once(stage: Stage) -> None:
        await stage.asked()
        stage.acknowledge()

    assert refused(app, monkeypatch, once, 1000).holds == [True]


def test_a_confirmation_of_another_stream_of_that_name_is_not_its(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def another(stage: Stage) -> None:
        await stage.asked()
        twin = Follower("f", "ipv4:10.0.0.8:1", address="10.0.0.8:7420", member=True)
        twin.sent(stage.txid, 0)
        stage.served.followers.add(twin)
        twin.acknowledged(stage.txid, stage.txid, stage.txid, echo_us=1)
        stage.served.followers.progressed()

    assert refused(app, monkeypatch, another).holds == []

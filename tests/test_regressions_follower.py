"""Faults of the follower that were found once: what must not end it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import apsw
import pytest
from support.apply_replica import replica_of, scan
from support.apply_source import Source

from walcast import ltx, wire
from walcast.errors import Unavailable
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.statedir import state_dir
from walcast_follower import following as following_module
from walcast_follower.apply import wal_truncation
from walcast_follower.apply.applier import Applier
from walcast_follower.apply.wal_truncation import WalKeeper
from walcast_follower.bootstrap.new_replica import put_in_place
from walcast_follower.following import Following
from walcast_follower.subscribe.receiver import PAGES_AT_ONCE

CHUNK_BYTES = 64 << 10
PATIENCE_S = 15.0


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    yield made
    made.db.close()


# A primary in this process, over no network


def encoded(source: Source) -> list[tuple[Position, bytes]]:
    """Every transaction of the source as an LTX file, with the position it continues."""
    before = [source.first_position, *(transaction.position for transaction in source.transactions)]
    files = []
    for (old, new), transaction in zip(pairwise(before), source.transactions, strict=True):
        newest = dict(zip(transaction.pgnos, transaction.pages, strict=True))
        header = ltx.Header(
            page_size=source.page_size,
            commit_pages=transaction.commit_pages,
            min_txid=new.txid,
            max_txid=new.txid,
            timestamp_ms=1,
            pre_checksum=old.checksum,
            term=1,
        )
        data = bytearray()
        encoder = ltx.Encoder(header, data.extend)
        for pgno in sorted(newest):
            if pgno <= transaction.commit_pages:
                encoder.add(pgno, newest[pgno])
        encoder.finish(new.checksum)
        files.append((old, bytes(data)))
    return files


class FakeStream:
    """Sends what is left from a position, in chunks, then breaks after `most` of them or is silent."""

    def __init__(self, files: list[tuple[Position, bytes]], start: Position, newest: Position, most: int) -> None:
        self.welcome = pb.Welcome(position=wire.position_message(newest, 1))
        self.began_s = 0.0
        self._messages = self._chunks([data for old, data in files if old.txid >= start.txid], newest.txid)
        self._left = most

    def _chunks(self, files: list[bytes], newest: int) -> Iterator[pb.PrimaryMessage]:
        for data in files:
            for start in range(0, len(data), CHUNK_BYTES):
                piece = data[start : start + CHUNK_BYTES]
                ends = [len(piece)] if start + len(piece) == len(data) else []
                yield pb.PrimaryMessage(chunk=pb.Chunk(data=piece, ends=ends, position_txid=newest))

    async def read(self) -> pb.PrimaryMessage:
        if self._left == 0:
            raise Unavailable("the primary was killed")
        self._left -= 1
        message = next(self._messages, None)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        return message

    async def acknowledge(self, ack: pb.Ack) -> None:
        pass


class FakeClient:
    """The streams that a follower asks for; each breaks after the next of `breaks` chunks, the last one never."""

    primary = wire.Address("primary.example", 1)
    database = "app"
    follower_id = "f1"
    is_outdated = False

    def __init__(self, source: Source, breaks: list[int]) -> None:
        self._files = encoded(source)
        self._newest = source.transactions[-1].position
        self._breaks = iter(breaks)
        self.asked: list[Position] = []

    @asynccontextmanager
    async def stream(
        self, position: Position, term: int, *, observer: bool = False, **_: object
    ) -> AsyncIterator[FakeStream]:
        self.asked.append(position)
        yield FakeStream(self._files, position, self._newest, next(self._breaks, -1))


async def until(true: Callable[[], bool], task: asyncio.Task[None]) -> None:
    """Bounded; ends early with the task's error."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            if task.done():
                task.result()
            await asyncio.sleep(0.005)


async def follow(path: Path, client: Any, source: Source) -> None:
    """Until the replica is where the source is."""
    follower = Following(path, client)
    task = asyncio.create_task(follower.run())
    try:
        await until(lambda: follower.status.position == source.transactions[-1].position, task)
        assert follower._applier is not None
        assert scan(follower._applier) == source.transactions[-1].position.checksum
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def replica(source: Source, tmp_path: Path) -> Path:
    """A replica at the source's first position."""
    path = tmp_path / "replica" / "app.db"
    state = state_dir(path)
    temporary = source.copy_to(tmp_path / "copy.db")
    path.parent.mkdir()
    state.mkdir()
    put_in_place(temporary, path, state, 1, source.first_position)
    return path


def test_a_stream_that_breaks_inside_a_large_transaction_leaves_a_follower_that_goes_on(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "RETRY_FIRST_S", 0.01)
    path = replica(source, tmp_path)
    source.transfer()
    large = source.grow(600, 8000)
    source.transfer()
    assert len(set(large.pgnos)) > 2 * PAGES_AT_ONCE, "part of it is in the WAL when the stream breaks"
    client = FakeClient(source, [1, 2, 20, 0, 30])
    assert len(client._files[1][1]) > 30 * CHUNK_BYTES
    asyncio.run(follow(path, client, source))
    first, second = source.first_position, source.transactions[0].position
    assert client.asked == [first, second, second, second, second, second]


class LeftStream(FakeStream):
    """Was left while an acknowledgement was being written, as gRPC tells it."""

    async def acknowledge(self, ack: pb.Ack) -> None:
        raise asyncio.CancelledError


def test_a_stream_that_is_left_during_an_acknowledgement_does_not_end_the_follower(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended without a word: a task that is cancelled is nobody's failure."""
    monkeypatch.setattr(following_module, "RETRY_FIRST_S", 0.01)
    path = replica(source, tmp_path)
    for _ in range(3):
        source.transfer()

    class Client(FakeClient):
        @asynccontextmanager
        async def stream(
            self, position: Position, term: int, *, observer: bool = False, **_: object
        ) -> AsyncIterator[FakeStream]:
            self.asked.append(position)
            kind = LeftStream if len(self.asked) == 1 else FakeStream
            yield kind(self._files, position, self._newest, -1)

    client = Client(source, [])
    asyncio.run(follow(path, client, source))
    assert client.asked == [source.first_position, source.transactions[0].position]


# Checkpoints


class FailingConnection:
    """SQLite that cannot checkpoint, until it can."""

    def __init__(self, connection: apsw.Connection, error: Exception) -> None:
        self._connection = connection
        self._error = error
        self.failing = True
        self.tries = 0

    def wal_checkpoint(self, **arguments: int) -> tuple[int, int]:
        self.tries += 1
        if self.failing:
            raise self._error
        return self._connection.wal_checkpoint(**arguments)

    def close(self) -> None:
        self._connection.close()


ERRORS = [
    apsw.IOError("disk I/O error"),
    apsw.FullError("database or disk is full"),
    OSError(28, "No space left on device"),
]


def said(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.getMessage() == "the replica's WAL grows" for record in caplog.records)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_checkpoint_that_fails_is_said_once_and_tried_again(
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    monkeypatch.setattr(wal_truncation, "CHECKPOINT_FRAMES", 1)
    monkeypatch.setattr(wal_truncation, "HOLD_BYTES", 1)
    monkeypatch.setattr(wal_truncation, "HOLD_EVERY_S", 0.0)
    applier = replica_of(source, tmp_path)
    reads, checkpoints = applier._connections
    fake = FailingConnection(checkpoints, error)
    applier._connections = (reads, fake)  # type: ignore[assignment]

    async def keep(keeper: WalKeeper) -> None:
        for _ in range(3):
            source.transfer().apply(applier)
            keeper.checkpoint_when_due()
            await keeper.make_room()
        assert applier.backfilled_frames == 0
        assert said(caplog) == 1
        fake.failing = False
        await keeper.make_room()
        assert fake.tries == 7
        fake.failing = True
        source.transfer().apply(applier)
        keeper.checkpoint_when_due()
        await keeper.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(keep(WalKeeper(applier)))
    assert said(caplog) == 2, "a new failure is said anew"
    assert applier.position == source.transactions[-1].position
    fake.failing = False
    assert applier.checkpoint().complete
    applier.close()


def test_a_follower_whose_checkpoints_fail_goes_on_applying(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wal_truncation, "CHECKPOINT_FRAMES", 1)
    monkeypatch.setattr(wal_truncation, "HOLD_BYTES", 1)
    monkeypatch.setattr(wal_truncation, "HOLD_EVERY_S", 0.0)
    opened = Applier.open
    fakes: list[FailingConnection] = []

    def open_failing(*arguments: Any) -> Applier:
        applier = opened(*arguments)
        reads, checkpoints = applier._connections
        fakes.append(FailingConnection(checkpoints, ERRORS[0]))
        applier._connections = (reads, fakes[0])  # type: ignore[assignment]
        return applier

    monkeypatch.setattr(Applier, "open", open_failing)
    path = replica(source, tmp_path)
    for _ in range(20):
        source.grow()
    client = FakeClient(source, [])
    asyncio.run(follow(path, client, source))
    assert client.asked == [source.first_position]
    assert fakes[0].tries >= 2
    assert said(caplog) == 1

"""One large transaction over a line that breaks: the stream goes on inside it, across restarts, and where the log has
moved on its pages need not come again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.e2e_oracle import Served
from support.far_follower import ROW_BYTES, add, following, level, run, until
from support.slow_line import Line
from support.writers import checkpointed, sql
from test_resumed_copies import ROW_COUNT, create, primary

from walcast import ltx
from walcast.errors import Corrupt, ProtocolViolation
from walcast.position import Position
from walcast.rpc import replication_pb2 as pb
from walcast.statedir import state_dir
from walcast_follower.subscribe import partial_transaction
from walcast_follower.subscribe.message_checks import check_resumed_bytes
from walcast_follower.subscribe.partial_transaction import PartialTransaction
from walcast_primary.publish.resumed_transaction import resume_bytes

SIZE = ROW_COUNT * ROW_BYTES  # of the transaction
RATE = 3e6  # so that what is sent before the line breaks is read, too


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "home").mkdir()
    create(tmp_path / "home" / "app.db")
    with primary(tmp_path / "home" / "app.db") as made:
        yield made


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    return tmp_path / "edge" / "app.db"


def same(app: Served, replica: Path) -> None:
    app.stop()
    assert checkpointed(replica) == checkpointed(app.path)
    assert not list(state_dir(replica).glob("*.partial"))


async def broken_inside(app: Served, replica: Path, line: Line, times: int = 2) -> None:
    """A life of a follower that is level and ends inside the next transaction, which is large."""
    async with following(app, replica, line) as follower:
        await until(level(follower, app), 30)
        line.cut_after, line.passed_bytes, line.connections = SIZE // 5, 0, 1
        add(app.path, ROW_COUNT)
        await until(lambda: line.connections > times, 30)
    line.cut_after = None


def test_a_stream_goes_on_inside_a_transaction(app: Served, replica: Path) -> None:
    line = Line(rate=RATE)

    async def work() -> None:
        async with following(app, replica, line) as follower:
            await until(level(follower, app), 30)
            line.cut_after, line.passed_bytes = SIZE // 4, 0
            add(app.path, ROW_COUNT)
            await until(level(follower, app), 30)
            assert follower.applier is not None
        assert line.passed_bytes < 1.3 * SIZE

    run(work())
    same(app, replica)


def whole(partial: Path) -> None:
    assert partial.stat().st_size > 128 << 10


def torn(partial: Path) -> None:
    """By a power cut: one piece never reached the disk, and what is behind it is of no use."""
    with partial.open("r+b") as file:
        file.seek(partial.stat().st_size // 2)
        file.write(bytes(4096))


def gone(partial: Path) -> None:
    partial.unlink()


@pytest.mark.parametrize("fate", [whole, torn, gone])
def test_what_came_of_a_transaction_outlives_the_process(
    app: Served, replica: Path, fate: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_transaction, "SPILL_BYTES", 64 << 10)
    line = Line(rate=RATE)

    async def work() -> None:
        await broken_inside(app, replica, line, times=3)
        fate(state_dir(replica) / "transaction.partial")
        before = line.passed_bytes
        async with following(app, replica, line) as follower:
            await until(level(follower, app), 30)
        if fate is whole:
            assert line.passed_bytes - before < 0.9 * SIZE

    run(work())
    same(app, replica)


def test_where_the_log_has_moved_on_the_pages_of_a_transaction_need_not_come_again(app: Served, replica: Path) -> None:
    line = Line(rate=RATE)

    async def work() -> None:
        await broken_inside(app, replica, line, times=3)
        with sql(app.path) as one:
            for _ in range(16):
                one("UPDATE t SET x = randomblob(3000) WHERE rowid <= 12")
        position = app.position
        assert app.database.log.first.txid > 1
        before = line.passed_bytes
        async with following(app, replica, line) as follower:
            await until(lambda: follower.applier is not None and follower.applier.position == position, 30)
        assert line.passed_bytes - before < 0.8 * SIZE

    run(work())
    same(app, replica)


def test_an_older_primary_sends_the_transaction_from_its_beginning(
    app: Served, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walcast_primary.publish.publisher.resume_bytes", lambda *_: 0)
    line = Line(rate=RATE)

    async def work() -> None:
        await broken_inside(app, replica, line)
        async with following(app, replica, line) as follower:
            await until(level(follower, app), 30)

    run(work())
    same(app, replica)


def test_a_primary_goes_on_only_inside_the_very_transaction(app: Served) -> None:
    at = app.position
    add(app.path, 100)
    assert app.position != at
    entry = app.database.log.after(at.txid)
    assert entry is not None
    header = entry.read(0, ltx.HEADER_SIZE)

    def asked(header: bytes, count: int, position: Position = at) -> int:
        return resume_bytes(app.database.log, position, pb.Hello(partial_header=header, partial_bytes=count))

    assert asked(header, 5000) == 5000
    assert asked(header, entry.size - 1) == entry.size - 1
    other = bytearray(header)
    other[39] ^= 1  # of another time
    assert asked(bytes(other), 5000) == 0
    for count in (0, 99, entry.size, 1 << 63):
        assert asked(header, count) == 0
    assert asked(b"", 5000) == 0
    assert asked(header, 5000, app.position) == 0


def test_a_primary_that_goes_on_elsewhere_is_not_believed() -> None:
    check_resumed_bytes(pb.Welcome(resume_bytes=0), 500)
    check_resumed_bytes(pb.Welcome(resume_bytes=500), 500)
    for wrong in (1, 499, 501):
        with pytest.raises(ProtocolViolation):
            check_resumed_bytes(pb.Welcome(resume_bytes=wrong), 500)


def test_what_the_receiver_finds_wrong_is_forgotten(tmp_path: Path) -> None:
    """Else each stream would fail at the same byte."""
    begun = PartialTransaction(tmp_path)
    begun.took(bytes(2 << 20), [])
    assert begun.size == 2 << 20
    with pytest.raises(Corrupt), begun.of_use():
        raise Corrupt("a page does not decompress")
    assert begun.size == 0
    assert not begun.path.exists()
    begun.took(b"one's end, another's beginning", [10])
    assert b"".join(begun.pieces()) == b" another's beginning"


def test_a_file_without_a_whole_record_is_not_opened_anew_with_each_try(tmp_path: Path) -> None:
    """As a power cut may leave it; while no primary answers, a hello is prepared again and again."""
    begun = PartialTransaction(tmp_path)
    begun.path.write_bytes(bytes(100))
    descriptors = []
    for _ in range(3):
        begun.offer(Position(1, 1))
        descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
    assert descriptors == descriptors[:1] * 3
    begun.clear()

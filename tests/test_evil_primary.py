"""A primary that lies costs itself the connection: nothing of the lie is stored or shown, and the follower goes on."""

from __future__ import annotations

import asyncio
import itertools
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import lz4.block
import pytest
from support.evil_primary import PAGE_SIZE, TXID, EvilPrimary, serving, small_database

from walcast import wire
from walcast.errors import ConfigError, Corrupt, DiskFull, ProtocolViolation
from walcast.position import CHECKSUM_FLAG
from walcast.rpc import replication_pb2 as pb
from walcast.statusfile import State, read_status
from walcast.terms import HISTORY_TERMS, TERM_STEP_MAX, TXID_MAX, TXID_STEP_MAX
from walcast_follower import following as following_module
from walcast_follower.following import Following
from walcast_follower.owner import Alone
from walcast_follower.subscribe.page_growth import check_files_hold
from walcast_follower.subscribe.primary_client import Client
from walcast_follower.subscribe.primary_locator import Whereabouts

PATIENCE_S = 8.0
PAGES_MAX = 0xFFFFFFFE

Lie = Callable[[EvilPrimary], None]


class Losses(Alone):
    """What a follower's streams and copies ended with."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def lost(self, error: Exception) -> None:
        self.errors.append(error)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following_module, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(following_module, "RETRY_MOST_S", 0.05)
    monkeypatch.setattr(following_module, "MEND_EVERY_S", 0.0)


@pytest.fixture
def evil(tmp_path: Path) -> EvilPrimary:
    return EvilPrimary(small_database(tmp_path))


async def until(what: Callable[[], Any], task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():
            if task.done():
                task.result()
                raise AssertionError("the follower ended")
            await asyncio.sleep(0.005)


@asynccontextmanager
async def following(path: Path, primary: wire.Address) -> AsyncIterator[tuple[asyncio.Task[None], Losses, Following]]:
    def connect(address: wire.Address) -> Client:
        return Client(address, wire.Tls(), database="app", follower_id="f")

    losses = Losses()
    follower = Following(path, Whereabouts([primary], connect), owner=losses)
    task = asyncio.create_task(follower.run())
    try:
        yield task, losses, follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def rows(path: Path) -> tuple[int, int]:
    """What a reader sees: pages, and rows. By the follower's own library, since two may not share a process's locks."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        assert db.pragma("integrity_check") == "ok"
        return db.pragma("page_count"), db.execute("SELECT count(*) FROM t").fetchall()[0][0]
    finally:
        db.close()


def copies(*messages: Callable[[EvilPrimary], pb.CopyReply]) -> Lie:
    def lie(evil: EvilPrimary) -> None:
        evil.copied = lambda: (message(evil) for message in messages)

    return lie


def starts(**facts: Any) -> Lie:
    return copies(lambda evil: evil.start(**facts), lambda evil: pb.CopyReply(end=pb.CopyEnd(position=evil.position)))


def ends(evil: EvilPrimary) -> pb.CopyReply:
    return pb.CopyReply(end=pb.CopyEnd(position=evil.position))


def piece(pgnos: list[int], count: int | None = None, page: bytes = bytes(PAGE_SIZE), **facts: Any) -> Lie:
    pages = [page] * (len(pgnos) if count is None else count)
    return copies(EvilPrimary.start, lambda evil: evil.piece(pgnos, pages, **facts), ends)


def copies_with_page_one(change: Callable[[bytearray], None]) -> Lie:
    """Consistent in itself: the checksum is that of what is sent."""

    def lie(evil: EvilPrimary) -> None:
        page = bytearray(evil.pages[0])
        change(page)
        other = EvilPrimary([bytes(page), *evil.pages[1:]])
        evil.copied = other.honest_copy

    return lie


def put(at: int, data: bytes) -> Callable[[bytearray], None]:
    def change(page: bytearray) -> None:
        page[at : at + len(data)] = data

    return change


def round_of(**facts: Any) -> Lie:
    return copies(
        EvilPrimary.start, lambda evil: evil.piece([1, 2], evil.pages), lambda evil: evil.start(**facts), ends
    )


BOMB = lz4.block.compress(bytes(64 << 20), store_size=False)

LIES_IN_A_COPY: dict[str, Lie] = {
    "pages of 1 GiB": starts(page_size=1 << 30),
    "pages of 0 bytes": starts(page_size=0),
    "pages of 4000 bytes": starts(page_size=4000),
    "no page": starts(commit_pages=0),
    "2^32-1 pages": starts(commit_pages=0xFFFFFFFF),
    "a term that cannot be": starts(position=pb.Position(txid=TXID, checksum=CHECKSUM_FLAG, term=2**32 - 1)),
    "a TXID that cannot be": starts(position=pb.Position(txid=TXID_MAX + 1, checksum=CHECKSUM_FLAG, term=1)),
    "a checksum that is none": starts(position=pb.Position(txid=TXID, checksum=1, term=1)),
    "no position": starts(position=pb.Position()),
    "an id that is none": starts(database_id="x" * 100_000),
    "page 2^28 of 2": piece([1 << 28]),
    "page 2^32-2 of 2": piece([PAGES_MAX]),
    "page 0": piece([0]),
    "a page twice": piece([1, 1]),
    "pages that descend": piece([2, 1]),
    "a page left out": piece([2]),
    "8,000 pages of 2": piece(list(range(1, 8001))),
    "more numbers than pages": piece([1, 2], count=1),
    "fewer numbers than pages": piece([1], count=2),
    "a size that is too large": piece([1], sizes=[2**32 - 1]),
    "a size of 0": piece([1, 2], sizes=[0, 1]),
    "a block of 64 MiB": piece([1], sizes=[len(BOMB)], blocks=BOMB),
    "seen 2^32-1 pages": piece([1], scanned_pages=0xFFFFFFFF),
    "a round of other pages": round_of(page_size=8192),
    "a round before the start": round_of(position=pb.Position(txid=1, checksum=CHECKSUM_FLAG, term=1)),
    "a round of another database": round_of(database_id="1" * 32),
    "a round of 2^32-1 pages": round_of(commit_pages=0xFFFFFFFF),
    "only the first page": copies(EvilPrimary.start, lambda evil: evil.piece([1], evil.pages[:1]), ends),
    "an end before the start": copies(
        EvilPrimary.start,
        lambda evil: pb.CopyReply(end=pb.CopyEnd(position=pb.Position(txid=1, checksum=evil.checksum))),
    ),
    "an end that the primary has not reached": copies(
        EvilPrimary.start,
        lambda evil: evil.piece([1, 2], evil.pages),
        lambda evil: pb.CopyReply(end=pb.CopyEnd(position=pb.Position(txid=TXID_MAX, checksum=evil.checksum))),
    ),
    "page 1 of another format": copies_with_page_one(put(0, b"SQLite format 4\0")),
    "page 1 of other pages": copies_with_page_one(put(16, b"\x02\x00")),
    "page 1 not in WAL mode": copies_with_page_one(put(18, b"\x01\x01")),
    "page 1 of more pages": copies_with_page_one(put(28, PAGES_MAX.to_bytes(4, "big"))),
}


@pytest.mark.parametrize("lie", LIES_IN_A_COPY.values(), ids=LIES_IN_A_COPY)
def test_a_copy_that_lies_leaves_nothing_and_the_next_one_is_taken(evil: EvilPrimary, tmp_path: Path, lie: Lie) -> None:
    path = tmp_path / "f" / "app.db"
    path.parent.mkdir()

    async def run(primary: wire.Address) -> None:
        lie(evil)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with following(path, primary) as (task, losses, follower):
            await until(lambda: len(losses.errors) >= 2, task)
            assert {type(error) for error in losses.errors} == {ProtocolViolation}
            assert all(str(error).isprintable() and len(str(error)) < 1000 for error in losses.errors)
            assert not path.exists()
            assert sum(file.stat().st_size for file in path.parent.rglob("*")) < 1 << 20
            evil.copied = evil.honest_copy
            await until(lambda: follower.status.state is State.STREAMING, task)
            assert rows(path) == (2, 3)
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10

    with serving(evil) as primary:
        asyncio.run(run(primary))


def test_rounds_without_end_are_left_and_a_refusal_of_a_first_copy_for_its_pages_ends_nothing(
    evil: EvilPrimary, tmp_path: Path
) -> None:
    path = tmp_path / "f" / "app.db"
    path.parent.mkdir()
    other_pages = pb.CopyReply(refusal=pb.Refusal(kind=pb.REFUSAL_KIND_PAGE_SIZE, detail="others"))

    async def run(primary: wire.Address) -> None:
        evil.copied = lambda: itertools.repeat(evil.start())
        async with following(path, primary) as (task, losses, follower):
            await until(lambda: bool(losses.errors), task)
            evil.copied = lambda: iter([other_pages])
            await until(lambda: len(losses.errors) >= 3, task)
            evil.copied = evil.honest_copy
            await until(lambda: follower.status.state is State.STREAMING, task)

    with serving(evil) as primary:
        asyncio.run(run(primary))


def says(**facts: Any) -> Lie:
    def lie(evil: EvilPrimary) -> None:
        evil.welcome = facts

    return lie


def sends(message: Callable[[EvilPrimary], pb.PrimaryMessage]) -> Lie:
    def lie(evil: EvilPrimary) -> None:
        evil.streamed = lambda: iter([message(evil)])

    return lie


def transaction(pages: dict[int, bytes | None], commit_pages: int = 0, **facts: Any) -> Lie:
    """`pages`: None is a page as it is."""

    def message(evil: EvilPrimary) -> pb.PrimaryMessage:
        found = {pgno: evil.pages[pgno - 1] if page is None else page for pgno, page in pages.items()}
        return evil.transaction(found, commit_pages, **facts)

    return sends(message)


def transaction_with_page_one(at: int, data: bytes, commit_pages: int = 0) -> Lie:
    def message(evil: EvilPrimary) -> pb.PrimaryMessage:
        page = bytearray(evil.pages[0])
        put(at, data)(page)
        return evil.transaction({1: bytes(page)}, commit_pages)

    return sends(message)


def with_ends(*where: int) -> Lie:
    def message(evil: EvilPrimary) -> pb.PrimaryMessage:
        message = evil.transaction({1: evil.pages[0]})
        size = len(message.chunk.data)
        del message.chunk.ends[:]
        message.chunk.ends.extend(size + end if end <= 0 else end for end in where)
        return message

    return sends(message)


def history(*terms: int, first_txid: int = 1 << 21) -> list[pb.TermStart]:
    start = pb.Position(txid=1, checksum=CHECKSUM_FLAG)
    return [pb.TermStart(term=term, start=start, first_txid=first_txid) for term in terms]


def heartbeat(position: pb.Position) -> Lie:
    return sends(lambda evil: pb.PrimaryMessage(heartbeat=pb.Heartbeat(position=position)))


LIES_IN_A_STREAM: dict[str, Lie] = {
    "a term that cannot be": says(term=2**32 - 1),
    "a term too far above": says(term=2 + TERM_STEP_MAX),
    "no page size": says(page_size=0),
    "another protocol": says(protocol=2**32 - 1),
    "a name of 900 kB": says(database="x" * 900_000),
    "a name with a line break": says(database="app\r\n12:00 error all is lost"),
    "a name that moves the cursor": says(database="\x1b[2Japp"),
    "a URL of 900 kB": says(app_url="http://x/" + "a" * 900_000),
    "an id that is none": says(database_id="../../x"),
    "it goes on inside a transaction that never came": says(resume_bytes=100_000),
    "a TXID that cannot be": says(position=pb.Position(txid=2**64 - 1, checksum=CHECKSUM_FLAG)),
    "too long a history": says(history=history(*range(1, HISTORY_TERMS + 2)), term=500),
    "a history beyond the term": says(history=history(2)),
    "a history that descends": says(history=history(3, 2), term=5),
    "a history that goes back": says(history=history(1, first_txid=0)),
    "a size that the page does not bear out": transaction({1: None}, PAGES_MAX),
    "a page far beyond the end": transaction({1: None, 1 << 28: bytes(PAGE_SIZE)}, 1 << 28),
    "a gap beyond the end": transaction({1: None, 4: bytes(PAGE_SIZE)}, 4),
    "fewer new pages than said": transaction({1: None, 3: bytes(PAGE_SIZE)}, 4),
    "page 1 that says more": transaction_with_page_one(28, PAGES_MAX.to_bytes(4, "big")),
    "page 1 not in WAL mode": transaction_with_page_one(18, b"\x01\x01"),
    "page 1 of no database": transaction_with_page_one(0, bytes(16)),
    "a transaction of a term to come": transaction({1: None}, term=2),
    "a TXID too far above": transaction({1: None}, max_txid=TXID + 1 + TXID_STEP_MAX + 1),
    "the highest TXID": transaction({1: None}, max_txid=2**64 - 1),
    "a time before 1970": transaction({1: None}, timestamp_ms=-1),
    "the last time there is": transaction({1: None}, timestamp_ms=2**63 - 1),
    "an end beyond the data": with_ends(2**32 - 1),
    "an end too early": with_ends(100),
    "ends that descend": with_ends(0, 100),
    "ends without end": with_ends(*range(1, 50)),
    "no end": with_ends(),
    "a heartbeat of a TXID that cannot be": heartbeat(pb.Position(txid=2**64 - 1, checksum=CHECKSUM_FLAG)),
    "a heartbeat of a checksum that is none": heartbeat(pb.Position(txid=TXID, checksum=1)),
    "a place in a term that cannot be": sends(
        lambda evil: pb.PrimaryMessage(hand_over=pb.HandOver(term=2**32 - 1, position=evil.position))
    ),
}


def test_a_message_larger_than_any_that_a_primary_sends_is_not_received(evil: EvilPrimary, tmp_path: Path) -> None:
    path = tmp_path / "f" / "app.db"
    path.parent.mkdir()

    async def run(primary: wire.Address) -> None:
        async with following(path, primary) as (task, losses, follower):
            await until(lambda: follower.status.state is State.STREAMING, task)
            says(history=history(*range(1, 150_000)))(evil)
            assert follower._stream is not None
            follower._stream.leave("the test wants another stream")
            await until(lambda: len(losses.errors) >= 3, task)
            assert rows(path) == (2, 3)
            make_honest(evil)
            await until(lambda: follower.status.state is State.STREAMING, task)

    with serving(evil) as primary:
        asyncio.run(run(primary))


def make_honest(evil: EvilPrimary) -> None:
    evil.welcome, evil.refusal, evil.streamed = {}, lambda hello: None, lambda: iter(())


@pytest.mark.parametrize("lie", LIES_IN_A_STREAM.values(), ids=LIES_IN_A_STREAM)
def test_a_stream_that_lies_is_left_and_readers_see_nothing_of_it(evil: EvilPrimary, tmp_path: Path, lie: Lie) -> None:
    path = tmp_path / "f" / "app.db"
    path.parent.mkdir()

    async def run(primary: wire.Address) -> None:
        async with following(path, primary) as (task, losses, follower):
            await until(lambda: follower.status.state is State.STREAMING, task)
            lie(evil)
            assert follower._stream is not None
            follower._stream.leave("the test wants another stream")
            lied = 0

            def told() -> bool:
                nonlocal lied
                lied = sum(isinstance(error, ProtocolViolation) for error in losses.errors)
                return lied >= 2

            await until(told, task)
            assert all(str(error).isprintable() and len(str(error)) < 1000 for error in losses.errors)
            assert rows(path) == (2, 3)
            assert (follower.term, follower.history, follower.database) == (1, (), "app")
            assert follower.applier is not None
            assert (follower.applier.term, follower.applier.position.txid) == (1, TXID)
            status = read_status(path)
            assert (status.name, status.term, status.position.txid) == ("app", 1, TXID)
            make_honest(evil)
            await until(lambda: follower.status.state is State.STREAMING, task)
            assert rows(path) == (2, 3)
            assert evil.copies == 1, "there was nothing to mend"

    with serving(evil) as primary:
        asyncio.run(run(primary))


def refuses(**facts: Any) -> Lie:
    def lie(evil: EvilPrimary) -> None:
        evil.refusal = lambda hello: pb.Refusal(**facts)

    return lie


REFUSALS: dict[str, Lie] = {
    "go beyond this machine": refuses(kind=pb.REFUSAL_KIND_NOT_PRIMARY, primary="192.0.2.1:22"),
    "go to a name that looks near": refuses(kind=pb.REFUSAL_KIND_NOT_PRIMARY, primary="127.0.0.1.example.com:22"),
    "go to no address": refuses(kind=pb.REFUSAL_KIND_NOT_PRIMARY, primary="unix:/etc/passwd"),
    "go to a long address": refuses(kind=pb.REFUSAL_KIND_FENCED, primary="x" * 500_000 + ":1"),
    "go to a port that is no number": refuses(kind=pb.REFUSAL_KIND_FENCED, primary="localhost:²"),
    "a detail with a line break": refuses(kind=pb.REFUSAL_KIND_STOPPING, detail="x\n12:00 error all is lost"),
    "a detail of 900 kB": refuses(kind=pb.REFUSAL_KIND_STOPPING, detail="x" * 900_000),
    "unknown database": refuses(kind=pb.REFUSAL_KIND_UNKNOWN_DATABASE, detail="no such database"),
    "another protocol": refuses(kind=pb.REFUSAL_KIND_PROTOCOL_VERSION, detail="upgrade"),
    "other pages": refuses(kind=pb.REFUSAL_KIND_PAGE_SIZE, detail="others"),
    "a kind that is none": refuses(kind=99, detail="?"),
    "a history of a term that cannot be": refuses(kind=pb.REFUSAL_KIND_DIVERGED, history=history(2**32 - 1)),
    "too long a history": refuses(kind=pb.REFUSAL_KIND_LOG_MOVED_ON, history=history(*range(1, 500))),
}


@pytest.mark.parametrize("lie", REFUSALS.values(), ids=REFUSALS)
def test_no_refusal_ends_a_follower_that_has_followed(evil: EvilPrimary, tmp_path: Path, lie: Lie) -> None:
    path = tmp_path / "f" / "app.db"
    path.parent.mkdir()

    async def run(primary: wire.Address) -> None:
        async with following(path, primary) as (task, losses, follower):
            await until(lambda: follower.status.state is State.STREAMING, task)
            lie(evil)
            assert follower._stream is not None
            follower._stream.leave("the test wants another stream")
            await until(lambda: len(losses.errors) >= 5, task)
            assert all(str(error).isprintable() and len(str(error)) < 2000 for error in losses.errors)
            assert rows(path) == (2, 3)
            make_honest(evil)
            await until(lambda: follower.status.state is State.STREAMING, task)
            assert follower.where.client.primary == primary

    with serving(evil) as primary:
        asyncio.run(run(primary))


def test_what_others_name_as_the_primary_ends_no_follower_that_has_not_followed_yet(
    evil: EvilPrimary, tmp_path: Path
) -> None:
    """The node that is named is no primary of this database: that is for whoever gave addresses to mend, not here."""
    path = tmp_path / "f" / "app.db"
    path.parent.mkdir()
    other = EvilPrimary(evil.pages)
    unknown = pb.Refusal(kind=pb.REFUSAL_KIND_UNKNOWN_DATABASE, detail="no such database")
    other.copied = lambda: iter([pb.CopyReply(refusal=unknown)])

    async def run(primary: wire.Address, elsewhere: wire.Address) -> None:
        there = pb.Refusal(kind=pb.REFUSAL_KIND_NOT_PRIMARY, primary=str(elsewhere))
        evil.copied = lambda: iter([pb.CopyReply(refusal=there)])
        async with following(path, primary) as (task, losses, follower):
            await until(lambda: sum(isinstance(error, ConfigError) for error in losses.errors) >= 3, task)
            evil.copied = evil.honest_copy
            await until(lambda: follower.status.state is State.STREAMING, task)

    with serving(evil) as primary, serving(other) as elsewhere:
        asyncio.run(run(primary, elsewhere))


def test_a_database_that_is_to_grow_beyond_the_disk_is_refused_before_its_first_new_page(
    evil: EvilPrimary, tmp_path: Path
) -> None:
    path = tmp_path / "f" / "app.db"
    path.parent.mkdir()

    async def run(primary: wire.Address) -> None:
        async with following(path, primary) as (task, losses, follower):
            await until(lambda: follower.status.state is State.STREAMING, task)
            transaction({1: None, 3: bytes(PAGE_SIZE)}, PAGES_MAX)(evil)
            assert follower._stream is not None
            follower._stream.leave("the test wants another stream")
            await until(lambda: any(isinstance(error, DiskFull) for error in losses.errors), task)
            assert rows(path) == (2, 3)

    with serving(evil) as primary:
        asyncio.run(run(primary))


def test_a_copy_that_is_announced_larger_than_the_disk_is_refused(evil: EvilPrimary, tmp_path: Path) -> None:
    path = tmp_path / "f" / "app.db"
    path.parent.mkdir()

    async def run(primary: wire.Address) -> None:
        starts(commit_pages=PAGES_MAX)(evil)
        async with following(path, primary) as (task, losses, _):
            await until(lambda: losses.errors, task)
            assert isinstance(losses.errors[0], DiskFull)
            assert sum(file.stat().st_size for file in path.parent.rglob("*")) < 1 << 20

    with serving(evil) as primary:
        asyncio.run(run(primary))


def test_a_replica_that_an_older_version_let_grow_out_of_its_files_is_not_read_for_ever(
    evil: EvilPrimary, tmp_path: Path
) -> None:
    """Its file's header says 2^32-2 pages: all of them would be read, as zeros."""
    page = bytearray(evil.pages[0])
    page[28:32] = PAGES_MAX.to_bytes(4, "big")
    path = tmp_path / "f" / "app.db"
    path.parent.mkdir()
    path.write_bytes(bytes(page) + evil.pages[1])

    with pytest.raises(Corrupt):
        check_files_hold(path, PAGE_SIZE, PAGES_MAX)
    check_files_hold(path, PAGE_SIZE, 2)
    check_files_hold(path, PAGE_SIZE, 500)

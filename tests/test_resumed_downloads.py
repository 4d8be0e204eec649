"""A bootstrap or a catch-up from the archive that breaks off: what was downloaded is not downloaded again."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.archiving import archived, archiving
from support.e2e_oracle import Served
from support.far_follower import ROW_BYTES, add, until
from support.writers import checkpointed
from test_resumed_copies import ROW_COUNT, create, primary

from walcast import wire
from walcast.errors import DiskFull, Unavailable
from walcast.statedir import StateDir
from walcast.store import Store
from walcast.store.directory import DirectoryStore
from walcast.wire import Address
from walcast_follower.apply.applier import Applier
from walcast_follower.bootstrap.bootstrap import from_archive
from walcast_follower.bootstrap.downloads import Downloads
from walcast_follower.bootstrap.fresh_file import Fresh
from walcast_follower.bootstrap.rebase import catch_up
from walcast_follower.following import Following
from walcast_follower.subscribe.primary_client import Client

SIZE = ROW_COUNT * ROW_BYTES
PIECE_BYTES = 64 << 10


class FarStore(DirectoryStore):
    """Behind a line that breaks after so many bytes, `None`: never."""

    breaks_after: int | None = None
    passed_bytes = 0
    left = 0

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        data = super().get(key, start, length)
        if self.breaks_after is not None:
            self.left -= len(data)
            if self.left < 0:
                raise Unavailable("the line broke")
        self.passed_bytes += len(data)
        return data

    def chunks(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        start = 0
        while data := self.get(key, start, PIECE_BYTES):
            yield data
            start += len(data)

    def connect(self) -> None:
        """It is there again."""
        self.left = self.breaks_after or 0


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "home").mkdir()
    create(tmp_path / "home" / "app.db")
    with primary(tmp_path / "home" / "app.db") as made:
        yield made


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walcast_follower.bootstrap.downloads.STEP_BYTES", PIECE_BYTES)


class Edge:
    """A follower's place, and its tries."""

    def __init__(self, app: Served, folder: Path) -> None:
        folder.mkdir()
        self.app = app
        self.path = folder / "app.db"
        self.state = StateDir(self.path)
        self.store = FarStore(folder.parent / "archive")
        self.tries = 0

    def bootstrap(self) -> Fresh | None:
        return self.work(lambda store: from_archive(store, self.path, self.state.path))

    def work(self, work: Callable[[Store], object]) -> object:
        """One life of a process."""
        self.tries += 1
        self.store.connect()
        downloads = Downloads(self.store, self.state.path)
        try:
            return downloads.run(work)
        finally:
            downloads.close()

    def until_done(self, work: Callable[[], object]) -> None:
        while self.tries < 20:
            try:
                assert work()
                return
            except Unavailable:
                pass
        raise AssertionError("no progress")

    def same(self) -> None:
        self.state.close()
        self.app.stop()
        assert checkpointed(self.path) == checkpointed(self.app.path)
        assert not list(self.state.path.glob("*.partial"))


@pytest.fixture
def edge(app: Served, tmp_path: Path) -> Edge:
    made = Edge(app, tmp_path / "edge")
    with archiving(app, made.store) as archiver:
        assert archived(app, archiver)
    made.store.breaks_after = SIZE // 5
    return made


def test_a_bootstrap_goes_on_where_it_broke_off(edge: Edge) -> None:
    edge.until_done(edge.bootstrap)
    assert edge.tries > 3
    assert edge.store.passed_bytes < 1.6 * SIZE
    edge.same()


def test_a_catch_up_goes_on_where_it_broke_off(app: Served, edge: Edge) -> None:
    edge.store.breaks_after = None
    fresh = edge.bootstrap()
    with archiving(app, edge.store) as archiver:
        add(app.path, ROW_COUNT)
        assert archived(app, archiver)
    edge.store.breaks_after, edge.store.passed_bytes, edge.tries = SIZE // 5, 0, 0
    applier = Applier.open(edge.path, edge.state.path, fresh)
    edge.until_done(lambda: edge.work(lambda store: catch_up(store, applier)))
    assert edge.tries > 3
    assert edge.store.passed_bytes < 1.6 * SIZE
    assert applier.position == app.position
    applier.close()
    edge.same()


def torn(partial: Path, edge: Edge) -> None:
    """By a power cut, in the middle and at the end."""
    with partial.open("r+b") as file:
        file.seek(partial.stat().st_size // 2)
        file.write(bytes(5000))
        file.truncate(partial.stat().st_size - 100)


def garbage(partial: Path, edge: Edge) -> None:
    partial.write_bytes(os.urandom(SIZE))


def of_older_objects(partial: Path, edge: Edge) -> None:
    """They were written again since, with other bytes in the same size."""
    for path in edge.store.root.rglob("*.ltx"):
        os.utime(path, (1, 1))
    kept = partial.read_bytes()
    partial.write_bytes(kept[:200] + kept[200:].replace(kept[300:340], bytes(40)))


@pytest.mark.parametrize("fate", [torn, garbage, of_older_objects])
def test_what_is_not_what_was_downloaded_is_downloaded_again(edge: Edge, fate: Callable[[Path, Edge], None]) -> None:
    for _ in range(3):
        with pytest.raises(Unavailable):
            edge.bootstrap()
    fate(edge.state.path / "archive.partial", edge)
    edge.until_done(edge.bootstrap)
    edge.same()


def test_a_follower_that_is_stopped_leaves_what_was_downloaded(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that downloads ends later than what waits for it."""
    for _ in range(2):
        with pytest.raises(Unavailable):
            edge.bootstrap()
    kept = (edge.state.path / "archive.partial").read_bytes()
    edge.state.close()
    asked, stopped = threading.Event(), threading.Event()

    def hanging(key: str, start: int = 0, length: int | None = None) -> bytes:
        asked.set()
        stopped.wait(10)
        raise Unavailable("the line broke")

    async def work() -> None:
        client = Client(Address("127.0.0.1", 1), wire.Tls(), database="app", follower_id="f")
        following = asyncio.create_task(Following(edge.path, client, store=edge.store).run())
        await until(asked.is_set, 10)
        following.cancel()
        asyncio.get_running_loop().call_later(0.1, stopped.set)
        await asyncio.gather(following, return_exceptions=True)

    monkeypatch.setattr(edge.store, "get", hanging)
    asyncio.run(work())
    assert len(kept) > PIECE_BYTES
    assert (edge.state.path / "archive.partial").read_bytes() == kept


def test_without_room_for_both_nothing_is_kept(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable):
        edge.bootstrap()
    monkeypatch.setattr("walcast_follower.bootstrap.downloads.free_bytes", lambda path: 2 * SIZE)
    with pytest.raises(Unavailable):
        edge.bootstrap()
    assert not (edge.state.path / "archive.partial").exists()
    edge.store.breaks_after = None
    edge.until_done(edge.bootstrap)
    edge.same()


def test_on_a_full_disk_what_was_downloaded_makes_room(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(Unavailable):
        edge.bootstrap()
    edge.store.breaks_after = None
    monkeypatch.setattr("walcast_follower.bootstrap.bootstrap.put_in_place", full)
    with pytest.raises(DiskFull):
        edge.bootstrap()
    assert not (edge.state.path / "archive.partial").exists()


def test_a_bootstrap_that_is_fast_keeps_nothing(edge: Edge) -> None:
    """What it would cost, writing everything twice, would be for nothing."""
    edge.store.breaks_after = None
    seen = list[bool]()

    def watched(store: Store) -> object:
        made = from_archive(store, edge.path, edge.state.path)
        seen.append((edge.state.path / "archive.partial").exists())
        return made

    assert edge.work(watched)
    assert seen == [False]
    edge.same()

"""Which way a restore takes when files are damaged, gone or another database's; what it says when there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.archives import History, MemoryStore

from walcast.archive import ArchiveGap, ltx_key
from walcast.archive.damage import Contradiction
from walcast.restore import DamagedFile, restore
from walcast.store import ObjectMissing


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "app.db"


def archive(*files: tuple[int, int, int], seed: int = 1) -> History:
    """TXIDs 1 to 12 and these files, as (level, min TXID, max TXID)."""
    made = History(MemoryStore(), seed=seed)
    made.commit(12)
    for level, low, high in files:
        made.put(level, low, high)
    return made


def singles(low: int, high: int) -> list[tuple[int, int, int]]:
    return [(0, txid, txid) for txid in range(low, high + 1)]


def spoil(history: History, level: int, low: int, high: int) -> str:
    key = ltx_key(history.store, level, low, high)
    body = bytearray(history.store.get(key))
    body[-10] ^= 4
    history.store.put(key, bytes(body), timestamp_ms=0)
    return key


def from_elsewhere(history: History, level: int, low: int, high: int) -> str:
    """The file of that name from another database."""
    other = History(history.store, seed=99)
    other.commit(12)
    return other.put(level, low, high)


@pytest.mark.parametrize(
    ("files", "bad"),
    [
        pytest.param([(9, 1, 3), (9, 1, 8), *singles(4, 12)], (9, 1, 8), id="a snapshot: an older one and level 0"),
        pytest.param([(9, 1, 3), (9, 1, 8), (2, 4, 9), *singles(9, 12)], (9, 1, 8), id="a snapshot: a longer way"),
        pytest.param([(9, 1, 3), (1, 4, 9), *singles(4, 12)], (1, 4, 9), id="level 1: level 0"),
        pytest.param([(9, 1, 3), (1, 4, 5), (1, 6, 7), (2, 4, 7), *singles(8, 12)], (2, 4, 7), id="level 2: level 1"),
        pytest.param([(9, 1, 3), (0, 4, 10), (1, 4, 9), *singles(10, 12)], (0, 4, 10), id="level 0: level 1"),
    ],
)
def test_the_way_goes_around_damage(files: list[tuple[int, int, int]], bad: tuple[int, int, int], out: Path) -> None:
    history = archive(*files)
    key = spoil(history, *bad)
    assert restore(history.store, out).went_around == (key,)
    assert out.read_bytes() == history.states[12]
    history.store.delete([key])
    assert restore(history.store, out, force=True).went_around == ()
    assert out.read_bytes() == history.states[12]


@pytest.mark.parametrize("bad", [(9, 1, 3), (1, 4, 6), (0, 9, 9)])
def test_a_file_that_nothing_else_covers_is_named(bad: tuple[int, int, int], out: Path) -> None:
    history = archive((9, 1, 3), (1, 4, 6), *singles(7, 12))
    key = spoil(history, *bad)
    with pytest.raises(DamagedFile, match=f"^{key}: ") as caught:
        restore(history.store, out)
    assert ("--txid" in str(caught.value)) == (bad[0] != 9)
    assert f"--txid {bad[1] - 1:016x}" in str(caught.value) or bad[0] == 9
    assert not out.parent.exists()


def test_everything_damaged_names_the_file_and_the_newest_txid_that_is_left(out: Path) -> None:
    history = archive((9, 1, 3), (9, 1, 8), *singles(4, 12), (1, 9, 12))
    first = spoil(history, 1, 9, 12)
    then = spoil(history, 0, 11, 11)
    with pytest.raises(DamagedFile) as caught:
        restore(history.store, out)
    assert str(caught.value).startswith(f"{first}: ")
    assert f"; {then} cannot be used either; without it the archive restores to --txid {10:016x}" in str(caught.value)
    assert not out.parent.exists()
    assert restore(history.store, out, txid=10).restored is not None
    for key in list(history.store.objects):  # type: ignore[attr-defined]
        history.store.put(key, b"nothing", timestamp_ms=0)
    with pytest.raises(DamagedFile) as caught:
        restore(history.store, out, force=True)
    assert "--txid" not in str(caught.value)


def test_a_gap_says_how_far_the_archive_reaches(out: Path) -> None:
    history = archive((9, 1, 3), *singles(4, 6), *singles(8, 12))
    with pytest.raises(ArchiveGap, match=f"reaches TXID {6:016x} and goes on at {8:016x}.*--txid {6:016x}"):
        restore(history.store, out)


def test_an_object_that_is_listed_and_not_there_is_gone_around_or_named(out: Path) -> None:
    class Holes(MemoryStore):
        def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            if key == ltx_key(self, 0, 8, 8):
                raise ObjectMissing(key, self.url)
            return super().get(key, start, length)

    history = History(Holes())
    history.commit(12)
    for part in ((9, 1, 3), *singles(4, 12)):
        history.put(*part)
    with pytest.raises(ObjectMissing, match=f"{8:016x}.ltx is not in the archive.*--txid {7:016x}"):
        restore(history.store, out)
    assert history.store.requests.count(ltx_key(history.store, 9, 1, 3)) == 1  # type: ignore[attr-defined]
    history.put(2, 5, 8)
    history.put(1, 4, 10)
    assert restore(history.store, out).went_around == ()
    history.store.delete([ltx_key(history.store, 1, 4, 10)])
    history.put(0, 4, 7)
    restore(history.store, out, force=True)
    assert out.read_bytes() == history.states[12]


def test_a_snapshot_of_another_database_is_gone_around(out: Path) -> None:
    history = archive((9, 1, 3), *singles(4, 12), (9, 1, 8))
    key = from_elsewhere(history, 9, 1, 8)
    assert restore(history.store, out).went_around == (key,)
    assert out.read_bytes() == history.states[12]


def test_a_snapshot_of_another_database_alone_is_denied_by_a_file_that_ends_with_it(out: Path) -> None:
    history = archive((9, 1, 12), *singles(5, 12))
    key = from_elsewhere(history, 9, 1, 12)
    witness = ltx_key(history.store, 0, 12, 12)
    with pytest.raises(Contradiction, match=f"^{key}: .*{witness} says"):
        restore(history.store, out)
    assert not out.parent.exists()
    history.put(9, 1, 6)
    assert restore(history.store, out).went_around == (key,)
    assert out.read_bytes() == history.states[12]
    # One that is not whole itself denies nothing.
    history = archive((9, 1, 12))
    history.put(0, 12, 12, lie=2)
    spoil(history, 0, 12, 12)
    restore(history.store, out, force=True)
    assert out.read_bytes() == history.states[12]


def test_a_commit_of_another_database_is_gone_around_or_named(out: Path) -> None:
    history = archive((9, 1, 3), *singles(4, 12))
    key = from_elsewhere(history, 0, 7, 7)
    with pytest.raises(Contradiction, match=f"^{key}: database checksum"):
        restore(history.store, out)
    history.put(1, 5, 8)
    history.store.delete([ltx_key(history.store, 1, 5, 8)])
    history.put(1, 7, 10)
    assert restore(history.store, out).restored is not None
    assert out.read_bytes() == history.states[12]


class Meanwhile(MemoryStore):
    """A store in which something happens once, when a key is read."""

    def __init__(self) -> None:
        super().__init__()
        self.when: dict[str, list[str]] = {}
        self.history: History | None = None

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.delete(self.when.pop(key, []))
        return super().get(key, start, length)


def meanwhile(*files: tuple[int, int, int]) -> tuple[Meanwhile, History]:
    store = Meanwhile()
    history = History(store)
    history.commit(12)
    for part in files:
        history.put(*part)
    return store, history


def test_small_files_that_go_while_the_snapshot_is_read_cost_no_second_snapshot(out: Path) -> None:
    store, history = meanwhile((9, 1, 3), *singles(4, 12))
    snapshot = ltx_key(store, 9, 1, 3)
    body = store.get(snapshot)

    class Slow(Meanwhile):
        def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            if key == snapshot and self.history is not None:
                self.delete([ltx_key(self, 0, txid, txid) for txid in range(4, 10)])
                self.history.put(1, 4, 9)
                self.history = None
            return super().get(key, start, length)

    slow = Slow()
    slow.objects = store.objects
    history.store = slow
    slow.history = history
    report = restore(slow, out)
    assert out.read_bytes() == history.states[12]
    assert [(file.level, file.max_txid) for file in report.plan] == [(9, 3), (1, 9), (0, 10), (0, 11), (0, 12)]
    assert slow.requests.count(snapshot) == 1
    assert report.restored is not None
    assert report.restored.bytes_downloaded == sum(file.size for file in report.plan)
    assert body == store.get(snapshot)


def test_a_newer_snapshot_may_be_where_a_restore_goes_on(out: Path) -> None:
    store, history = meanwhile((9, 1, 3), *singles(4, 12), (9, 1, 11))
    late = ltx_key(store, 9, 1, 11)
    body, when = store.objects.pop(late)

    class Late(Meanwhile):
        def list(self, prefix: str = "") -> Iterator[object]:  # type: ignore[override]
            if self.requests.count(prefix):
                self.objects[late] = (body, when)
                self.delete([ltx_key(self, 0, 6, 6)])
            return super().list(prefix)

    store.when[ltx_key(store, 9, 1, 3)] = [ltx_key(store, 0, 6, 6)]
    again = Late()
    again.objects, again.when = store.objects, store.when
    report = restore(again, out)  # type: ignore[arg-type]
    assert out.read_bytes() == history.states[12]
    assert [(file.level, file.max_txid) for file in report.plan][-2:] == [(9, 11), (0, 12)]


def test_nothing_covers_what_went_meanwhile(out: Path) -> None:
    store, history = meanwhile((9, 1, 3), *singles(4, 12))
    store.when[ltx_key(store, 9, 1, 3)] = [ltx_key(store, 0, 6, 6)]
    with pytest.raises(ObjectMissing, match=f"--txid {5:016x}"):
        restore(store, out)
    assert not out.parent.exists()
    assert history.states


def test_an_object_that_is_written_anew_while_it_is_damaged_is_tried_again(out: Path) -> None:
    store, history = meanwhile((9, 1, 3), *singles(4, 12))
    key = ltx_key(store, 0, 9, 9)
    whole = store.get(key)
    store.put(key, whole[:50], timestamp_ms=0)

    class Finished(Meanwhile):
        def list(self, prefix: str = "") -> Iterator[object]:  # type: ignore[override]
            if self.requests.count(prefix):
                self.objects[key] = (whole, 0)
            return super().list(prefix)

    again = Finished()
    again.objects = store.objects
    restore(again, out)  # type: ignore[arg-type]
    assert out.read_bytes() == history.states[12]

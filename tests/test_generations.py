"""Archives in Litestream 0.3's layout, made here from SQLite's own WALs: plans, and every byte or a named error.

The oracle is SQLite: after each segment the database and its WAL are copied and checkpointed. The archives of the real
Litestream 0.3 are in `test_litestream03.py`.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import lz4.frame
import numpy as np
import pytest

from walcast.archive import ArchiveEmpty, TxidNotAvailable, ltx_key
from walcast.archive.damage import DamagedFile
from walcast.archive.generations import (
    GenerationFile,
    GenerationGap,
    list_generations,
    parse_key,
    plan_generation,
    plan_to,
    segment_key,
)
from walcast.checksum import PageChecksums
from walcast.errors import ConfigError, Corrupt
from walcast.moment import format_moment
from walcast.restore import restore
from walcast.restore.generations import generation_to, restore_generation
from walcast.restore.wal import RestoredWal
from walcast.store import Store, open_store
from walcast.wal import WAL_HEADER_SIZE, WalHeader, frame_checksums, frame_dtype

E = TypeVar("E", bound=Exception)
A, B = "a" * 16, "b" * 16
PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


def snapshot_key(generation: str, index: int) -> str:
    return f"generations/{generation}/snapshots/{index:08x}.snapshot.lz4"


def pack(data: bytes) -> bytes:
    """As Litestream does: one frame of independent blocks, with the checksum of its content and without its size."""
    return lz4.frame.compress(data, block_linked=False, content_checksum=True, store_size=False)


class Forge:
    """A database whose every commit is one segment; `states` has the database after each file, by its key."""

    def __init__(
        self, store: Store, folder: Path, *, page_size: int = 4096, generation: str = A, seed: int = 1
    ) -> None:
        self.store, self.generation, self.page_size = store, generation, page_size
        self.states: dict[str, bytes] = {}
        self.time_ms = 1_750_000_000_000
        self.index = self._offset = 0
        self._random = random.Random(seed)
        self._path = folder / f"forge-{generation}.db"
        self._db = sqlite3.connect(self._path, isolation_level=None)
        self._db.execute(f"pragma page_size = {page_size}")
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma wal_autocheckpoint = 0")
        self._db.execute("create table t (a integer primary key, b blob)")
        self._db.execute("pragma wal_checkpoint(truncate)")

    def close(self) -> None:
        self._db.close()

    def snapshot(self) -> str:
        key = snapshot_key(self.generation, self.index)
        return self._put(key, self._path.read_bytes())

    def commit(self, rows: int = 3) -> str:
        """A transaction, and its segment."""
        self._db.execute("begin")
        for _ in range(rows):
            blob = self._random.randbytes(self._random.randrange(3 * self.page_size))
            self._db.execute("insert into t (b) values (?)", (blob,))
        self._db.execute("delete from t where a % 5 = ?", (self._random.randrange(5),))
        self._db.execute("commit")
        return self.segment()

    def vacuum(self) -> str:
        """A commit that makes the database smaller, and its segment."""
        self._db.execute("vacuum")
        return self.segment()

    def segment(self) -> str:
        """What the WAL has since the last segment."""
        wal = self._wal.read_bytes()
        key = segment_key(self.generation, self.index, self._offset)
        data, self._offset = wal[self._offset :], len(wal)
        return self._put(key, data)

    def next_index(self) -> None:
        assert self._db.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0
        self.index, self._offset = self.index + 1, 0

    @property
    def _wal(self) -> Path:
        return self._path.with_name(self._path.name + "-wal")

    def _put(self, key: str, data: bytes) -> str:
        self.time_ms += 1000
        self.store.put(key, pack(data), timestamp_ms=self.time_ms)
        self.states[key] = self._checkpointed()
        return key

    def _checkpointed(self) -> bytes:
        copy = self._path.with_name("oracle.db")
        shutil.copyfile(self._path, copy)
        shutil.copyfile(self._wal, copy.with_name("oracle.db-wal"))
        with closing(sqlite3.connect(copy)) as db:
            assert db.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0
        return copy.read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "archive"))


@pytest.fixture
def make(store: Store, tmp_path: Path) -> Iterator[Callable[..., Forge]]:
    made: list[Forge] = []

    def forge(**options: int | str) -> Forge:
        made.append(Forge(store, tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield forge
    for each in made:
        each.close()


@pytest.fixture
def forge(make: Callable[..., Forge]) -> Forge:
    return history(make())


def history(forge: Forge) -> Forge:
    """Three WALs of three segments each, the last one shorter than the database was; snapshots 0 and 1."""
    forge.snapshot()
    for index in range(3):
        if index:
            forge.next_index()
        if index == 1:
            forge.snapshot()
        forge.commit()
        forge.commit(1)
        forge.vacuum() if index == 2 else forge.commit(5)
    return forge


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "app.db"


def lines(*entries: tuple[str, int]) -> list[GenerationFile]:
    """A listing: keys without `generations/`, and times."""
    found = [parse_key(f"generations/{key}.lz4", 10, time_ms) for key, time_ms in entries]
    assert None not in found
    return [file for file in found if file is not None]


def keys(plan: list[GenerationFile]) -> list[str]:
    return [file.key.removeprefix("generations/").removesuffix(".lz4") for file in plan]


# Names and plans


@pytest.mark.parametrize(
    ("key", "generation", "index", "offset"),
    [
        (f"generations/{A}/snapshots/0000001f.snapshot.lz4", A, 31, None),
        (f"generations/{B}/wal/00000002_00001038.wal.lz4", B, 2, 0x1038),
        (f"generations/{B}/wal/00000002_123456789.wal.lz4", B, 2, 0x123456789),
    ],
)
def test_names_are_read(key: str, generation: str, index: int, offset: int | None) -> None:
    file = parse_key(key, 7, 5)
    assert file is not None
    assert (file.generation, file.index, file.offset) == (generation, index, offset)
    assert (file.key, file.size, file.timestamp_ms, file.is_snapshot) == (key, 7, 5, offset is None)
    assert (file.min_txid, file.max_txid) == (0, 0)
    if offset is not None:
        assert segment_key(generation, index, offset) == key


@pytest.mark.parametrize(
    "key",
    [
        f"generations/{A}/snapshots/0000001F.snapshot.lz4",
        f"generations/{A}/snapshots/0000001f.snapshot.lz4.tmp",
        f"generations/{A}/snapshots/00000001_00000000.snapshot.lz4",
        f"generations/{A}/wal/00000002.wal.lz4",
        f"generations/{A}/wal/00000002.wal",
        f"generations/{A[1:]}/wal/00000002_00000000.wal.lz4",
        f"generations/{A}/x/wal/00000002_00000000.wal.lz4",
        f"x/generations/{A}/wal/00000002_00000000.wal.lz4",
    ],
)
def test_foreign_names_are_ignored(key: str) -> None:
    assert parse_key(key, 7, 5) is None


LISTING = lines(
    (f"{A}/snapshots/00000000.snapshot", 10),
    (f"{A}/wal/00000000_00000000.wal", 11),
    (f"{A}/wal/00000000_00001038.wal", 20),
    (f"{A}/snapshots/00000001.snapshot", 31),
    (f"{A}/wal/00000001_00000000.wal", 30),
    (f"{A}/wal/00000001_00000020.wal", 40),
    (f"{B}/snapshots/00000000.snapshot", 60),
    (f"{B}/wal/00000000_00000000.wal", 61),
)


@pytest.mark.parametrize(
    ("time_ms", "first", "last"),
    [
        (None, f"{B}/snapshots/00000000.snapshot", f"{B}/wal/00000000_00000000.wal"),
        (99, f"{B}/snapshots/00000000.snapshot", f"{B}/wal/00000000_00000000.wal"),
        (60, f"{B}/snapshots/00000000.snapshot", f"{B}/snapshots/00000000.snapshot"),
        (59, f"{A}/snapshots/00000001.snapshot", f"{A}/wal/00000001_00000020.wal"),
        (39, f"{A}/snapshots/00000001.snapshot", f"{A}/wal/00000001_00000000.wal"),
        (30, f"{A}/snapshots/00000000.snapshot", f"{A}/wal/00000001_00000000.wal"),
        (29, f"{A}/snapshots/00000000.snapshot", f"{A}/wal/00000000_00001038.wal"),
        (10, f"{A}/snapshots/00000000.snapshot", f"{A}/snapshots/00000000.snapshot"),
    ],
)
def test_a_plan_ends_with_the_last_segment_not_after_the_time(time_ms: int | None, first: str, last: str) -> None:
    for seed in range(5):
        files = random.Random(seed).sample(LISTING, len(LISTING))
        plan = keys(plan_generation(files, timestamp_ms=time_ms))
        assert (plan[0], plan[-1]) == (first, last)


def test_a_plan_ends_before_the_first_segment_that_is_too_new_whatever_comes_after_it() -> None:
    files = lines(
        (f"{A}/snapshots/00000000.snapshot", 10),
        (f"{A}/wal/00000000_00000000.wal", 11),
        (f"{A}/wal/00000000_00001038.wal", 20),
        (f"{A}/wal/00000000_00002050.wal", 12),
    )
    assert keys(plan_generation(files, timestamp_ms=15))[-1] == f"{A}/wal/00000000_00000000.wal"


def test_nothing_is_planned_before_the_first_snapshot() -> None:
    with pytest.raises(TxidNotAvailable, match="does not reach back"):
        plan_generation(LISTING, timestamp_ms=9)
    with pytest.raises(ArchiveEmpty):
        plan_generation([])


def test_a_txid_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="no TXIDs"):
        plan_generation(LISTING, txid=1)


def test_of_two_generations_that_end_in_one_second_the_one_with_the_newer_snapshot_is_taken() -> None:
    files = lines(
        (f"{B}/snapshots/00000000.snapshot", 1000),
        (f"{B}/wal/00000000_00000000.wal", 5000),
        (f"{A}/snapshots/00000000.snapshot", 5000),
    )
    assert keys(plan_generation(files)) == [f"{A}/snapshots/00000000.snapshot"]


def test_a_generation_without_its_snapshot_is_named_and_no_older_one_taken_in_its_place() -> None:
    files = [file for file in LISTING if file.generation == A or not file.is_snapshot]
    with pytest.raises(ArchiveEmpty, match=f"{B} has WAL segments, but no snapshot.*{format_moment(40)}"):
        plan_generation(files)
    assert plan_generation(files, timestamp_ms=40)[-1].timestamp_ms == 40
    late = [file for file in LISTING if file.key != snapshot_key(A, 0)]
    with pytest.raises(TxidNotAvailable, match=format_moment(31)):
        plan_generation(late, timestamp_ms=30)


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ("wal/00000001_00000000.wal", (1, 0)),
        ("wal/00000000_00000000.wal", (0, 0)),
    ],
)
def test_a_missing_first_segment_is_named(gone: str, missing: tuple[int, int]) -> None:
    files = [file for file in LISTING if file.generation == A and file.key != f"generations/{A}/{gone}.lz4"]
    with pytest.raises(GenerationGap) as caught:
        plan_generation([file for file in files if file.key != snapshot_key(A, 1)])
    assert caught.value.missing == segment_key(A, *missing)


def test_a_missing_wal_is_named_by_its_first_segment() -> None:
    files = lines(
        (f"{A}/snapshots/00000000.snapshot", 10),
        (f"{A}/wal/00000000_00000000.wal", 11),
        (f"{A}/wal/00000002_00000000.wal", 12),
    )
    with pytest.raises(GenerationGap, match=f"without it .*{format_moment(11)}") as caught:
        plan_generation(files)
    assert caught.value.missing == segment_key(A, 1, 0)
    assert keys(plan_generation(files, timestamp_ms=11))[-1] == f"{A}/wal/00000000_00000000.wal"


def test_a_second_plan_begins_with_an_older_snapshot_and_ends_where_the_first_did() -> None:
    goal = LISTING[5]
    assert keys(plan_to(LISTING, goal))[0] == f"{A}/snapshots/00000001.snapshot"
    older = plan_to([file for file in LISTING if file.key != snapshot_key(A, 1)], goal)
    assert (older[0], older[-1]) == (LISTING[0], goal)
    with pytest.raises(ArchiveEmpty):
        plan_to([file for file in LISTING if not file.is_snapshot], goal)


# Restores


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_every_page_size_is_restored(make: Callable[..., Forge], out: Path, page_size: int) -> None:
    forge = history(make(page_size=page_size, seed=page_size))
    report = restore(forge.store, out)
    assert out.read_bytes() == list(forge.states.values())[-1]
    assert report.restored is not None
    assert (report.restored.page_size, report.restored.timestamp_ms) == (page_size, forge.time_ms)
    assert [path.name for path in out.parent.iterdir()] == ["app.db"]


def test_every_segment_is_a_state_that_its_time_restores(forge: Forge, tmp_path: Path) -> None:
    for file in list_generations(forge.store):
        output = tmp_path / "at.db"
        restore(forge.store, output, timestamp_ms=file.timestamp_ms, force=True)
        assert output.read_bytes() == forge.states[file.key], file.key
        if file.key != snapshot_key(A, 0):
            restore(forge.store, output, timestamp_ms=file.timestamp_ms - 1, force=True)
            earlier = [state for key, state in forge.states.items() if key != file.key]
            assert output.read_bytes() in earlier


def test_the_report_says_what_is_known(forge: Forge, out: Path) -> None:
    said: list[tuple[int, int]] = []
    report = restore(forge.store, out, progress=lambda done, total: said.append((done, total)), integrity_check="full")
    restored, size = report.restored, sum(file.size for file in report.plan)
    assert restored is not None
    checksums = PageChecksums.scan(4096, iter([(1, out.read_bytes())]))
    assert (restored.position.txid, restored.position.checksum) == (0, checksums.database)
    assert (restored.checksums.pages == checksums.pages).all()
    assert (restored.files, restored.bytes_downloaded) == (len(report.plan), size)
    assert report.plan[0].key == snapshot_key(A, 1)
    assert said[-1] == (size, size)


def test_an_archive_with_ltx_files_is_not_restored_from_generations(forge: Forge, out: Path) -> None:
    forge.store.put(ltx_key(forge.store, 0, 5, 6), b"", timestamp_ms=1)
    with pytest.raises(ArchiveEmpty, match="no snapshot"):
        restore(forge.store, out)


def test_options_mean_what_they_mean_for_other_archives(forge: Forge, store: Store, out: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no TXIDs"):
        restore(store, out, txid=3)
    assert restore(store, out, dry_run=True).plan[0].key == snapshot_key(A, 1)
    assert not out.exists()
    assert restore(store, out, if_replica_exists=True).restored is not None
    with pytest.raises(ConfigError, match="exists"):
        restore(store, out)
    assert restore(store, out, if_db_not_exists=True).skipped
    empty = open_store(str(tmp_path / "nothing"))
    assert restore(empty, tmp_path / "none.db", if_replica_exists=True).skipped


def test_what_was_not_committed_at_the_end_is_left_out(forge: Forge, out: Path) -> None:
    before, last = list(forge.states)[-2:]
    raw = unpack(forge.store, last)
    frame = 24 + forge.page_size
    assert len(raw) > 2 * frame
    for length in (2 * frame, 2 * frame + 7, 5):
        rewrite(forge.store, last, raw[:length])
        restore(forge.store, out, force=True)
        assert out.read_bytes() == forge.states[before]


def test_a_segment_may_end_within_a_transaction_that_the_next_one_commits(forge: Forge, out: Path) -> None:
    """Litestream uploads a copy of the WAL that it is still writing to."""
    before, last = list(forge.states)[-2:]
    raw, size = unpack(forge.store, last), 24 + forge.page_size
    index, offset = forge.index, int(last.split("_")[1].split(".")[0], 16)
    rewrite(forge.store, last, raw[:size])
    forge.store.put(segment_key(A, index, offset + size), pack(raw[size:]), timestamp_ms=forge.time_ms + 5)
    restore(forge.store, out)
    assert out.read_bytes() == forge.states[last]
    restore(forge.store, out, timestamp_ms=forge.time_ms, force=True)
    assert out.read_bytes() == forge.states[before]


def test_a_segment_that_overlaps_the_next_is_damage(forge: Forge, out: Path) -> None:
    before, last = list(forge.states)[-2:]
    rewrite(forge.store, before, unpack(forge.store, before) + unpack(forge.store, last))
    assert "begins before" in str(refused(forge.store, out, DamagedFile))


def test_a_wal_of_only_a_header_changes_nothing(forge: Forge, out: Path) -> None:
    last = list(forge.states)[-1]
    forge.next_index()
    forge.commit()
    key = segment_key(A, forge.index, 0)
    for length in (WAL_HEADER_SIZE, WAL_HEADER_SIZE - 1, 0):
        rewrite(forge.store, key, unpack(forge.store, key)[:length])
        restore(forge.store, out, force=True)
        assert out.read_bytes() == forge.states[last]


# Damage


def test_a_missing_segment_is_named_wherever_something_goes_on_after_it(forge: Forge, out: Path) -> None:
    files = [file for file in list_generations(forge.store) if file.key != snapshot_key(A, 1)]
    forge.store.delete([snapshot_key(A, 1)])
    for file, after in pairwise(files):
        if file.is_snapshot or (after.offset == 0 and file.offset != 0):
            continue  # that the last segment of a WAL is missing cannot be seen
        body = forge.store.get(file.key)
        forge.store.delete([file.key])
        error = refused(forge.store, out, GenerationGap)
        assert error.missing == file.key
        assert "--timestamp" in str(error)
        forge.store.put(file.key, body, timestamp_ms=file.timestamp_ms)
    restore(forge.store, out)


def test_a_flipped_bit_is_damage_of_that_file(forge: Forge, out: Path, seed: int) -> None:
    choose = random.Random(seed)
    plan = plan_generation(list_generations(forge.store))
    forge.store.delete([snapshot_key(A, 0)])
    for file in plan:
        body = forge.store.get(file.key)
        for at in {*range(4), len(body) - 1, *(choose.randrange(len(body)) for _ in range(8))}:
            bad = bytearray(body)
            bad[at] ^= 1 << choose.randrange(8)
            forge.store.put(file.key, bytes(bad), timestamp_ms=file.timestamp_ms)
            if lz4_content(bytes(bad)) != lz4_content(body):  # another way to say the same is no damage
                assert refused(forge.store, out, DamagedFile).file.key == file.key, at
        forge.store.put(file.key, body, timestamp_ms=file.timestamp_ms)
    restore(forge.store, out)


def test_a_flipped_bit_under_a_whole_lz4_frame_breaks_the_chain(forge: Forge, out: Path, seed: int) -> None:
    choose = random.Random(seed)
    for file in plan_generation(list_generations(forge.store))[1:]:
        raw = unpack(forge.store, file.key)
        bad = bytearray(raw)
        bad[choose.randrange(len(raw))] ^= 1 << choose.randrange(8)
        rewrite(forge.store, file.key, bytes(bad))
        error = refused(forge.store, out, DamagedFile)
        assert error.file.key == file.key
        rewrite(forge.store, file.key, raw)
    restore(forge.store, out)


@pytest.mark.parametrize("at", [12, 16, 23, WAL_HEADER_SIZE + 8, WAL_HEADER_SIZE + 15])
def test_a_flipped_bit_that_no_frame_checksum_covers_is_damage(forge: Forge, out: Path, at: int) -> None:
    key = segment_key(A, 2, 0)
    bad = bytearray(unpack(forge.store, key))
    bad[at] ^= 1
    rewrite(forge.store, key, bytes(bad))
    assert refused(forge.store, out, DamagedFile).file.key == key


def test_a_file_that_became_shorter_than_listed_is_damage(forge: Forge, tmp_path: Path) -> None:
    *plan, last = plan_generation(list_generations(forge.store))
    with pytest.raises(DamagedFile, match=f"ends at byte {last.size} of {last.size + 9}"):
        generation_to(forge.store, [*plan, replace(last, size=last.size + 9)], tmp_path / "made.db")


def test_a_cut_off_segment_is_named_when_anything_goes_on_after_it(forge: Forge, out: Path) -> None:
    plan = plan_generation(list_generations(forge.store))
    frame = 24 + forge.page_size
    for file, after in pairwise(plan[1:]):
        raw = unpack(forge.store, file.key)
        for length in (len(raw) - 1, len(raw) - frame):
            rewrite(forge.store, file.key, raw[:length])
            if after.offset:
                assert refused(forge.store, out, GenerationGap).after.key == after.key
            else:
                assert refused(forge.store, out, DamagedFile).file.key == file.key
        rewrite(forge.store, file.key, raw)


@pytest.mark.parametrize("body", [b"", b"\x04\x22\x4d", b"something else", pack(b""), pack(b"a page of nothing" * 99)])
def test_a_snapshot_that_is_none_is_named(forge: Forge, out: Path, body: bytes) -> None:
    for index in (0, 1):
        forge.store.put(snapshot_key(A, index), body, timestamp_ms=1_750_000_000_000)
    assert refused(forge.store, out, DamagedFile).file.key == snapshot_key(A, 1)


def test_a_snapshot_alone_that_ends_within_a_page_is_damage(make: Callable[..., Forge], out: Path) -> None:
    forge = make()
    key = forge.snapshot()
    rewrite(forge.store, key, unpack(forge.store, key)[:-1])
    assert "no number of pages" in str(refused(forge.store, out, DamagedFile))


def test_more_bytes_after_the_frame_are_damage(forge: Forge, out: Path) -> None:
    last = list(forge.states)[-1]
    forge.store.put(last, forge.store.get(last) + b"x", timestamp_ms=forge.time_ms)
    assert refused(forge.store, out, DamagedFile).file.key == last


def test_a_damaged_snapshot_is_gone_around(forge: Forge, out: Path) -> None:
    snapshot = next(file for file in list_generations(forge.store) if file.key == snapshot_key(A, 1))
    forge.store.put(snapshot.key, forge.store.get(snapshot.key)[:-1], timestamp_ms=snapshot.timestamp_ms)
    report = restore(forge.store, out)
    assert out.read_bytes() == list(forge.states.values())[-1]
    assert report.went_around == (snapshot_key(A, 1),)
    assert report.plan[0].key == snapshot_key(A, 0)
    at = list(forge.states)[-4]
    time_ms = next(file.timestamp_ms for file in list_generations(forge.store) if file.key == at)
    restore(forge.store, out, timestamp_ms=time_ms, force=True)
    assert out.read_bytes() == forge.states[at]


def test_a_snapshot_removed_after_it_was_listed_is_gone_around(forge: Forge, tmp_path: Path) -> None:
    plan = plan_generation(list_generations(forge.store))
    forge.store.delete([snapshot_key(A, 1)])
    restored, around = restore_generation(forge.store, plan, tmp_path / "made.db")
    assert around == (snapshot_key(A, 1),)
    assert restored.files == 10


def test_an_error_leaves_no_thread_behind(forge: Forge, out: Path) -> None:
    forge.store.put(snapshot_key(A, 1), b"", timestamp_ms=forge.time_ms)
    forge.store.put(snapshot_key(A, 0), b"", timestamp_ms=forge.time_ms)
    with pytest.raises(DamagedFile) as kept:
        restore(forge.store, out)
    assert kept.tb is not None  # alive, and with it every frame of the traceback
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("walcast")] == []


def test_the_error_says_how_far_the_archive_restores_without_the_file(forge: Forge, out: Path) -> None:
    before, last = list(forge.states)[-2:]
    forge.store.put(last, forge.store.get(last)[:-1], timestamp_ms=forge.time_ms)
    hint = f"restores to --timestamp {format_moment(forge.time_ms - 1000)}"
    assert hint in str(refused(forge.store, out, DamagedFile))
    restore(forge.store, out, timestamp_ms=forge.time_ms - 1000)
    assert out.read_bytes() == forge.states[before]


def test_no_time_is_named_that_would_not_help(forge: Forge, out: Path) -> None:
    for file in list_generations(forge.store):  # as after a copy that kept no times
        forge.store.put(file.key, forge.store.get(file.key), timestamp_ms=forge.time_ms)
    last = list(forge.states)[-1]
    forge.store.put(last, forge.store.get(last)[:-1], timestamp_ms=forge.time_ms)
    assert "--timestamp" not in str(refused(forge.store, out, DamagedFile))


def test_a_segment_of_another_generation_is_damage(make: Callable[..., Forge], out: Path) -> None:
    forge, other = history(make(seed=1)), history(make(seed=1, generation=B))
    other.store.delete([key for key in other.states if key != segment_key(B, 1, 0)])
    key = segment_key(A, 1, 0)
    forge.store.put(key, other.store.get(segment_key(B, 1, 0)), timestamp_ms=forge.time_ms)
    other.store.delete([segment_key(B, 1, 0)])
    assert restore_error(forge.store, out)


def test_an_encrypted_file_is_named_as_such(forge: Forge, out: Path) -> None:
    forge.store.put(snapshot_key(A, 1), b"age-encryption.org/v1\n-> X25519 ...", timestamp_ms=forge.time_ms)
    with pytest.raises(ConfigError, match="encrypted with age"):
        restore(forge.store, out)


# One WAL


@pytest.mark.parametrize("big_endian", [False, True])
def test_a_wal_is_the_same_in_any_pieces_and_either_byte_order(tmp_path: Path, big_endian: bool, seed: int) -> None:
    choose, page_size = random.Random(seed), 512
    pages = np.frombuffer(choose.randbytes(40 * page_size), np.uint8).reshape(40, page_size)
    pgnos = np.array([choose.randrange(1, 30) for _ in range(40)], np.uint32)
    commits = np.array([25 if at % 7 == 6 else 0 for at in range(40)], np.uint32)
    header = WalHeader.new(page_size, (3, 4), 0, big_endian=big_endian)
    frames = np.zeros(40, frame_dtype(page_size))
    frames["pgno"], frames["commit"], frames["salt"], frames["page"] = pgnos, commits, (3, 4), pages
    frames["cksum"] = frame_checksums(page_size, pgnos, commits, pages, header.cksum, big_endian)
    data = header.encode() + frames.tobytes()
    expected = bytearray(25 * page_size)
    for at in range(35):
        if pgnos[at] <= 25:
            expected[(pgnos[at] - 1) * page_size : pgnos[at] * page_size] = pages[at].tobytes()
    for longest in (len(data), 1, 700):
        wal = RestoredWal(tmp_path / "x-wal", page_size)
        at = 0
        while at < len(data):
            length = choose.randint(1, longest)
            wal.feed(data[at : at + length])
            at += length
        assert (wal.size, wal.frames, wal.committed, wal.torn_bytes) == (len(data), 40, 35, 0)
        with (tmp_path / "x").open("w+b") as database:
            wal.apply(database.fileno())
            assert database.read() == bytes(expected)
        wal.close()
    assert not (tmp_path / "x-wal").exists()


def test_a_wal_of_another_page_size_is_damage(tmp_path: Path) -> None:
    wal = RestoredWal(tmp_path / "x-wal", 4096)
    with pytest.raises(Corrupt, match="page size 512"):
        wal.feed(WalHeader.new(512, (1, 2), 0).encode())
    wal.close()


def lz4_content(body: bytes) -> bytes | None:
    try:
        return bytes(lz4.frame.decompress(body))
    except RuntimeError:
        return None


def unpack(store: Store, key: str) -> bytes:
    return bytes(lz4.frame.decompress(store.get(key)))


def rewrite(store: Store, key: str, raw: bytes) -> None:
    """Other content under whole LZ4 checksums, at the same time."""
    time_ms = next(found.timestamp_ms for found in store.list(key))
    store.put(key, pack(raw), timestamp_ms=time_ms)


def restore_error(store: Store, out: Path) -> Exception:
    with pytest.raises((Corrupt, GenerationGap)) as caught:
        restore(store, out)
    assert not out.parent.exists() or not list(out.parent.iterdir())
    return caught.value


def refused(store: Store, out: Path, kind: type[E]) -> E:
    error = restore_error(store, out)
    assert isinstance(error, kind), error
    return error

"""Several archive files → one: what it does to a database is what they do one after the other."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walcast import ltx
from walcast.archive import ArchiveFile, ltx_key
from walcast.checksum import lock_pgno
from walcast.errors import Corrupt
from walcast.position import CHECKSUM_FLAG
from walcast.store import ObjectMissing, Store
from walcast.store.directory import DirectoryStore
from walcast_primary.archiving.compaction import WINDOW_BYTES, Written, compact, prove

Pages = dict[int, bytes]
PAGE_SIZE = 512


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "archive")


def put(
    store: Store, min_txid: int, max_txid: int, pages: Pages, commit_pages: int, *, page_size: int = PAGE_SIZE
) -> ArchiveFile:
    header = ltx.Header(
        page_size=page_size,
        commit_pages=commit_pages,
        min_txid=min_txid,
        max_txid=max_txid,
        timestamp_ms=1000 + max_txid,
        flags=ltx.FLAG_NO_CHECKSUM,
        database_checksum=CHECKSUM_FLAG | max_txid,
        term=7,
    )
    data = bytearray()
    encoder = ltx.Encoder(header, data.extend)
    for pgno in sorted(pages):
        encoder.add(pgno, pages[pgno])
    encoder.finish()
    key = ltx_key(store, 0, min_txid, max_txid)
    store.put(key, bytes(data), timestamp_ms=header.timestamp_ms)
    return ArchiveFile(0, min_txid, max_txid, len(data), header.timestamp_ms, key)


def compacted(store: Store, files: list[ArchiveFile]) -> tuple[ltx.Header, Pages, Written]:
    data = bytearray()
    written = compact(store, files, data.extend)
    header, pages, trailer = ltx.decode_file(data)
    assert (header, trailer) == (written.header, written.trailer)
    return header, {page.pgno: page.data for page in pages}, written


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 12))
def test_the_file_is_the_last_version_of_every_page_that_the_inputs_have(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    rng = random.Random(seed)
    store = DirectoryStore(tmp_path_factory.mktemp("archive"))
    oracle: Pages = {}
    files: list[ArchiveFile] = []
    txid, commit_pages = 1, 20
    for _ in range(count):
        first, txid = txid + 1, txid + rng.randint(1, 3)
        before, commit_pages = commit_pages, max(1, commit_pages + rng.randint(-6, 6))
        pgnos = set(rng.sample(range(1, commit_pages + 1), rng.randint(1, commit_pages)))
        pgnos |= set(range(before + 1, commit_pages + 1))  # a database grows by pages that are written
        pages = {pgno: rng.randbytes(4) * (PAGE_SIZE // 4) for pgno in pgnos}
        oracle = {pgno: page for pgno, page in (oracle | pages).items() if pgno <= commit_pages}
        files.append(put(store, first, txid, pages, commit_pages))
    header, pages, _ = compacted(store, files)
    assert pages == oracle
    assert (header.min_txid, header.max_txid, header.commit_pages) == (2, txid, commit_pages)
    assert (header.timestamp_ms, header.term, header.database_checksum) == (1000 + txid, 7, CHECKSUM_FLAG | txid)


def test_a_page_cut_off_inside_the_range_is_in_only_when_it_came_back(store: DirectoryStore) -> None:
    one, two = b"1" * PAGE_SIZE, b"2" * PAGE_SIZE
    files = [put(store, 2, 2, {1: one, 9: one}, 9), put(store, 3, 3, {1: two}, 3)]
    assert compacted(store, files)[1] == {1: two}
    files.append(put(store, 4, 4, {9: two}, 9))
    assert compacted(store, files)[1][9] == two


def test_the_page_at_one_gib_is_in_none(store: DirectoryStore) -> None:
    page, lock = b"x" * 65536, lock_pgno(65536)
    pages = {lock - 1: page, lock + 1: page}
    files = [put(store, 2, 2, pages, lock + 1, page_size=65536), put(store, 3, 3, {1: page}, lock + 1, page_size=65536)]
    assert set(compacted(store, files)[1]) == {1, lock - 1, lock + 1}


@pytest.mark.parametrize(
    ("second", "why"),
    [((4, 5), "do not continue"), ((2, 2), "do not continue"), ((1, 1), "do not continue")],
    ids=["a hole", "the same again", "older"],
)
def test_files_that_do_not_continue_each_other_are_refused(
    store: DirectoryStore, second: tuple[int, int], why: str
) -> None:
    page = b"x" * PAGE_SIZE
    files = [put(store, 2, 2, {1: page}, 1), put(store, *second, {1: page}, 1)]
    with pytest.raises(Corrupt, match=why):
        compacted(store, files)


@pytest.mark.parametrize("damage", ["flipped", "cut", "another's name", "gone"])
def test_an_input_that_is_not_what_it_must_be_is_named(store: DirectoryStore, damage: str) -> None:
    rng = random.Random(1)
    files = [put(store, txid, txid, {1: rng.randbytes(PAGE_SIZE)}, 1) for txid in (2, 3, 4)]
    path = store.root / files[1].key
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[300] ^= 4
    elif damage == "cut":
        del data[-20:]
    elif damage == "another's name":
        data = bytearray((store.root / files[0].key).read_bytes())
    path.write_bytes(data)
    if damage == "gone":
        path.unlink()
    with pytest.raises(ObjectMissing if damage == "gone" else Corrupt, match=files[1].key):
        compacted(store, files)


def test_what_was_written_is_proven_by_reading_it_back(store: DirectoryStore) -> None:
    page = b"x" * PAGE_SIZE
    files = [put(store, txid, txid, {1: page}, 1) for txid in (2, 3)]
    data = bytearray()
    written = compact(store, files, data.extend)
    store.put("there", bytes(data), timestamp_ms=0)
    prove(store, "there", written)
    store.put("there", (store.root / files[0].key).read_bytes(), timestamp_ms=0)
    prove(store, "there")  # whole, but another
    with pytest.raises(Corrupt, match="not what was written"):
        prove(store, "there", written)
    store.put("there", bytes(data[:-1]), timestamp_ms=0)
    with pytest.raises(Corrupt):
        prove(store, "there", written)


def test_memory_is_a_window_whatever_the_size(store: DirectoryStore) -> None:
    rng = random.Random(2)
    pages = 2000
    noise = [rng.randbytes(4096) for _ in range(pages)]
    files = [
        put(store, txid, txid, dict(enumerate(noise[txid:] + noise[:txid], 1)), pages, page_size=4096)
        for txid in range(2, 8)
    ]
    assert sum(file.size for file in files) > 2.5 * WINDOW_BYTES
    tracemalloc.start()
    try:
        compact(store, files, lambda data: None)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * WINDOW_BYTES
    finally:
        tracemalloc.stop()


def test_it_ends_when_told_to(store: DirectoryStore) -> None:
    page = b"x" * PAGE_SIZE
    files = [put(store, 2, 2, dict.fromkeys(range(1, 600), page), 600)]

    class Enough(Exception):
        pass

    def tick() -> None:
        raise Enough

    with pytest.raises(Enough):
        compact(store, files, lambda data: None, tick)

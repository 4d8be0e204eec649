"""The wal-index, against the one SQLite writes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import apsw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walcast.dbfiles import DatabaseFiles
from walcast.walindex import (
    BLOCK_SIZE,
    FRAMES_FIRST_BLOCK,
    FRAMES_PER_BLOCK,
    HEADER_SIZE,
    INDEX_HEADER_SIZE,
    HashBlock,
    IndexHeader,
    frame_block,
)


def new_block(first: bool = False) -> HashBlock:
    return HashBlock.of(memoryview(bytearray(BLOCK_SIZE)), first)


@pytest.mark.parametrize("page_size", [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_a_header_is_encoded_as_sqlite_does(tmp_path: Path, page_size: int) -> None:
    path = tmp_path / "app.db"
    connection = apsw.Connection(str(path))
    connection.execute(f"PRAGMA page_size = {page_size}; PRAGMA journal_mode = WAL; CREATE TABLE t (a)").fetchall()
    files = DatabaseFiles(path)
    for i in range(5):
        connection.execute("INSERT INTO t VALUES (randomblob(3000))")
        header = files.index_header()
        assert header is not None
        assert (header.page_size, header.change) == (page_size, i + 2)
        assert header.encode() == files.block(0)[:HEADER_SIZE]
    connection.close()
    files.close()


def test_a_torn_or_damaged_header_is_none() -> None:
    data = IndexHeader(5, 4096, 10, 7, (1, 2), (3, 4)).encode()
    newer = IndexHeader(6, 4096, 12, 7, (5, 6), (3, 4)).encode()
    assert IndexHeader.decode(data + data) == IndexHeader(5, 4096, 10, 7, (1, 2), (3, 4))
    assert IndexHeader.decode(data + newer) is None
    for cut in range(1, HEADER_SIZE):
        torn = newer[:cut] + data[cut:]
        if torn not in (data, newer):
            assert IndexHeader.decode(torn + torn) is None, cut
    assert IndexHeader.decode(bytes(2 * HEADER_SIZE)) is None


def test_frames_stand_in_blocks_of_4062_and_then_4096() -> None:
    assert frame_block(1) == (0, 0)
    assert frame_block(FRAMES_FIRST_BLOCK) == (0, FRAMES_FIRST_BLOCK - 1)
    assert frame_block(FRAMES_FIRST_BLOCK + 1) == (1, 0)
    assert frame_block(FRAMES_FIRST_BLOCK + FRAMES_PER_BLOCK) == (1, FRAMES_PER_BLOCK - 1)
    assert frame_block(FRAMES_FIRST_BLOCK + FRAMES_PER_BLOCK + 1) == (2, 0)
    assert len(new_block(first=True).pgnos) == FRAMES_FIRST_BLOCK
    assert len(new_block().pgnos) == FRAMES_PER_BLOCK


def test_blocks_are_byte_for_byte_those_of_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA page_size = 512; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0").fetchall()
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
    for i in range(3500):
        connection.execute("INSERT OR REPLACE INTO t VALUES (?, randomblob(900))", (i * 7919 % 1000,))
    files = DatabaseFiles(path)
    header = files.index_header()
    assert header is not None
    pgnos = files.frame_pgnos(header.mx_frame)
    assert header.mx_frame > FRAMES_FIRST_BLOCK + FRAMES_PER_BLOCK
    start = 0
    for number in range(frame_block(header.mx_frame)[0] + 1):
        made = memoryview(bytearray(BLOCK_SIZE))
        block = HashBlock.of(made, number == 0)
        part = pgnos[start : start + len(block.pgnos)].tolist()
        block.insert(0, part[:1000])
        block.insert(min(1000, len(part)), part[1000:])
        offset = INDEX_HEADER_SIZE if number == 0 else 0
        assert bytes(made[offset:]) == files.block(number)[offset:]
        start += len(part)
    connection.close()
    files.close()


@settings(deadline=None, max_examples=60)
@given(
    batches=st.lists(
        st.lists(st.one_of(st.integers(1, 12), st.integers(1, 2**32 - 2)), min_size=1, max_size=60), max_size=12
    ),
    keep=st.integers(0, 800),
    first=st.booleans(),
)
def test_the_newest_frame_of_every_page_is_found(batches: list[list[int]], keep: int, first: bool) -> None:
    block = new_block(first)
    pgnos: list[int] = []
    for batch in batches:
        block.insert(len(pgnos), batch)
        pgnos += batch
    for mx in {len(pgnos), min(keep, len(pgnos))}:
        newest = {pgno: i for i, pgno in enumerate(pgnos[:mx], 1)}
        assert all(block.find(pgno, mx) == newest.get(pgno, 0) for pgno in {*pgnos, 13})
    keep = min(keep, len(pgnos))
    block.clean(keep)
    fresh = new_block(first)
    if keep:
        fresh.insert(0, pgnos[:keep])
    assert block.pgnos == fresh.pgnos
    assert block.slots == fresh.slots


def test_a_full_block_of_one_page_and_of_many_is_found() -> None:
    for pgnos in ([7] * FRAMES_PER_BLOCK, list(range(1, FRAMES_PER_BLOCK + 1)), [8192 * i + 1 for i in range(4096)]):
        block = new_block()
        block.insert(0, pgnos)
        newest = {pgno: i for i, pgno in enumerate(pgnos, 1)}
        for pgno in list(newest)[::97]:
            assert block.find(pgno, len(pgnos)) == newest[pgno]


def test_a_blocks_first_entry_clears_what_was_there() -> None:
    block = new_block()
    block.insert(0, [1, 2, 3] * 1000)
    block.insert(0, [9])
    assert np.count_nonzero(np.frombuffer(block.slots, np.uint16)) == 1
    assert np.count_nonzero(np.frombuffer(block.pgnos, np.uint32)) == 1


def test_stock_sqlite_reads_the_pages_we_enter(tmp_path: Path) -> None:
    """SQLite's own entries are replaced with ours: every row is still found."""
    path = tmp_path / "app.db"
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA page_size = 512; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0").fetchall()
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
    for i in range(900):
        connection.execute("INSERT INTO t VALUES (?, randomblob(900))", (i,))
    expected = connection.execute("SELECT sum(a), total(length(b)) FROM t").fetchall()
    files = DatabaseFiles(path, writable=True)
    header = files.index_header()
    assert header is not None
    pgnos = files.frame_pgnos(header.mx_frame).tolist()
    block = HashBlock.of(memoryview(files.block(0)), True)
    assert len(pgnos) <= len(block.pgnos)
    # Other slots for the same entries: in another order of insertion SQLite must find them all the same.
    block.insert(0, pgnos)
    other = apsw.Connection(str(path))
    assert other.execute("SELECT sum(a), total(length(b)) FROM t").fetchall() == expected
    assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    block.release()
    other.close()
    connection.close()
    files.close()
    assert sqlite3.sqlite_version_info > (3, 7)

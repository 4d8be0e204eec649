"""WAL checksums and what recovery finds, against real SQLite and a deliberately dumb oracle."""

from __future__ import annotations

import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walcast.errors import Corrupt
from walcast.wal import (
    FRAME_HEADER_SIZE,
    WAL_HEADER_SIZE,
    WalHeader,
    checksum,
    frame_checksums,
    frame_dtype,
    frame_offset,
    record_checksums,
    valid_frames,
)

PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


def make_wal(directory: Path, page_size: int, rows: int, size: int = 300) -> tuple[bytes, bytes]:
    """A database file and its WAL, written by SQLite: one commit for the table and one for each row."""
    path = directory / "made.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(f"PRAGMA page_size = {page_size}; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0")
    db.execute("CREATE TABLE t (a)")
    for i in range(rows):
        db.execute("INSERT INTO t VALUES (?)", (bytes([i % 251]) * size,))
    found = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    db.close()
    return found


def sqlite_recovers(directory: Path, database: bytes, wal: bytes) -> int:
    """How many frames SQLite itself finds in this WAL."""
    path = directory / "recovered.db"
    path.write_bytes(database)
    Path(f"{path}-wal").write_bytes(wal)
    Path(f"{path}-shm").unlink(missing_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    try:
        return max(0, int(db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]))
    finally:
        db.close()


def slow_checksums(
    pages: list[bytes], heads: list[tuple[int, int]], seed: tuple[int, int], big: bool
) -> list[tuple[int, int]]:
    """Word by word."""
    sums = []
    for page, (pgno, commit) in zip(pages, heads, strict=True):
        seed = checksum(pgno.to_bytes(4, "big") + commit.to_bytes(4, "big") + page, seed, big)
        sums.append(seed)
    return sums


def read(wal: bytes) -> int | None:
    """As a restart does it: None for a file that is no WAL."""
    try:
        header = WalHeader.decode(wal)
    except Corrupt:
        return None
    return 0 if header is None else valid_frames(wal[WAL_HEADER_SIZE:], header)


def commit_ends(wal: bytes) -> list[int]:
    """The frames that end a commit."""
    header = WalHeader.decode(wal)
    assert header is not None
    frames = np.frombuffer(wal[WAL_HEADER_SIZE:], frame_dtype(header.page_size))
    return (np.flatnonzero(frames["commit"]) + 1).tolist()


def last_commit_before(ends: list[int], frames: int) -> int:
    return max((end for end in ends if end <= frames), default=0)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_checksums_are_those_that_sqlite_wrote(tmp_path: Path, page_size: int) -> None:
    _, wal = make_wal(tmp_path, page_size, 20, 3 * page_size)
    header = WalHeader.decode(wal)
    assert header is not None
    assert header.intact
    assert header.encode() == wal[:WAL_HEADER_SIZE]
    assert header == WalHeader.new(page_size, header.salt, header.checkpoint_seq)
    frames = np.frombuffer(wal[WAL_HEADER_SIZE:], frame_dtype(page_size))
    pgnos, commits = frames["pgno"].astype(np.uint32), frames["commit"].astype(np.uint32)
    sums = frame_checksums(page_size, pgnos, commits, frames["page"], header.cksum)
    assert sums.dtype == np.uint32
    assert (sums == frames["cksum"]).all()
    raw = np.frombuffer(wal[WAL_HEADER_SIZE:], np.uint8).reshape(len(frames), -1)
    assert (np.array(record_checksums(raw, page_size, header.cksum)) == frames["cksum"]).all()
    assert read(wal) == len(frames)


@settings(deadline=None, max_examples=60)
@given(
    page_size=st.sampled_from([512, 1024, 4096]),
    heads=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=6),
    seed=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    big=st.booleans(),
    contents=st.integers(0, 2**32),
    cut=st.integers(0, 6),
)
def test_bulk_checksums_are_the_slow_ones_whole_or_in_parts(
    page_size: int, heads: list[tuple[int, int]], seed: tuple[int, int], big: bool, contents: int, cut: int
) -> None:
    rng = random.Random(contents)
    pages = [rng.randbytes(page_size) if rng.random() < 0.8 else b"\xff" * page_size for _ in heads]
    expected = slow_checksums(pages, heads, seed, big)
    pgnos = np.array([pgno for pgno, _ in heads], np.uint32)
    commits = np.array([commit for _, commit in heads], np.uint32)
    data = np.frombuffer(b"".join(pages), np.uint8).reshape(-1, page_size)
    whole = frame_checksums(page_size, pgnos, commits, data, seed, big)
    assert [tuple(pair) for pair in whole.tolist()] == expected
    for part in (slice(0, cut), slice(cut, None)):
        sums = frame_checksums(page_size, pgnos[part], commits[part], data[part], seed, big)
        assert (sums == whole[part]).all()
        if len(sums):
            seed = (int(sums[-1, 0]), int(sums[-1, 1]))


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_sqlite_takes_a_wal_with_checksums_of_ours_in_either_byte_order(tmp_path: Path, page_size: int) -> None:
    database, wal = make_wal(tmp_path, page_size, 10)
    frames = np.frombuffer(bytearray(wal[WAL_HEADER_SIZE:]), frame_dtype(page_size))
    pgnos, commits = frames["pgno"].astype(np.uint32), frames["commit"].astype(np.uint32)
    for big in (False, True):
        header = WalHeader.new(page_size, (0xFFFFFFFF, 5), 3, big_endian=big)
        frames["salt"] = header.salt
        frames["cksum"] = frame_checksums(page_size, pgnos, commits, frames["page"], header.cksum, big)
        made = header.encode() + frames.tobytes()
        assert WalHeader.decode(made) == header
        assert read(made) == len(frames) == sqlite_recovers(tmp_path, database, made)


def test_a_wal_cut_at_any_byte_gives_its_whole_commits(tmp_path: Path) -> None:
    _, wal = make_wal(tmp_path, 512, 6)
    ends = commit_ends(wal)
    assert len(ends) > 4
    for length in range(len(wal) + 1):
        whole = max(0, length - WAL_HEADER_SIZE) // (512 + FRAME_HEADER_SIZE)
        assert read(wal[:length]) == last_commit_before(ends, whole), length


def test_sqlite_finds_the_same_in_a_cut_wal(tmp_path: Path) -> None:
    database, wal = make_wal(tmp_path, 512, 6)
    edges = {frame_offset(frame, 512) + d for frame in range(1, 12) for d in (-1, 0, 1, 24)}
    for length in sorted({0, 1, 31, 32, 33, *range(0, len(wal), 97), *edges, len(wal)} & {*range(len(wal) + 1)}):
        assert read(wal[:length]) == sqlite_recovers(tmp_path, database, wal[:length]), length


def test_any_flipped_bit_ends_the_wal_at_the_commit_before_it(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed={seed}")
    rng = random.Random(seed)
    database, wal = make_wal(tmp_path, 512, 6)
    ends = commit_ends(wal)
    header_bits = range(8 * WAL_HEADER_SIZE)
    for i, bit in enumerate([*header_bits, *rng.sample(range(8 * WAL_HEADER_SIZE, 8 * len(wal)), 1500)]):
        damaged = bytearray(wal)
        damaged[bit // 8] ^= 1 << bit % 8
        found = read(bytes(damaged))
        if bit in header_bits:
            # The magic's last bit says how to read the words; every other bit is covered by the checksum.
            assert not found, bit
        else:
            frame = (bit // 8 - WAL_HEADER_SIZE) // (512 + FRAME_HEADER_SIZE) + 1
            assert found == last_commit_before(ends, frame - 1), bit
            if i % 40 == 0:
                assert found == sqlite_recovers(tmp_path, database, bytes(damaged)), bit


def test_older_frames_with_the_same_salts_do_not_continue_a_newer_chain(tmp_path: Path) -> None:
    """What a crash inside a transaction leaves behind it is never taken for commits."""
    database, wal = make_wal(tmp_path, 512, 12)
    header = WalHeader.decode(wal)
    assert header is not None
    frames = np.frombuffer(bytearray(wal[WAL_HEADER_SIZE:]), frame_dtype(512))
    ends = commit_ends(wal)
    for end in ends[2:6]:
        changed = frames.copy()
        changed["page"][end - 1, 100] ^= 1  # another commit in its place, as good as any
        seed = header.cksum if end == 1 else tuple(int(v) for v in changed["cksum"][end - 2])
        pgno, commit = (changed[name][end - 1 : end].astype(np.uint32) for name in ("pgno", "commit"))
        changed["cksum"][end - 1] = frame_checksums(512, pgno, commit, changed["page"][end - 1 : end], seed)[0]
        made = wal[:WAL_HEADER_SIZE] + changed.tobytes()
        assert read(made) == end == sqlite_recovers(tmp_path, database, made)


def test_frames_of_another_salt_or_page_zero_do_not_count(tmp_path: Path) -> None:
    _, wal = make_wal(tmp_path, 512, 3)
    header = WalHeader.decode(wal)
    assert header is not None
    data = wal[WAL_HEADER_SIZE:]
    assert valid_frames(data, header) > 0
    assert valid_frames(np.frombuffer(data, frame_dtype(512)), header) == valid_frames(data, header)
    other = WalHeader.new(512, (header.salt[0] + 1, header.salt[1]), header.checkpoint_seq)
    assert valid_frames(data, other) == 0
    assert valid_frames(data, replace(header, cksum=(0, 0))) == 0
    page = np.zeros((1, 512), np.uint8)
    frame = np.zeros(1, frame_dtype(512))
    frame["commit"], frame["salt"] = 1, header.salt
    frame["cksum"] = frame_checksums(512, np.zeros(1, np.uint32), np.ones(1, np.uint32), page, header.cksum)
    assert valid_frames(frame, header) == 0


@pytest.mark.parametrize("size", range(WAL_HEADER_SIZE))
def test_a_short_header_is_no_header_yet(size: int) -> None:
    assert WalHeader.decode(WalHeader.new(4096, (1, 2), 0).encode()[:size]) is None

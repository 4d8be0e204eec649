"""The transaction log alone: what is left of it after a crash, and what it keeps."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from walcast import ltx
from walcast.checksum import PageChecksums
from walcast.position import Position
from walcast.savedsums import NAME as CHECKSUMS
from walcast.terms import first_txid
from walcast_primary.transaction_log.log_entries import append_entry
from walcast_primary.transaction_log.segment import ALLOCATION_STEP_BYTES, SUFFIX
from walcast_primary.transaction_log.transaction_log import Known, TransactionLog

PAGE_SIZE = 512
BIG = 1 << 30


def open_log(directory: Path, *, max_bytes: int = BIG, max_age_s: float = 3600.0) -> TransactionLog:
    return TransactionLog.open(directory, max_bytes=max_bytes, max_age_s=max_age_s)


def new_log(directory: Path, **bounds: float) -> TransactionLog:
    """Begun at TXID 1 of an empty database."""
    log = open_log(directory, **bounds)  # type: ignore[arg-type]
    sums = PageChecksums(PAGE_SIZE)
    log.start(sums, Position(1, sums.database))
    return log


def append(log: TransactionLog, pages: int, rng: random.Random, timestamp_ms: int | None = None) -> Position:
    """A transaction that writes pages 1 to `pages`."""
    data = [rng.randbytes(PAGE_SIZE) for _ in range(pages)]
    header = ltx.Header(
        page_size=PAGE_SIZE,
        commit_pages=pages,
        min_txid=log.position.txid + 1,
        max_txid=log.position.txid + 1,
        timestamp_ms=time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms,
        pre_checksum=log.position.checksum,
        term=log.term,
    )
    append_entry(log, header, np.arange(1, pages + 1, dtype=np.uint32), lambda i: data[i])
    return log.position


def positions(log: TransactionLog) -> list[Position]:
    """The first, and that of each entry."""
    found = [log.first]
    while (entry := log.after(found[-1].txid)) is not None:
        assert entry.pre_checksum == found[-1].checksum
        list(entry.pages())
        found.append(entry.position)
    return found


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{SUFFIX}"))


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


def test_a_log_opened_again_is_the_same(tmp_path: Path, rng: random.Random) -> None:
    log = new_log(tmp_path)
    known = [log.position] + [append(log, 3, rng) for _ in range(5)]
    assert log.checksums is not None
    sums = log.checksums.pages[:3].tolist()
    log.close()
    for _ in range(2):
        again = open_log(tmp_path)
        assert positions(again) == known
        assert again.checksums is not None
        assert again.checksums.pages[: again.checksums.commit_pages].tolist() == sums
        assert again.position == known[-1]
        again.close()
    known.append(append(again := open_log(tmp_path), 2, rng))
    assert positions(again) == known


def test_a_log_that_was_not_closed_is_the_same(tmp_path: Path, rng: random.Random) -> None:
    log = new_log(tmp_path / "log")
    known = [log.position] + [append(log, 3, rng) for _ in range(5)]
    assert segments(tmp_path / "log")[0].stat().st_size >= ALLOCATION_STEP_BYTES, "allocated ahead"
    shutil.copytree(tmp_path / "log", tmp_path / "crashed")
    assert positions(open_log(tmp_path / "crashed")) == known


def damaged_copies(tmp_path: Path, rng: random.Random) -> tuple[Path, list[Position], int, int]:
    """A log of three entries: its folder, its positions, and where the last record begins and ends."""
    directory = tmp_path / "log"
    log = new_log(directory)
    known = [log.position] + [append(log, 2, rng) for _ in range(3)]
    last = log.last
    assert last is not None
    start, end = last.offset - 16, last.offset + last.size
    log.close()
    return directory, known, start, end


def after_damage(directory: Path, to: Path, data: bytes) -> TransactionLog:
    if to.exists():
        shutil.rmtree(to)
    shutil.copytree(directory, to)
    segments(to)[0].write_bytes(data)
    return open_log(to)


def test_a_tail_cut_at_every_byte_ends_at_the_entry_before(tmp_path: Path, rng: random.Random) -> None:
    directory, known, start, end = damaged_copies(tmp_path, rng)
    data = segments(directory)[0].read_bytes()
    assert len(data) == end
    for size in range(start, end):
        zeros = bytes(rng.choice((0, 1, 100, 5000)))  # allocated ahead, not written
        log = after_damage(directory, tmp_path / "copy", data[:size] + zeros)
        if size + len(zeros) >= end and not any(data[size:]):
            continue  # what was cut off were zeros
        assert positions(log) == known[:-1], size
        assert log.position == known[-2]
        assert log.checksums is not None
        assert log.checksums.database == known[-2].checksum
    # And it goes on from there.
    new = append(log, 2, rng)
    assert new.txid == known[-1].txid
    assert new != known[-1]
    log.close()
    assert positions(open_log(tmp_path / "copy")) == [*known[:-1], new]


def last_pages(log: TransactionLog) -> list[tuple[int, bytes]]:
    assert log.last is not None
    return [(page.pgno, bytes(page.data)) for page in log.last.pages()]


def test_no_flipped_bit_in_the_last_record_is_taken_for_data(tmp_path: Path, rng: random.Random) -> None:
    """LZ4 has some bits without a meaning; LTX's checksum is over the pages, so those may go unnoticed."""
    directory, known, start, end = damaged_copies(tmp_path, rng)
    data = segments(directory)[0].read_bytes()
    right = last_pages(open_log(directory))
    meaningless = 0
    for at in range(start, end):
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.randrange(8)
        log = after_damage(directory, tmp_path / "copy", bytes(damaged))
        assert log.checksums is not None
        if log.position == known[-1]:
            assert last_pages(log) == right, at
            meaningless += 1
            continue
        assert log.position == known[-2], at
        assert positions(log) == known[:-1]
    assert meaningless < 4


def test_a_flipped_bit_further_back_ends_the_log_there_or_costs_its_checksums(
    tmp_path: Path, rng: random.Random
) -> None:
    """Never a position that the entries do not lead to."""
    directory, known, start, _ = damaged_copies(tmp_path, rng)
    data = segments(directory)[0].read_bytes()
    for at in range(0, start, 7):
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.randrange(8)
        log = after_damage(directory, tmp_path / "copy", bytes(damaged))
        if log.checksums is not None:
            assert log.position in known, at
            assert log.checksums.database == log.position.checksum


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped"])
def test_without_checksums_a_new_history_begins_behind_every_txid(
    tmp_path: Path, rng: random.Random, damage: str
) -> None:
    log = new_log(tmp_path)
    for _ in range(4):
        append(log, 3, rng)
    last = log.position
    log._save_checksums()
    log.close()
    path = tmp_path / CHECKSUMS
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        os.truncate(path, path.stat().st_size - 3)
    else:
        data = bytearray(path.read_bytes())
        data[-2] ^= 4
        path.write_bytes(data)
    again = open_log(tmp_path)
    assert again.checksums is None
    assert again.position == last, "the TXIDs that were given are known"


def test_an_empty_folder_is_a_log_without_a_position(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    assert log.checksums is None
    assert log.position == Position()
    assert log.last is None
    assert log.after(0) is None


def test_a_crash_between_two_segments_loses_nothing(tmp_path: Path, rng: random.Random) -> None:
    """The checksums are newer than the newest segment, or the newest segment is still empty."""
    log = new_log(tmp_path / "log", max_bytes=BIG)
    log.segment_bytes = 1
    known = [log.position] + [append(log, 200, rng) for _ in range(3)]
    assert len(segments(tmp_path / "log")) == 3
    log._save_checksums()
    log.close()
    assert positions(open_log(tmp_path / "log")) == known
    (tmp_path / "log" / f"{known[-1].txid + 1:016x}{SUFFIX}").write_bytes(b"")
    assert positions(open_log(tmp_path / "log")) == known


def test_trimming_keeps_to_the_bound_and_the_newest(tmp_path: Path, rng: random.Random) -> None:
    log = new_log(tmp_path, max_bytes=1 << 20)
    for i in range(120):
        append(log, 50, rng)
        assert log.size_bytes <= (1 << 20) + 2 * log.segment_bytes, i
    assert 1 < len(segments(tmp_path)) < 10
    known = positions(log)
    assert known[-1] == log.position
    assert log.first.txid > 1
    assert log.knows(log.first) is Known.YES
    assert log.knows(known[3]) is Known.YES
    assert log.knows(Position(known[3].txid, known[3].checksum ^ 1)) is Known.DIVERGED
    assert log.knows(Position(log.first.txid - 1, 5)) is Known.OLDER
    assert log.knows(Position(log.position.txid + 1, 5)) is Known.DIVERGED
    log.close()
    assert positions(open_log(tmp_path)) == known


def test_a_pin_holds_trimming_back_up_to_a_bound(tmp_path: Path, rng: random.Random) -> None:
    log = new_log(tmp_path, max_bytes=1 << 20)
    with log.pin():
        start = log.position
        while log.size_bytes < 2 << 20:
            append(log, 100, rng)
        assert log.after(start.txid) is not None
        while log.first == start:
            append(log, 100, rng)
            assert log.size_bytes < 6 << 20, "even a pinned log is bounded"
    for _ in range(20):
        append(log, 100, rng)
    assert log.size_bytes <= (1 << 20) + 2 * log.segment_bytes


def test_old_segments_go_by_age(tmp_path: Path, rng: random.Random) -> None:
    log = new_log(tmp_path, max_bytes=1 << 20)
    long_ago = int((time.time() - 600) * 1000)
    while len(segments(tmp_path)) < 3:
        append(log, 100, rng, timestamp_ms=long_ago)
    append(log, 100, rng)
    log.max_age_s = 60.0
    log.trim()
    assert len(segments(tmp_path)) == 1
    assert log.after(log.position.txid - 1) is not None


def test_a_reader_of_a_trimmed_entry_is_not_cut_off(tmp_path: Path, rng: random.Random) -> None:
    log = new_log(tmp_path, max_bytes=1 << 20)
    append(log, 100, rng)
    entry = log.last
    assert entry is not None
    while log.first.txid < entry.max_txid:
        append(log, 100, rng)
    assert not entry.segment.path.exists()
    assert len(list(entry.pages())) == 100


def test_listeners_hear_of_an_entry_when_it_is_there(tmp_path: Path, rng: random.Random) -> None:
    log = new_log(tmp_path)
    heard: list[Position] = []
    forget = log.listen(lambda: heard.append(log.position))
    first = append(log, 2, rng)
    forget()
    append(log, 2, rng)
    assert heard == [first]


def test_a_state_is_named_by_its_checksum_as_far_as_the_log_reaches(tmp_path: Path, rng: random.Random) -> None:
    log = new_log(tmp_path, max_bytes=1 << 20)
    start = log.position
    assert log.named(start.checksum) == (1, start), "a log without an entry"
    first = append(log, 100, rng)
    assert log.named(start.checksum) == (1, start), "where its first entry begins"
    log.term = 2
    while len(segments(tmp_path)) < 3:
        append(log, 100, rng)
    for position in positions(log):
        assert log.named(position.checksum) == (2 if position.txid > first.txid else 1, position)
    assert log.named(first.checksum ^ 1) is None
    while log.first.txid <= first.txid:
        append(log, 100, rng)
    assert log.named(first.checksum) is None, "the log has moved on"
    assert log.named(0) is None


def test_of_two_states_with_the_same_bytes_the_newer_one_is_named(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    one, other, again = (append(log, 1, random.Random(seed)) for seed in (1, 2, 1))
    assert one.checksum == again.checksum
    assert log.named(one.checksum) == (1, again)
    assert log.named(other.checksum) == (1, other)


def test_a_state_before_a_term_is_named_of_the_term_before(tmp_path: Path, rng: random.Random) -> None:
    """The log of a new primary begins with the entry that parts its term from the one before."""
    log = open_log(tmp_path)
    sums = PageChecksums(PAGE_SIZE)
    log.term = 7
    log.start(sums, Position(100, sums.database))
    header = ltx.Header(
        page_size=PAGE_SIZE,
        commit_pages=1,
        min_txid=101,
        max_txid=first_txid(100),
        timestamp_ms=1,
        pre_checksum=sums.database,
        term=7,
    )
    before = log.position
    append_entry(log, header, np.array([1], np.uint32), lambda _: rng.randbytes(PAGE_SIZE))
    assert log.named(before.checksum) == (6, before)
    assert log.named(log.position.checksum) == (7, log.position)


def test_lag_in_bytes_is_what_the_log_has_beyond_a_position(tmp_path: Path, rng: random.Random) -> None:
    """Over segments, and of what the log has let go of: nothing is known."""
    log = new_log(tmp_path, max_bytes=256 << 10)
    for _ in range(100):
        append(log, 8, rng)
    assert len(segments(tmp_path)) > 1
    newest, last = log.position.txid, log.last
    assert last is not None
    each = range(last.size)
    assert log.bytes_after(newest) == log.bytes_after(newest + 5) == 0
    for behind in range(1, 30):
        assert len(each) * behind - 64 < (log.bytes_after(newest - behind) or 0) <= (len(each) + 64) * behind
    first = log.first.txid
    assert log.bytes_after(first) is not None
    assert first == 0 or log.bytes_after(first - 1) is None
    log.close()

"""The position journal."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from walcast.position import Position
from walcast_follower.apply.position_journal import COMPACT_BYTES, KEEP_RECORDS, RECORD_SIZE, Journal


def position(i: int) -> Position:
    return Position(i, (1 << 63) + i)


def filled(directory: Path, count: int) -> Path:
    journal = Journal(directory)
    for i in range(1, count + 1):
        journal.append(7, position(i), 1000 + i)
    journal.close()
    return directory / "positions"


def test_an_empty_journal_knows_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    assert journal.last() is None
    assert journal.find(1 << 63) is None
    journal.sync()
    journal.close()


def test_positions_are_found_again_by_checksum(tmp_path: Path) -> None:
    filled(tmp_path, 100)
    journal = Journal(tmp_path)
    assert journal.last() == (7, position(100))
    assert all(journal.find((1 << 63) + i) == (7, position(i)) for i in range(1, 101))
    assert journal.find((1 << 63) + 101) is None
    journal.close()


def test_the_newest_position_with_a_checksum_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(1, Position(5, 1 << 63), 0)
    journal.append(2, Position(9, 1 << 63), 0)
    assert journal.find(1 << 63) == (2, Position(9, 1 << 63))
    journal.close()


def test_it_stays_small_and_keeps_the_newest(tmp_path: Path) -> None:
    count = 3 * COMPACT_BYTES // RECORD_SIZE
    file = filled(tmp_path, count)
    assert file.stat().st_size <= COMPACT_BYTES + RECORD_SIZE
    journal = Journal(tmp_path)
    for i in range(count, count - KEEP_RECORDS, -97):
        assert journal.find((1 << 63) + i) == (7, position(i))
    assert [path.name for path in tmp_path.iterdir()] == ["positions"]
    journal.close()


@pytest.mark.parametrize("cut", range(2 * RECORD_SIZE))
def test_a_torn_tail_is_left_out_and_written_over(tmp_path: Path, cut: int) -> None:
    file = filled(tmp_path, 4)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) - cut])
    journal = Journal(tmp_path)
    whole = 4 - -(-cut // RECORD_SIZE)
    assert journal.last() == (7, position(whole))
    journal.append(8, position(50), 0)
    journal.close()
    again = Journal(tmp_path)
    assert again.last() == (8, position(50))
    assert again.find((1 << 63) + whole) == (7, position(whole))
    again.close()


def test_damaged_records_are_left_out(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed={seed}")
    rng = random.Random(seed)
    file = filled(tmp_path, 20)
    good = file.read_bytes()
    for _ in range(200):
        bit = rng.randrange(len(good) * 8)
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        journal = Journal(tmp_path)
        damaged = bit // 8 // RECORD_SIZE + 1
        found = [i for i in range(1, 21) if journal.find((1 << 63) + i) == (7, position(i))]
        assert found == [i for i in range(1, 21) if i != damaged]
        journal.close()


def test_garbage_is_no_position(tmp_path: Path) -> None:
    (tmp_path / "positions").write_bytes(random.Random(0).randbytes(100_003))
    journal = Journal(tmp_path)
    assert journal.last() is None
    journal.append(1, position(1), 0)
    assert journal.last() == (1, position(1))
    journal.close()

"""Reading a file of a bounded size."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from walcast.filesystem import read_at_most


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_a_file_of_at_most_so_many_bytes_is_read_whole(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    with path.open("rb") as file:
        assert read_at_most(file, 1000) == b"x" * size


def test_of_a_larger_file_one_byte_more_than_allowed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    with path.open("rb") as file:
        assert len(read_at_most(file, 1000)) == 1001


def test_what_does_not_say_its_size_is_read_whole() -> None:
    down, up = os.pipe()
    with os.fdopen(down, "rb") as file:
        with os.fdopen(up, "wb") as into:
            into.write(b"x" * 30_000)
        assert read_at_most(file, 1 << 20) == b"x" * 30_000


def test_a_small_file_takes_little_memory_whatever_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    with path.open("rb") as file:
        tracemalloc.start()
        try:
            read_at_most(file, 256 << 20)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()

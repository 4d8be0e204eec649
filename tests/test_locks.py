"""Open-file-description locks, and how they meet SQLite's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from walcast.locks import try_lock, unlock


@pytest.fixture
def fds(tmp_path: Path) -> Iterator[tuple[int, int]]:
    path = tmp_path / "file"
    path.touch()
    pair = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    yield pair
    for fd in pair:
        os.close(fd)


def test_an_exclusive_lock_shuts_out_every_other(fds: tuple[int, int]) -> None:
    a, b = fds
    assert try_lock(a, 120)
    assert try_lock(a, 120), "one's own lock is no obstacle"
    assert not try_lock(b, 120)
    assert not try_lock(b, 120, exclusive=False)
    assert try_lock(b, 121)
    unlock(a, 120)
    assert try_lock(b, 120)


def test_shared_locks_go_together(fds: tuple[int, int]) -> None:
    a, b = fds
    assert try_lock(a, 124, exclusive=False)
    assert try_lock(b, 124, exclusive=False)
    assert not try_lock(a, 124)
    unlock(b, 124)
    assert try_lock(a, 124)


def test_a_range_is_locked_whole_or_not_at_all(fds: tuple[int, int]) -> None:
    a, b = fds
    assert try_lock(a, 126, exclusive=False)
    assert not try_lock(b, 124, 4)
    assert try_lock(a, 124)
    unlock(a, 124, 4)
    assert try_lock(b, 124, 4)


def test_closing_another_descriptor_of_the_file_keeps_a_lock(fds: tuple[int, int], tmp_path: Path) -> None:
    a, b = fds
    assert try_lock(a, 120)
    os.close(os.open(tmp_path / "file", os.O_RDWR))
    assert not try_lock(b, 120)


def test_it_ends_when_its_file_is_closed(fds: tuple[int, int], tmp_path: Path) -> None:
    a, _ = fds
    c = os.open(tmp_path / "file", os.O_RDWR)
    assert try_lock(c, 120)
    assert not try_lock(a, 120)
    os.close(c)
    assert try_lock(a, 120)


def test_unlocking_what_is_not_locked_does_nothing(fds: tuple[int, int]) -> None:
    unlock(fds[0], 120, 8)


def test_another_error_is_not_taken_for_busy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        try_lock(fd, 120)
    assert try_lock(fd, 120, exclusive=False)
    os.close(fd)


def test_it_meets_the_locks_of_sqlite_in_the_same_process(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode = WAL; CREATE TABLE t (a)").fetchall()
    fd = os.open(f"{path}-shm", os.O_RDWR)
    connection.execute("BEGIN IMMEDIATE")
    assert not try_lock(fd, 120)
    connection.execute("ROLLBACK")
    assert try_lock(fd, 120)
    with pytest.raises(apsw.BusyError):
        connection.execute("BEGIN IMMEDIATE")
    unlock(fd, 120)
    connection.execute("BEGIN IMMEDIATE; ROLLBACK")
    connection.close()
    os.close(fd)

"""Commits wake their own database's capture, whether it has an inotify instance of its own or shares one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from walcast_primary.capture import wakeup
from walcast_primary.capture.wakeup import POLL_S, Wakeup

PATIENCE_S = 10.0


@pytest.fixture(params=["its own", "shared", "none left"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "its own":
        monkeypatch.setattr(wakeup, "OWN_INSTANCES", 0)
    if request.param == "none left":

        def refuse() -> None:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(wakeup._Shared, "get", staticmethod(refuse))
    return str(request.param)


@pytest.fixture
def two(kind: str, tmp_path: Path) -> Iterator[list[tuple[Path, Wakeup]]]:
    made = []
    for name in ("a.db", "b.db"):
        wal, database = tmp_path / f"{name}-wal", tmp_path / name
        wal.write_bytes(b"")
        database.write_bytes(b"")
        made.append((wal, Wakeup(wal, database)))
    yield made
    for _, one in made:
        one.close()


def write(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def test_a_write_ends_the_wait_of_its_own_database_again_and_again(two: list[tuple[Path, Wakeup]], kind: str) -> None:
    (wal, mine), (_, other) = two
    for _ in range(50):
        while mine.arm():
            pass
        other.arm()
        write(wal)
        began_s = time.monotonic()
        assert mine.wait(PATIENCE_S) or kind == "none left"
        assert time.monotonic() - began_s < PATIENCE_S / 2
    if kind != "none left":
        assert not other.wait(0.0)


def test_a_checkpoint_that_writes_the_database_is_told(two: list[tuple[Path, Wakeup]], kind: str) -> None:
    (wal, mine), _ = two
    write(wal.with_name("a.db"))
    assert mine.wait(PATIENCE_S) or kind == "none left"


def test_a_write_while_waiting_and_a_call_end_the_wait(two: list[tuple[Path, Wakeup]]) -> None:
    (wal, mine), _ = two
    for wake in (lambda: write(wal), mine.call):
        while mine.arm():
            pass
        later = threading.Timer(0.02, wake)
        later.start()
        began_s = time.monotonic()
        mine.wait(PATIENCE_S)
        assert time.monotonic() - began_s < PATIENCE_S / 2
        later.join()


def test_without_any_instance_it_polls(two: list[tuple[Path, Wakeup]], kind: str) -> None:
    if kind == "none left":
        (_, mine), _ = two
        began_s = time.monotonic()
        assert not mine.arm()
        assert not mine.wait(PATIENCE_S)
        assert POLL_S * 0.5 < time.monotonic() - began_s < PATIENCE_S / 2


def test_what_is_shared_does_not_grow_with_the_number_of_commits(two: list[tuple[Path, Wakeup]], kind: str) -> None:
    if kind == "shared":
        (wal, mine), _ = two
        shared = wakeup._Shared.get()
        for _ in range(200):
            mine.arm()
            write(wal)
            assert mine.wait(PATIENCE_S)
        assert len(shared._told) < 20

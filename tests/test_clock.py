"""A wall clock that is set back: timestamps go on ascending, and a restore by time says when it met such a moment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support.archives import History, MemoryStore
from support.archiving import archived, archiving
from support.e2e_oracle import Served, served
from support.e2e_state import create
from support.writers import sql

from walcast.archive import list_files
from walcast.archive.clocks import KEY, MOST_STEPS, ClockStep, add_clock_steps, read_clock_steps
from walcast.archive.reading import read_header
from walcast.errors import ConfigError, Corrupt
from walcast.moment import format_moment
from walcast.restore import restore
from walcast.store.directory import DirectoryStore
from walcast_node.commands.restore import restore_command
from walcast_primary.capture.commit_clock import Clock

NOON = 1_769_860_800_000
HOUR = 3_600_000


class Clocks:
    """A wall clock that can be set, and one that cannot."""

    def __init__(self) -> None:
        self.wall_ms, self.elapsed_ms = NOON, 5000

    def go_on(self, ms: int) -> None:
        self.wall_ms += ms
        self.elapsed_ms += ms

    def clock(self) -> Clock:
        return Clock(lambda: self.wall_ms, lambda: self.elapsed_ms)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "app.db"
    create(path)
    with served(path) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "archive")


@given(st.lists(st.tuples(st.integers(0, 100_000), st.sampled_from([0, 0, 0, -9000, -HOUR, 400 * 24 * HOUR]))))
def test_timestamps_never_go_back_and_are_the_clocks_once_it_has_caught_up(moves: list[tuple[int, int]]) -> None:
    clocks = Clocks()
    clock = clocks.clock()
    last = 0
    for passed_ms, set_ms in moves:
        clocks.go_on(passed_ms)
        clocks.wall_ms += set_ms
        stamp = clock.stamp_ms()
        assert stamp >= max(last, clocks.wall_ms)
        last = stamp
    clocks.go_on(2 * max(0, last - clocks.wall_ms) + 1)
    assert clock.stamp_ms() == clocks.wall_ms


def test_timestamps_tell_transactions_apart_while_the_clock_catches_up() -> None:
    clocks = Clocks()
    clock = clocks.clock()
    clock.stamp_ms()
    clocks.wall_ms -= HOUR
    stamps = []
    for _ in range(3):
        clocks.go_on(1000)
        stamps.append(clock.stamp_ms() - NOON)
    assert stamps == [500, 1000, 1500]


def test_a_set_clock_is_noted_once_and_a_small_difference_never() -> None:
    clocks = Clocks()
    clock = clocks.clock()
    clock.stamp_ms()
    clocks.wall_ms -= 900
    clock.stamp_ms()
    assert not clock.steps
    clocks.go_on(2000)
    clock.stamp_ms()
    for _ in range(2):
        clocks.wall_ms -= 9000
        from_ms = clocks.wall_ms
        for _ in range(5):
            clocks.go_on(10)
            clock.stamp_ms()
        assert abs(clock.steps[-1].from_ms - from_ms) <= 10
        assert clock.steps[-1].until_ms == clock.steps[-1].from_ms + 2 * clock.steps[-1].back_ms
    assert len(clock.steps) == 2
    steps = clock.steps
    clock.forget(steps[:1])
    assert list(clock.steps) == list(steps[1:])


def test_another_nodes_clock_that_was_ahead_is_such_a_step_too() -> None:
    clock = Clocks().clock()
    clock.not_before(NOON + 5000)
    assert clock.stamp_ms() == NOON + 5000
    assert clock.steps == (ClockStep(NOON, NOON + 10_000, 5000),)


def test_steps_are_kept_in_the_archive_the_newest_of_many() -> None:
    store = MemoryStore()
    assert read_clock_steps(store) == ()  # type: ignore[arg-type]
    steps = [ClockStep(at, at + 4, 2) for at in range(MOST_STEPS + 5)]
    for one in range(0, len(steps), 5):
        add_clock_steps(store, steps[max(0, one - 1) : one + 5])  # type: ignore[arg-type]
    assert read_clock_steps(store) == tuple(steps[5:])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"walcast_clock": 2}', b'{"walcast_clock": 1, "steps": [{"from_ms": -1}]}', b"{" * 70_000,
     b'{"walcast_clock": 1, "steps": [{"from_ms": "1", "until_ms": 2, "back_ms": 1}]}'],
)  # fmt: skip
def test_damaged_notes_of_the_clock_keep_no_restore_from_being_made(tmp_path: Path, data: bytes) -> None:
    store = MemoryStore()
    history = History(store)  # type: ignore[arg-type]
    history.commit()
    history.put(9, 1, 1)
    store.put(KEY, data, timestamp_ms=0)
    assert restore(store, tmp_path / "out.db", timestamp_ms=NOON).clock_steps == ()  # type: ignore[arg-type]
    with pytest.raises(Corrupt):
        read_clock_steps(store)  # type: ignore[arg-type]
    add_clock_steps(store, [ClockStep(1, 3, 1)])  # type: ignore[arg-type]
    assert len(read_clock_steps(store)) == 1  # type: ignore[arg-type]


def test_a_restore_to_a_time_that_the_clock_showed_twice_says_so(
    app: Served, store: DirectoryStore, tmp_path: Path
) -> None:
    clocks = Clocks()
    clocks.wall_ms = began_ms = time.time_ns() // 1_000_000  # the first snapshot has the time of the file
    log = app.database.log
    log.clock = clocks.clock()
    with archiving(app, store) as archiver:
        times = []
        for back_ms in (0, 9000, 0):
            clocks.go_on(0 if back_ms else 10_000)
            clocks.wall_ms -= back_ms
            with sql(app.path) as stock:
                stock("UPDATE accounts SET balance = balance + 1")
            assert archived(app, archiver)
            times.append(clocks.wall_ms)
    stamps = [
        read_header(store, file).timestamp_ms for file in sorted(list_files(store), key=lambda file: file.max_txid)
    ]
    assert stamps == sorted(stamps)
    assert len(read_clock_steps(store)) == 1
    report = restore(store, tmp_path / "out.db", timestamp_ms=times[-1], dry_run=True)
    assert [step.back_ms for step in report.clock_steps] == [9000]
    assert restore(store, tmp_path / "out.db", timestamp_ms=began_ms + HOUR, dry_run=True).clock_steps == ()
    told = [store.url, "-o", str(tmp_path / "out.db"), "--timestamp", format_moment(times[-1])]
    done = CliRunner().invoke(restore_command, told)
    assert (done.exit_code, "set back by 9 s" in done.output) == (0, True), done.output


def test_an_archive_that_refuses_the_note_gets_the_transactions(
    app: Served, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that lets no object be written anew."""
    put = DirectoryStore.put

    def refusing(store: DirectoryStore, key: str, *args: Any, **options: Any) -> None:
        if key == KEY:
            raise ConfigError("Access Denied")
        put(store, key, *args, **options)

    monkeypatch.setattr(DirectoryStore, "put", refusing)
    clocks = Clocks()
    clocks.wall_ms = time.time_ns() // 1_000_000
    app.database.log.clock = clocks.clock()
    with archiving(app, store) as archiver:
        for back_ms in (0, 9000):
            clocks.wall_ms -= back_ms
            with sql(app.path) as stock:
                stock("UPDATE accounts SET balance = balance + 1")
            assert archived(app, archiver)
    assert read_clock_steps(store) == ()


def test_a_time_before_the_oldest_state_that_a_clock_showed_later_is_explained(tmp_path: Path) -> None:
    """The clock was set back to before the archive began: by it, there were transactions at the time asked for."""
    store = DirectoryStore(tmp_path / "archive")
    history = History(store)
    history.commit()
    history.put(9, 1, 1)
    oldest_ms = read_header(store, next(iter(list_files(store)))).timestamp_ms
    told = [store.url, "-o", str(tmp_path / "out.db"), "--timestamp", format_moment(oldest_ms - 10)]
    plain = CliRunner().invoke(restore_command, told)
    assert (plain.exit_code, "set back" in plain.output) == (1, False), plain.output
    add_clock_steps(store, [ClockStep(oldest_ms - 20, oldest_ms + 4000, 2000)])
    done = CliRunner().invoke(restore_command, told)
    assert (done.exit_code, "set back by 2 s" in done.output) == (1, True), done.output
    assert not (tmp_path / "out.db").exists()

"""The parts that tell how old a replica is: when messages were sent, clocks that are set, looks at the WAL, fences."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.nodes import poll

from walcast import statusfile, wire
from walcast.position import Position
from walcast.statusfile import LOOK_BOUND_S, QUIET_S, State, Status, StatusWriter, read_status
from walcast_follower.status_reporter import Showing
from walcast_follower.subscribe.primary_client import Client
from walcast_follower.subscribe.send_times import WINDOW_US, SentTimes
from walcast_node.failover.member_status import STALE_S, Shown, stale_words
from walcast_primary.capture.capture import Capture
from walcast_primary.database import Database
from walcast_primary.publish import publisher
from walcast_primary.tenure import Tenure

SECOND_NS = 10**9
S = 1_000_000  # a second in microseconds
TRIP_US = 4_000
BEAT_US = 3 * S


# When a message was sent


class Wire:
    """Heartbeats of a primary whose clock is `ahead_us` of the follower's, each `BEAT_US`."""

    def __init__(self, ahead_us: int = 77 * S) -> None:
        self.ahead_us = ahead_us
        self.now_us = 500 * S
        self.times = SentTimes(self.now_us)
        self.beat(TRIP_US // 2, round_trip_us=0)
        for _ in range(3):
            self.beat(TRIP_US // 2)

    def beat(self, delay_us: int, *, after_us: int = BEAT_US, round_trip_us: int = TRIP_US) -> int:
        """One that is sent after a while and comes `delay_us` later: for how old it is taken."""
        self.now_us += after_us + delay_us
        sent_us = self.times.heartbeat(self.now_us, self.now_us - delay_us + self.ahead_us, round_trip_us)
        return self.now_us - sent_us


@pytest.mark.parametrize("ahead_us", [0, 77 * S, -500_000 * S])
def test_a_heartbeat_that_was_held_up_is_as_old_as_it_is(ahead_us: int) -> None:
    way = Wire(ahead_us)
    assert TRIP_US // 2 <= way.beat(TRIP_US // 2) <= 2 * TRIP_US
    assert 9 * S <= way.beat(9 * S) <= 9 * S + 2 * TRIP_US
    assert way.beat(TRIP_US // 2) <= 2 * TRIP_US


def test_heartbeats_that_waited_in_a_process_that_stood_still_are_old(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        way, stopped_us = Wire(), rng.randrange(S, 100 * S)
        sent = [way.now_us + n * BEAT_US for n in range(1, stopped_us // BEAT_US + 1)]
        way.now_us += stopped_us
        for at in sent:  # all at once, when it goes on
            way.now_us += rng.randrange(100)
            assert way.times.heartbeat(way.now_us, at + way.ahead_us, TRIP_US) <= at, f"seed {seed}"


def test_the_first_heartbeat_is_not_older_than_the_stream() -> None:
    times = SentTimes(10 * S)
    assert times.heartbeat(15 * S, 12345, 0) == 10 * S
    assert times.other(15 * S + 10) >= 10 * S


def test_a_round_trip_that_is_always_long_makes_all_old() -> None:
    way = Wire()
    for _ in range(30):
        age_us = way.beat(30 * S, round_trip_us=60 * S)
    assert age_us >= 30 * S


def test_a_clock_that_stood_still_for_a_moment_is_forgiven_after_the_window() -> None:
    way = Wire()
    way.ahead_us -= 5 * S
    assert way.beat(TRIP_US // 2) >= 5 * S
    for _ in range(2 + WINDOW_US // BEAT_US):
        age_us = way.beat(TRIP_US // 2)
    assert age_us <= 2 * TRIP_US


def test_transactions_after_a_silence_may_have_waited_for_as_long() -> None:
    way = Wire()
    beat_us = way.now_us
    assert way.times.other(beat_us + S // 10) >= beat_us + S // 10 - 2 * TRIP_US
    assert way.times.other(beat_us + S // 5) >= beat_us + S // 5 - 2 * TRIP_US
    assert way.times.other(beat_us + 2 * S) <= beat_us + S // 5  # idle, or cut off: nobody knows
    assert way.times.other(beat_us + 2 * S + 10) <= beat_us + S // 5
    way.now_us = beat_us
    way.beat(TRIP_US // 2)
    assert way.times.other(way.now_us + 10) >= way.now_us - 2 * TRIP_US


# Clocks


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    (tmp_path / "app.db-walcast").mkdir()
    return tmp_path / "app.db"


class Clock:
    """The wall clock, set back or forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step_ns = 0
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() + self.step_ns)


HOUR_NS = 3600 * SECOND_NS


def test_a_wall_clock_that_is_set_back_makes_nothing_younger(replica: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    writer = StatusWriter(replica.parent / "app.db-walcast")
    now = time.time_ns()
    writer.write(Status(State.DISCONNECTED, level_ns=now - HOUR_NS, written_ns=now - 60 * SECOND_NS, until_ns=now))
    clock.step_ns = -HOUR_NS
    status = read_status(replica)
    assert status.lag_ms(time.time_ns()) == pytest.approx(3.6e6, rel=1e-3)
    assert not status.is_live(time.time_ns())
    assert time.time_ns() - status.written_ns == pytest.approx(60 * SECOND_NS, rel=1e-2)
    assert read_status(replica).until_ns <= time.time_ns()
    writer.close()


def test_a_wall_clock_that_is_set_forward_makes_what_was_said_before_old(
    replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    writer = StatusWriter(replica.parent / "app.db-walcast")
    now = time.time_ns()
    writer.write(Status(State.STREAMING, level_ns=now, written_ns=now))
    clock.step_ns = HOUR_NS  # as of a virtual machine that was paused for an hour
    assert read_status(replica).lag_ms(time.time_ns()) >= 3.6e6
    writer.close()


def test_times_of_another_boot_are_those_of_the_wall_clock(replica: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    writer = StatusWriter(replica.parent / "app.db-walcast")
    level_ns = time.time_ns() - 10 * SECOND_NS
    writer.write(Status(State.STOPPED, level_ns=level_ns))
    clock.step_ns = -5 * SECOND_NS
    monkeypatch.setattr(statusfile, "_boot", lambda: 4711)
    assert read_status(replica).level_ns == level_ns
    writer.close()


def test_a_follower_whose_clock_is_set_back_stays_as_old_as_it_is(
    replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)

    async def follow() -> None:
        showing = _showing(replica)
        showing.show(State.STREAMING, 1, Position(5, 1), "", primary_txid=5, known_us=0)
        clock.step_ns = -HOUR_NS
        showing.show(State.DISCONNECTED, 1, Position(5, 1), "")
        assert abs(showing.status.level_ns - time.time_ns()) < SECOND_NS
        assert showing.behind_s < 1.0
        clock.step_ns = -2 * HOUR_NS
        showing.show(State.DISCONNECTED, 1, Position(5, 1), "")
        assert 0 <= read_status(replica).lag_ms(time.time_ns()) < 1000
        await showing.client.close()

    asyncio.run(follow())


class _Showing(Showing):
    client: Client


def _showing(replica: Path) -> _Showing:
    client = Client(wire.Address("127.0.0.1", 1), wire.Tls(insecure=True), database="app", follower_id="f")
    showing = _Showing(replica.parent / "app.db-walcast", client)
    showing.client = client
    return showing


@pytest.mark.parametrize(
    ("facts", "level_s_ago"),
    [
        ({"primary_txid": 5, "known_us": 0}, 0.0),
        ({"primary_txid": 5, "known_us": 7 * S}, 7.0),
        ({"primary_txid": 5, "known_us": -7 * S}, 0.0),
        ({"primary_txid": 5, "known_us": 100 * S}, 30.0),  # what was known before is not unlearned
        ({"primary_txid": 5, "known_us": 1 << 62}, 30.0),
        ({"primary_txid": 6, "known_us": 0}, 30.0),
        ({"primary_txid": 5}, 30.0),  # a welcome
        ({}, 30.0),
    ],
)
def test_a_replica_is_level_as_of_the_primarys_look(replica: Path, facts: dict[str, int], level_s_ago: float) -> None:
    async def follow() -> None:
        showing = _showing(replica)
        showing.status = replace(showing.status, level_ns=time.time_ns() - 30 * SECOND_NS)
        showing.show(State.STREAMING, 1, Position(5, 1), "", **facts)
        level_ns = read_status(replica).level_ns
        assert (time.time_ns() - level_ns) / SECOND_NS == pytest.approx(level_s_ago, abs=0.5)
        await showing.client.close()

    asyncio.run(follow())


# Looks


class Stuck:
    """Capture hangs from `stick` on, as on a disk that does not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._free = threading.Event()
        self._free.set()
        capture = Capture.capture
        monkeypatch.setattr(Capture, "capture", lambda it: (self._free.wait(), capture(it))[1])

    def stick(self) -> None:
        self._free.clear()

    def free(self) -> None:
        self._free.set()


def test_a_look_ages_while_capture_hangs_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = Stuck(monkeypatch)
    path = tmp_path / "app.db"
    sqlite3.connect(path).execute("PRAGMA journal_mode = WAL").close()
    database = Database(path, "app")
    database.start()
    loop = database.loop
    try:
        until_s = time.monotonic() + LOOK_BOUND_S
        assert poll(lambda: time.monotonic() > until_s or loop.blindness) is True, "idle, and no look in time"
        stuck.stick()
        assert poll(lambda: loop.look_age_ms > LOOK_BOUND_S * 1000 + 100)
        assert loop.blindness is not None
        asked = loop.barrier()
        stuck.free()
        assert poll(lambda: loop.blindness is None)
        assert asked.result(5.0)
    finally:
        stuck.free()
        database.stop()


@pytest.mark.parametrize(
    ("facts", "well"),
    [
        ({}, True),
        ({"level_ns": -QUIET_S}, True),
        ({"level_ns": -STALE_S - 1}, False),
        ({"level_ns": -STALE_S - 1, "state": State.CATCHING_UP}, False),
        ({"level_ns": -1, "state": State.CATCHING_UP}, True),
        ({"level_ns": None}, False),
        ({"level_ns": None, "state": State.BOOTSTRAPPING}, True),
        ({"written_ns": -6}, False),  # the process hangs
        ({"state": State.DISCONNECTED}, False),
        ({"state": State.DIVERGED}, False),
        ({"lag_us": 11 * S}, False),
        ({"level_ns": 60}, False),
    ],
)
def test_a_follower_is_well_while_it_shows_nothing_that_may_be_old(facts: dict[str, Any], well: bool) -> None:
    now = time.time_ns()
    times = {
        k: 0 if v is None else now + int(v * SECOND_NS) for k, v in facts.items() if k in ("level_ns", "written_ns")
    }
    status = Status(**({"state": State.STREAMING, "level_ns": now, "written_ns": now} | facts | times))
    assert (stale_words(Path("app.db"), status, now) is None) is well


def test_the_database_of_a_fenced_node_is_level_as_of_the_end_of_its_tenure(replica: Path) -> None:
    member: Any = SimpleNamespace(tenure=Tenure(), path=replica)
    shown = Shown(member)
    assert shown._level_ns() is None
    before_ns = time.time_ns()
    member.tenure.end("deposed")
    first = shown._level_ns()
    assert first is not None
    assert abs(first - before_ns) < SECOND_NS
    assert poll(lambda: time.time_ns() > before_ns + SECOND_NS // 5)
    second = shown._level_ns()
    assert second is not None
    assert abs(second - first) < SECOND_NS // 20
    # One that was started so goes by what the process before it said.
    writer = StatusWriter(replica.parent / "app.db-walcast")
    writer.write(Status(State.PRIMARY, level_ns=before_ns - HOUR_NS))
    writer.close()
    assert Shown(member)._level_ns() == pytest.approx(before_ns - HOUR_NS, abs=SECOND_NS)


def test_what_is_from_before_this_process_is_not_taken_for_new() -> None:
    entry: Any = SimpleNamespace(header=lambda: SimpleNamespace(timestamp_ms=time.time_ns() // 10**6 - 90_000))
    assert (time.monotonic_ns() - publisher._captured_before(entry)) / SECOND_NS == pytest.approx(90, abs=1)

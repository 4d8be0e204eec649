"""Waiting for a replica: by many at once, threads, greenlets and coroutines, at no cost while nothing happens."""

from __future__ import annotations

import asyncio
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import uvloop

import walcast
from walcast import waiting
from walcast.goals import Applied, At, Goal, Level, Waiters
from walcast.statedir import StateDir
from walcast.statusfile import State, Status, StatusWriter

ROOT = Path(__file__).parent.parent
PATIENCE_S = 20.0
LONG_S = 10 * PATIENCE_S  # what waits for so long must be woken: it finds out by itself only at the end
CHECKSUM = 1 << 63
NOW_NS = time.time_ns()

Runner = Callable[[Coroutine[Any, Any, Any]], Any]


def status(txid: int, term: int = 1, state: State = State.STREAMING, **facts: int) -> Status:
    now = time.time_ns()
    given = {"primary_txid": txid, "level_ns": now, "written_ns": now} | facts
    return Status(state, term, walcast.Position(txid, CHECKSUM), **given)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[StatusWriter]:
    with closing(StateDir(tmp_path / "app.db")) as state, closing(StatusWriter(state.path)) as writer:
        writer.write(status(0))
        yield writer


@pytest.fixture
def replica(tmp_path: Path, writer: StatusWriter) -> walcast.Replica:
    return walcast.Replica(tmp_path / "app.db")


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runner:
    runner: Runner = request.param
    return runner


@pytest.fixture
def only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by the clock."""
    monkeypatch.setattr(waiting, "LOOK_S", LONG_S)


class Counted:
    """How often something was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, where: object, name: str) -> None:
        self.count = 0
        real = getattr(where, name)

        def call(*arguments: Any) -> Any:
            self.count += 1
            return real(*arguments)

        monkeypatch.setattr(where, name, call)


class Crowd:
    """Threads that wait for a token each; `ended` has each that was reached, or None for one whose time was over."""

    def __init__(self, replica: walcast.Replica) -> None:
        self._replica = replica
        self._threads: list[threading.Thread] = []
        self.ended: list[int | None] = []

    def wait(self, txid: int, timeout: float = LONG_S) -> None:
        def run() -> None:
            try:
                self._replica.wait_for(walcast.Token.of(1, txid), timeout)
                self.ended.append(txid)
            except walcast.StaleReplica:
                self.ended.append(None)

        self._threads.append(threading.Thread(daemon=True, target=run))
        self._threads[-1].start()

    def asleep(self, count: int) -> None:
        """Until so many wait."""
        threads = waiting.waiting_for(self._replica.path)._threads
        until(lambda: threads._leader is not None and len(threads._sleepers) == count - 1)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def idle(replica: walcast.Replica) -> bool:
    """Does nothing of a wait remain, but a watch for the next?"""
    here = waiting.waiting_for(replica.path)
    threads = here._threads
    nobody = not threads._waiters and not threads._sleepers and threads._leader is threads._watch is threads._seen
    return nobody and not here._loops


# Goals


def naive(goals: list[tuple[Goal, int]], now: Status) -> list[int]:
    return [waiter for goal, waiter in goals if goal.is_reached(now, time.time_ns())]


@pytest.mark.parametrize("seed", range(5))
def test_those_whose_goal_is_reached_are_found_and_no_others(seed: int) -> None:
    rng = random.Random(seed)
    waiters: Waiters[int] = Waiters()
    goals: list[tuple[Goal, int]] = []
    for waiter in range(400):
        choice = rng.random()
        goal: Goal
        if choice < 0.5:
            goal = Applied(rng.randint(1, 4), rng.randint(0, 30))
        elif choice < 0.6:
            goal = At(walcast.Position(rng.randint(0, 30), rng.choice([0, CHECKSUM, CHECKSUM + 1])))
        elif choice < 0.7:
            goal = Level(rng.choice([0.5, 5, 500]))
        elif choice < 0.85 and goals:
            goal, gone = goals.pop(rng.randrange(len(goals)))
            waiters.remove(goal, gone)
            waiters.remove(goal, gone)
            continue
        else:
            state = rng.choice([State.STREAMING, State.STREAMING, State.DISCONNECTED, State.PRIMARY])
            term = rng.randint(1, 2 if state is State.PRIMARY else 4)
            now = status(rng.randint(0, 30), term, state, lag_us=rng.choice([100, 3000, 10**7]))
            reached = naive(goals, now)
            assert sorted(waiters.pop_reached(now, time.time_ns())) == reached, f"seed {seed}"
            goals = [(goal, waiter) for goal, waiter in goals if waiter not in reached]
            continue
        waiters.add(goal, waiter)
        goals.append((goal, waiter))
        assert len(waiters) == len({goal for goal, _ in goals})


@pytest.mark.parametrize(
    ("now", "reached"),
    [
        (status(5), True),
        (status(5, lag_us=99_000), True),
        (status(5, lag_us=101_000), False),
        (status(5, primary_txid=6), True),  # one is on its way; level a moment ago
        (status(5, primary_txid=6, level_ns=1), False),
        (status(5, state=State.CATCHING_UP), False),
        (status(5, state=State.DISCONNECTED), False),
        (status(5, state=State.DIVERGED), False),
        (status(5, state=State.BOOTSTRAPPING), False),
        (status(5, written_ns=1), False),
        (status(5, state=State.PRIMARY, level_ns=1), True),
        (status(5, state=State.PRIMARY, written_ns=1), False),
        (status(5, state=State.FENCED), False),
    ],
)
def test_a_replica_is_level_when_it_streams_what_is_new_enough(now: Status, reached: bool) -> None:
    assert Level(100).is_reached(now, max(now.written_ns, NOW_NS)) is reached


# Threads


def test_a_hundred_that_wait_cost_next_to_nothing(replica: walcast.Replica, writer: StatusWriter) -> None:
    crowd = Crowd(replica)
    for txid in range(1, 101):
        crowd.wait(txid)
    crowd.asleep(100)
    began_s = time.process_time()
    time.sleep(0.5)
    used_ms = (time.process_time() - began_s) * 1e3
    print(f"{used_ms:.2f} ms of processor time in half a second")
    writer.write(status(100))
    crowd.join()
    assert used_ms < 5
    assert sorted(map(str, crowd.ended)) == sorted(map(str, range(1, 101)))


@pytest.mark.usefixtures("only_told")
def test_a_change_costs_one_look_and_wakes_only_those_it_reaches(
    replica: walcast.Replica, writer: StatusWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(replica)
    for txid in range(1, 201):
        crowd.wait(10 * txid)
    crowd.asleep(200)
    looks = Counted(monkeypatch, waiting, "read_status")
    wakes = Counted(monkeypatch, waiting._Sleeper, "wake")
    for txid in range(1, 10):  # reach nobody
        writer.write(status(txid))
        until(lambda txid=txid: looks.count >= txid)
    assert wakes.count == 0
    assert crowd.ended == []
    writer.write(status(10))
    until(lambda: crowd.ended == [10])
    writer.write(status(30))
    until(lambda: len(crowd.ended) == 3)
    # One look a change, and one of who leads next; a wake for each that was reached, and for who leads next.
    assert looks.count <= 11 + 3
    assert wakes.count <= 3 + 3
    writer.write(status(2000))
    crowd.join()
    assert len(crowd.ended) == 200
    assert idle(replica)


@pytest.mark.usefixtures("only_told")
def test_when_the_leader_is_done_another_one_leads(replica: walcast.Replica, writer: StatusWriter) -> None:
    crowd = Crowd(replica)
    crowd.wait(1)
    crowd.asleep(1)
    for count, (txid, timeout) in enumerate([(2, LONG_S), (99, 0.1), (3, LONG_S), (99, 0.05)], 2):
        crowd.wait(txid, timeout)
        crowd.asleep(count)
    writer.write(status(1))  # the leader's own; then one that leads runs out of time, and another one
    until(lambda: sorted(crowd.ended, key=str) == [1, None, None])
    for txid in (2, 3):
        writer.write(status(txid))
        until(lambda txid=txid: txid in crowd.ended)
    crowd.join()
    assert idle(replica)


@pytest.mark.usefixtures("only_told")
def test_nobody_is_forgotten_whatever_the_order(replica: walcast.Replica, writer: StatusWriter, seed: int) -> None:
    """Threads and coroutines with short and long times, tokens and positions, while the replica moves on."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    switch_s = sys.getswitchinterval()
    last, wrong, at = 300, list[str](), [0]

    def goals(rng: random.Random) -> Iterator[tuple[walcast.Token | walcast.Position, int, float]]:
        while at[0] < last:
            txid = min(last, at[0] + rng.randint(0, 30))
            token = walcast.Token.of(1, txid) if rng.random() < 0.8 else walcast.Position(txid, 0)
            yield token, txid, rng.choice([0, 0.001, 0.004, LONG_S])

    def check(txid: int, before: int, timeout: float, stale: bool) -> None:
        if stale and (timeout == LONG_S or txid <= before):
            wrong.append(f"{txid} was not seen at {at[0]}")
        if not stale and txid > at[0] + 1:  # it is written before it is told here
            wrong.append(f"{txid} was seen at {at[0]}")

    def block(rng: random.Random) -> None:
        for token, txid, timeout in goals(rng):
            before, stale = at[0], False
            try:
                replica.wait_for(token, timeout)
            except walcast.StaleReplica:
                stale = True
            check(txid, before, timeout, stale)

    async def suspend(rng: random.Random) -> None:
        for token, txid, timeout in goals(rng):
            before, stale = at[0], False
            try:
                await replica.wait_for_async(token, timeout)
            except walcast.StaleReplica:
                stale = True
            check(txid, before, timeout, stale)
            await asyncio.sleep(0)

    async def all_of(seeds: list[int]) -> None:
        await asyncio.gather(*(suspend(random.Random(seed)) for seed in seeds))

    threads = [threading.Thread(daemon=True, target=block, args=(random.Random(rng.random()),)) for _ in range(12)]
    for _ in range(2):
        seeds = [rng.randrange(1 << 30) for _ in range(6)]
        threads.append(threading.Thread(daemon=True, target=lambda seeds=seeds: asyncio.run(all_of(seeds))))
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for txid in range(1, last + 1):
            writer.write(status(txid))
            at[0] = txid
            time.sleep(rng.choice([0, 0.0005, 0.002]))
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"seed {seed}"
    finally:
        sys.setswitchinterval(switch_s)
    assert wrong == [], f"seed {seed}"
    assert idle(replica)


@pytest.mark.usefixtures("only_told")
def test_a_file_and_a_folder_made_anew_are_told_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "app.db-walcast"
    crowd = Crowd(walcast.Replica(tmp_path / "app.db"))
    for txid in range(1, 5):
        crowd.wait(txid)
    crowd.asleep(4)
    folder.mkdir()
    for txid in range(1, 5):
        if txid == 3:  # the folder, too
            folder.rename(tmp_path / "away")
            folder.mkdir()
        elif txid == 4:
            (folder / "status").rename(folder / "other")
        with closing(StatusWriter(folder)) as writer:
            writer.write(status(txid))
        until(lambda txid=txid: txid in crowd.ended)
    crowd.join()


@pytest.mark.usefixtures("only_told")
def test_what_happens_before_the_file_is_watched_is_seen(
    replica: walcast.Replica, writer: StatusWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = waiting.Waiting.take_watch
    txids = iter(range(1, 10))

    def late(self: waiting.Waiting) -> Any:
        writer.write(status(next(txids)))
        return take(self)

    monkeypatch.setattr(waiting.Waiting, "take_watch", late)
    crowd = Crowd(replica)
    for txid in (1, 3):  # with a watch of its own, and with one that is there already
        crowd.wait(txid)
        crowd.join()
        wait = replica.wait_for_async(walcast.Token.of(1, txid + 1), LONG_S)
        asyncio.run(asyncio.wait_for(wait, PATIENCE_S))


def test_a_time_that_is_no_number_is_over(replica: walcast.Replica, writer: StatusWriter) -> None:
    for timeout in (math.nan, -1.0, 0.0):
        with pytest.raises(walcast.StaleReplica):
            replica.wait_for("1-1", timeout)
        with pytest.raises(walcast.StaleReplica):
            asyncio.run(replica.wait_for_async("1-1", timeout))
    writer.write(status(1))
    replica.wait_for("1-1", math.nan)


def test_a_time_without_end_ends_with_the_token(replica: walcast.Replica, writer: StatusWriter, run: Runner) -> None:
    async def main() -> None:
        task = asyncio.create_task(replica.wait_for_async("1-1", math.inf))
        await asyncio.sleep(0.01)
        writer.write(status(1))
        await asyncio.wait_for(task, PATIENCE_S)

    crowd = Crowd(replica)
    crowd.wait(1, math.inf)
    crowd.asleep(1)
    run(main())
    crowd.join()
    assert crowd.ended == [1]


def test_waits_need_one_inotify_however_many_replicas_of_a_path_there_are(
    replica: walcast.Replica, writer: StatusWriter
) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    with pytest.raises(walcast.StaleReplica):
        replica.wait_for("1-1", 0)
    before = open_files()
    for _ in range(20):
        with pytest.raises(walcast.StaleReplica):
            walcast.Replica(replica.path).wait_for("1-1", 0)
        with pytest.raises(walcast.StaleReplica):
            asyncio.run(walcast.Replica(replica.path).wait_for_async("1-1", 0))
    assert open_files() == before


def test_of_many_replicas_the_ones_nobody_waits_for_are_forgotten(
    replica: walcast.Replica, writer: StatusWriter, tmp_path: Path
) -> None:
    crowd = Crowd(replica)
    crowd.wait(1)
    crowd.asleep(1)
    here = waiting.waiting_for(replica.path)
    for number in range(3 * waiting.KEPT):
        waiting.waiting_for(tmp_path / f"{number}.db")
    assert waiting.waiting_for(replica.path) is here
    assert len(waiting._process._waiting) <= waiting.KEPT + 1
    writer.write(status(1))
    crowd.join()


# Being level


def test_a_wait_to_catch_up_ends_when_the_follower_is_level(replica: walcast.Replica, writer: StatusWriter) -> None:
    writer.write(status(1, state=State.CATCHING_UP, primary_txid=9))
    with pytest.raises(walcast.StaleReplica, match="did not come within 100 ms of its primary in 0 s") as caught:
        replica.wait_caught_up(100, timeout=0)
    assert (caught.value.token, caught.value.state) == (None, "catching-up")
    ended: list[float] = []

    def wait(max_lag_ms: float) -> None:
        replica.wait_caught_up(max_lag_ms, LONG_S)
        ended.append(max_lag_ms)

    threads = [threading.Thread(daemon=True, target=wait, args=(ms,)) for ms in (1, 100)]
    for thread in threads:
        thread.start()
    writer.write(status(9, lag_us=50_000))
    until(lambda: ended == [100])
    writer.write(status(10, lag_us=500))
    for thread in threads:
        thread.join(PATIENCE_S)
    assert ended == [100, 1]
    replica.wait_caught_up(timeout=0)


def test_a_coroutine_waits_to_catch_up(replica: walcast.Replica, writer: StatusWriter, run: Runner) -> None:
    async def main() -> None:
        writer.write(status(1, state=State.DISCONNECTED))
        with pytest.raises(walcast.StaleReplica, match="did not come within 1000 ms"):
            await replica.wait_caught_up_async(timeout=0.01)
        task = asyncio.create_task(replica.wait_caught_up_async(timeout=LONG_S))
        await asyncio.sleep(0)
        writer.write(status(1, state=State.PRIMARY))
        await asyncio.wait_for(task, PATIENCE_S)

    run(main())


# Coroutines


@pytest.mark.usefixtures("only_told")
def test_coroutines_wait_without_a_thread_and_wake_with_their_token(
    replica: walcast.Replica, writer: StatusWriter, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(replica.wait_for_async(f"1-{txid:x}", LONG_S)) for txid in range(1, 201)]
        await asyncio.sleep(0.01)
        looks = Counted(monkeypatch, waiting, "read_status")
        assert threading.active_count() == before
        for txid in (1, 2, 3):
            writer.write(status(txid))
            await asyncio.wait_for(tasks[txid - 1], PATIENCE_S)
            assert [task.done() for task in tasks].count(True) == txid
        assert looks.count == 3
        writer.write(status(200))
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
        assert looks.count == 4
        assert idle(replica)

    before = threading.active_count()
    run(main())


def test_a_hundred_coroutines_that_wait_cost_next_to_nothing(replica: walcast.Replica, writer: StatusWriter) -> None:
    async def main() -> float:
        tasks = [asyncio.create_task(replica.wait_for_async(f"1-{txid:x}", LONG_S)) for txid in range(1, 101)]
        await asyncio.sleep(0.1)
        began_s = time.process_time()
        await asyncio.sleep(0.3)
        used_ms = (time.process_time() - began_s) * 1e3
        writer.write(status(100))
        await asyncio.gather(*tasks)
        return used_ms

    used_ms = asyncio.run(main())
    print(f"{used_ms:.2f} ms of processor time in 0.3 s")
    assert used_ms < 5


def test_a_cancelled_wait_leaves_nothing_behind(replica: walcast.Replica, writer: StatusWriter, run: Runner) -> None:
    async def main() -> None:
        for _ in range(3):
            task = asyncio.create_task(replica.wait_for_async("1-1", LONG_S))
            other = asyncio.create_task(replica.wait_for_async("1-2", LONG_S))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not idle(replica)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(other, 0.005)
            assert idle(replica)
            watch = waiting.waiting_for(replica.path)._idle[-1]
            assert watch.fd is not None
            assert not asyncio.get_running_loop().remove_reader(watch.fd)

    run(main())
    assert len(waiting.waiting_for(replica.path)._idle) == 1


@pytest.mark.usefixtures("only_told")
def test_several_loops_and_threads_wait_at_once(replica: walcast.Replica, writer: StatusWriter) -> None:
    ended: list[str] = []
    began = threading.Barrier(5)

    async def coroutine(name: str) -> None:
        tasks = [asyncio.create_task(replica.wait_for_async(f"1-{txid}", LONG_S)) for txid in (1, 2)]
        await asyncio.sleep(0.01)
        began.wait()
        for task in tasks:
            await task
            ended.append(name)

    def thread(name: str) -> None:
        began.wait()
        for txid in (1, 2):
            replica.wait_for(f"1-{txid}", LONG_S)
            ended.append(name)

    threads = [
        threading.Thread(daemon=True, target=lambda: asyncio.run(coroutine("a"))),
        threading.Thread(daemon=True, target=lambda: uvloop.run(coroutine("b"))),
        threading.Thread(daemon=True, target=lambda: asyncio.run(coroutine("c"))),
        threading.Thread(daemon=True, target=lambda: thread("d")),
    ]
    for one in threads:
        one.start()
    began.wait()
    for txid in (1, 2):
        writer.write(status(txid))
        until(lambda txid=txid: len(ended) == 4 * txid)
        assert sorted(ended[-4:]) == ["a", "b", "c", "d"]
    for one in threads:
        one.join(PATIENCE_S)
    assert idle(replica)


def test_without_inotify_coroutines_poll(
    replica: walcast.Replica, writer: StatusWriter, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walcast.statuswatch._open_inotify", lambda: None)

    async def main() -> None:
        tasks = [asyncio.create_task(replica.wait_for_async(f"1-{txid}", LONG_S)) for txid in (1, 2)]
        for task, txid in zip(tasks, (1, 2), strict=True):
            await asyncio.sleep(0.01)
            writer.write(status(txid))
            await asyncio.wait_for(task, PATIENCE_S)

    run(main())
    assert idle(replica)
    assert waiting.waiting_for(replica.path)._idle == []  # the next one may find one


# Greenlets and forks

GREENLETS = """
import sys, time
if sys.argv[2] == "before":
    from gevent import monkey; monkey.patch_all()
import walcast
from walcast import waiting
if sys.argv[2] == "after":
    from gevent import monkey; monkey.patch_all()
import gevent
import threading
waiting.LOOK_S = 100.0  # nobody looks by the clock

replica = walcast.Replica(sys.argv[1])
ticks = 0
def tick():
    global ticks
    while True:
        gevent.sleep(0.002)
        ticks += 1
ticking = gevent.spawn(tick)
crowd = [gevent.spawn(replica.wait_for, f"1-{txid:x}", 200) for txid in range(1, 101)]
gevent.sleep(0.05)
crowd[0].kill()                                        # it led
late = gevent.spawn(replica.wait_for, "1-fff", 0.02)
late.join(10)
assert isinstance(late.exception, walcast.StaleReplica)
ticking.kill()
assert ticks > 5, ticks
began = time.process_time()
gevent.sleep(0.3)
used_ms = (time.process_time() - began) * 1e3
assert used_ms < 10, used_ms
print("waiting", flush=True)
assert sys.stdin.readline()
for txid, one in enumerate(crowd[1:51], 2):
    one.get(timeout=10)
assert not any(one.ready() for one in crowd[51:])
print("half", flush=True)
gevent.joinall(crowd, timeout=10, raise_error=True)
assert threading.active_count() <= 101
print("all", flush=True)
"""


@pytest.mark.parametrize("patched", ["before", "after"])
def test_greenlets_wait_without_stopping_the_others(
    replica: walcast.Replica, writer: StatusWriter, patched: str
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", GREENLETS, str(replica.path), patched]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        said = process.stdout.readline()
        assert said == "waiting\n", process.stderr.read()
        writer.write(status(51))
        process.stdin.write("look\n")
        process.stdin.flush()
        assert process.stdout.readline() == "half\n", process.stderr.read()
        writer.write(status(100))
        assert process.stdout.readline() == "all\n", process.stderr.read()
        assert process.wait(PATIENCE_S) == 0


def test_a_fork_under_a_thread_that_leads_begins_anew(replica: walcast.Replica, writer: StatusWriter) -> None:
    code = """
import asyncio, os, sys, threading, walcast
from walcast import waiting
waiting.LOOK_S = 100.0
replica = walcast.Replica(sys.argv[1])
threads = [threading.Thread(daemon=True, target=replica.wait_for, args=("1-1", 200)) for _ in range(5)]
for thread in threads:
    thread.start()
while len(waiting.waiting_for(replica.path)._threads._sleepers) < 4:
    pass
pid = os.fork()
if pid == 0:
    threads = [threading.Thread(daemon=True, target=replica.wait_for, args=("1-1", 200)) for _ in range(5)]
    for thread in threads:
        thread.start()
    while len(waiting.waiting_for(replica.path)._threads._sleepers) < 4:
        pass
os.write(1, b"waiting\\n")
for thread in threads:
    thread.join(20)
asyncio.run(replica.wait_for_async("1-2", 200))
assert not any(thread.is_alive() for thread in threads)
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
os._exit(0)
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(replica.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(2)] == ["waiting\n"] * 2
        writer.write(status(1))
        writer.write(status(2))
        assert process.wait(PATIENCE_S) == 0


def test_a_leader_that_was_ended_at_the_worst_moment_is_replaced(
    replica: walcast.Replica, writer: StatusWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's exception may come between any two steps, also where the leader hands on."""
    writer.write(status(1))
    threads = walcast.waiting.waiting_for(replica.path)._threads
    monkeypatch.setattr(walcast.waiting, "LOST_S", 0.2)
    with monkeypatch.context() as broken:
        broken.setattr(walcast.waiting._Threads, "_leave", lambda self, goal, me: None)
        with pytest.raises(walcast.StaleReplica):
            replica.wait_for("1-2", timeout=0.01)
    assert not threads.is_idle
    crowd = threading.Timer(0.5, lambda: writer.write(status(2)))
    until(lambda: time.monotonic() - threads._looked_s > 0.2)
    crowd.start()
    replica.wait_for("1-2", timeout=5)
    crowd.join()

"""Waiting for a commit at a replica: from the apply until `Replica.wait_for` returns; what a thousand that wait cost.

The bench writes the status file as a follower does at each commit; a process of its own waits, with one thread,
greenlet or coroutine for the latency, with 1,000 for the rest. "Others' commits" reach nobody: 200 a second, while all
wait. The read of one's own write is the real thing: a primary, a follower, the barrier on the primary's socket, and the
wait at the replica; and the barrier that waits for one follower, until it has applied the commit and until it has it on
disk. (The folder of the bench must be on a disk for that: on tmpfs a sync costs nothing.)
"""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

from bench.harness import Child, Run, make_database, say, wait_for_row
from bench.measure import Measure, quantile
from walcast.position import Position
from walcast.primary import Primary
from walcast.replica import Replica
from walcast.statedir import StateDir
from walcast.statusfile import State, Status, StatusWriter

CROWD = 1000
ROUNDS = 3
STEP_S = 0.005
IDLE_S = 5.0
OTHERS_PER_S = 200
KINDS = ("threads", "gevent", "asyncio", "uvloop")


class Follower:
    """The status file of a replica, written as a follower would."""

    def __init__(self, database: Path) -> None:
        self._stack = ExitStack()
        state = self._stack.enter_context(closing(StateDir(database)))
        self._writer = self._stack.enter_context(closing(StatusWriter(state.path)))
        self.applies(0)

    def applies(self, txid: int) -> int:
        """Shows it; CLOCK_MONOTONIC in ns before that."""
        now_ns = time.time_ns()
        status = Status(State.STREAMING, 1, Position(txid, 1 << 63), txid, 500, now_ns, now_ns)
        began_ns = time.monotonic_ns()
        self._writer.write(status)
        return began_ns

    def close(self) -> None:
        """Gone."""
        self._stack.close()


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    rounds, count, idle_s = (1, 100, 1.0) if run.quick else (ROUNDS, 400, IDLE_S)
    measures = []
    for kind in KINDS:
        half, most = [], []
        for _ in range(rounds):
            late_us = latencies_us(run, kind, count)
            half.append(quantile(late_us, 0.5))
            most.append(quantile(late_us, 0.99))
        say(f"{kind}: p50 {half[-1]:.0f} µs, p99 {most[-1]:.0f} µs")
        measures.append(Measure(f"{kind}: applied → told, half of them", "µs", half, at_most=1000))
        measures.append(Measure(f"{kind}: applied → told, 99 of 100", "µs", most, at_most=1000))
    for kind in KINDS:
        measures += crowd(run, kind, rounds, idle_s)
    return measures + own_write(run, rounds, count)


def waiters(run: Run, kind: str, work: str, database: Path, count: int) -> Child:
    """A process that waits."""
    command = [sys.executable, "-m", "bench.waiters", kind, work, str(database), str(count)]
    child = run.start(f"waiters-{kind}", command)
    child.line()
    return child


def latencies_us(run: Run, kind: str, count: int) -> list[float]:
    """From the apply until one that waits for it goes on."""
    with run.stage() as folder, closing(Follower(folder / "app.db")) as follower:
        child = waiters(run, kind, "one", folder / "app.db", count)
        applied_ns = []
        for txid in range(1, count + 1):
            time.sleep(STEP_S)
            applied_ns.append(follower.applies(txid))
        told_ns = child.json()
    return [(told - applied) / 1e3 for told, applied in zip(told_ns, applied_ns, strict=True)]


def crowd(run: Run, kind: str, rounds: int, idle_s: float) -> list[Measure]:
    """A thousand that wait: while nothing happens, while others commit, and when they are told by one apply."""
    idle, others, last, cpu = [], [], [], []
    for _ in range(rounds):
        with run.stage() as folder, closing(Follower(folder / "app.db")) as follower:
            child = waiters(run, kind, "all", folder / "app.db", CROWD)
            time.sleep(0.5)
            before_s = child.cpu_s()
            time.sleep(idle_s)
            idle.append((child.cpu_s() - before_s) / idle_s * 100)
            before_s, begin_s = child.cpu_s(), time.monotonic()
            for number in range(int(idle_s * OTHERS_PER_S)):
                time.sleep(max(0.0, begin_s + number / OTHERS_PER_S - time.monotonic()))
                follower.applies(number)
            others.append((child.cpu_s() - before_s) / (time.monotonic() - begin_s) * 100)
            before_s = child.cpu_s()
            applied_ns = follower.applies(1_000_000 + CROWD)
            last.append((max(child.json()) - applied_ns) / 1e6)
            cpu.append((child.cpu_s() - before_s) * 1e3)
    say(f"{CROWD} {kind}: {idle[-1]:.3f} %, others' {others[-1]:.2f} %, last {last[-1]:.1f} ms, {cpu[-1]:.0f} ms")
    name = f"{CROWD:,} {kind}"
    return [
        Measure(f"{name} wait, nothing happens", "% of a core", idle, at_most=0.2),
        Measure(f"{name} wait, others commit", "% of a core", others, at_most=5),
        Measure(f"{name}, one apply → the last is told", "ms", last),
        Measure(f"{name}, one apply: processor time", "ms", cpu, note="until all have ended"),
    ]


def own_write(run: Run, rounds: int, count: int) -> list[Measure]:
    """Barriers, and reads of one's own writes."""
    asked: list[list[float]] = []
    read: list[list[float]] = []
    with_follower: dict[str, list[list[float]]] = {"applied": [], "durable": []}
    with run.stage() as folder:
        db, copy = folder / "app.db", folder / "edge" / "app.db"
        copy.parent.mkdir()
        make_database(db)
        _, address = run.primary(db)
        run.follower(copy, address)
        primary, replica = Primary(db), Replica(copy)
        with closing(sqlite3.connect(db, isolation_level=None)) as app:
            app.execute("PRAGMA synchronous=NORMAL")
            app.execute("INSERT INTO t (v) VALUES (0)")
            wait_for_row(copy, 1)
            for _ in range(rounds):
                asked.append([])
                read.append([])
                for number in range(count):
                    time.sleep(STEP_S)
                    app.execute("INSERT INTO t (v) VALUES (?)", (number,))
                    committed_s = time.perf_counter()
                    token = primary.barrier()
                    asked[-1].append((time.perf_counter() - committed_s) * 1e3)
                    replica.wait_for(token, 10.0)
                    read[-1].append((time.perf_counter() - committed_s) * 1e3)
                for level, rounds_ms in with_follower.items():
                    rounds_ms.append([])
                    for number in range(count):
                        time.sleep(STEP_S)
                        app.execute("INSERT INTO t (v) VALUES (?)", (number,))
                        committed_s = time.perf_counter()
                        primary.barrier(followers=1, timeout=10.0, level=level)
                        rounds_ms[-1].append((time.perf_counter() - committed_s) * 1e3)
    say(f"barrier {quantile(asked[-1], 0.5):.2f} ms, read {quantile(read[-1], 0.5):.2f} ms")
    followed = []
    for level, rounds_ms in with_follower.items():
        say(f"barrier, one follower, {level}: p50 {quantile(rounds_ms[-1], 0.5):.2f} ms")
        name = f"barrier with one follower, {level}"
        followed.append(Measure(f"{name}, half of them", "ms", [quantile(one, 0.5) for one in rounds_ms]))
        followed.append(Measure(f"{name}, 99 of 100", "ms", [quantile(one, 0.99) for one in rounds_ms]))
    return [
        *followed,
        Measure("barrier by the path, half of them", "ms", [quantile(one, 0.5) for one in asked], at_most=2),
        Measure("barrier by the path, 99 of 100", "ms", [quantile(one, 0.99) for one in asked]),
        Measure("own write readable at a replica, half", "ms", [quantile(one, 0.5) for one in read]),
        Measure("own write readable at a replica, 99 of 100", "ms", [quantile(one, 0.99) for one in read]),
    ]

"""Lag: a commit returned to the app → a reader on the follower sees it; and what primary and follower need for it.

200 commits a second of one 150-byte row. The reader runs `SELECT max(id)` over and over with a pause of 50 µs (about
0.1 ms with the kernel's timer slack, which is part of the figure): without the pause it would take one of two cores.
"""

from __future__ import annotations

import statistics
import time

from bench.harness import BenchError, Run, make_database, say, wait_for_row
from bench.measure import Measure, quantile

COMMITS = 2000
PER_S = 200
PAUSE_US = 50
ROUNDS = 3


def lags_ms(returned_ns: list[int], first: int, seen: list[tuple[int, int]]) -> list[float]:
    """Per commit, from the returns of the commits of rows `first`… and from when which newest row was seen."""
    newest = seen[-1][0] if seen else 0
    if newest < first + len(returned_ns) - 1:
        raise BenchError(f"the reader saw nothing new for long after row {newest} of {first + len(returned_ns) - 1}")
    lags, at = [], 0
    for i, committed_ns in enumerate(returned_ns):
        while seen[at][0] < first + i:
            at += 1
        lags.append((seen[at][1] - committed_ns) / 1e6)
    return lags


def run(run: Run) -> list[Measure]:
    """The lag benchmark."""
    commits, rounds = (1000, 1) if run.quick else (COMMITS, ROUNDS)
    p50, p99, most, primary_share, follower_share, reader_share = [], [], [], [], [], []
    with run.stage() as folder:
        db, replica = folder / "app.db", folder / "replica.db"
        make_database(db)
        primary, address = run.primary(db)
        follower = run.follower(replica, address, "--name", "app")
        done = 0
        warm = run.worker("paced", db, 100, PER_S)
        warm.go()
        done += len(warm.json()["returned_ns"])
        wait_for_row(replica, done)
        for number in range(rounds):
            writer = run.worker("paced", db, commits, PER_S)
            reader = run.worker("reader", replica, done + commits, PAUSE_US)
            with run.profiled(primary, follower):
                begin_s, cpu = time.monotonic(), (primary.cpu_s(), follower.cpu_s())
                reader.go()
                writer.go()
                wrote, read = writer.json(), reader.json()
                seconds = time.monotonic() - begin_s
                used = (primary.cpu_s() - cpu[0], follower.cpu_s() - cpu[1])
            done += commits
            lags = lags_ms(wrote["returned_ns"], wrote["first"], read["seen"])
            p50.append(statistics.median(lags))
            p99.append(quantile(lags, 0.99))
            most.append(max(lags))
            primary_share.append(used[0] / seconds)
            follower_share.append(used[1] / seconds)
            reader_share.append(read["cpu_s"] / seconds)
            say(f"round {number + 1}: p50 {p50[-1]:.2f} ms, p99 {p99[-1]:.2f} ms, longest {most[-1]:.1f} ms")
    both = [a + b for a, b in zip(primary_share, follower_share, strict=True)]
    return [
        Measure("lag, half of the commits", "ms", p50, at_most=2),
        Measure("lag, 99 of 100 commits", "ms", p99, at_most=10),
        Measure("lag, the longest", "ms", most),
        Measure("processor time, primary and follower", "cores", both, at_most=0.3),
        Measure("… the primary", "cores", primary_share),
        Measure("… the follower", "cores", follower_share),
        Measure("… the polling reader", "cores", reader_share, note="the measuring itself"),
    ]

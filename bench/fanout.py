"""50 followers at 50 commits a second: commit returned → applied at every one of them.

Two are real follower processes, each with a reader that polls the replica. The other 48 are subscribers in one process
that speak the protocol over connections of their own, read every transaction and acknowledge it without applying
it: 50 follower processes do not fit on two cores. A commit counts when the last of the 50 has it.
"""

from __future__ import annotations

import sys
import time

from bench.harness import Run, make_database, say, wait_for_row
from bench.lag import lags_ms
from bench.measure import Measure, quantile

FOLLOWERS = 50
REAL = 2
PER_S = 50
COMMITS = 750
ROUNDS = 2
PAUSE_US = 500


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    commits, rounds = (250, 1) if run.quick else (COMMITS, ROUNDS)
    p50, p99, most, cores = [], [], [], []
    with run.stage() as folder:
        db = folder / "app.db"
        make_database(db)
        primary, address = run.primary(db)
        replicas = [folder / f"replica{i}.db" for i in range(REAL)]
        for replica in replicas:
            run.follower(replica, address, "--name", "app")
        warm = run.worker("paced", db, 50, PER_S)
        warm.go()
        done = len(warm.json()["returned_ns"])
        for replica in replicas:
            wait_for_row(replica, done)
        for number in range(rounds):
            command = [sys.executable, "-m", "bench.subscribers", address, str(FOLLOWERS - REAL), str(commits)]
            subscribers = run.start("subscribers", command)
            subscribers.line()
            writer = run.worker("paced", db, commits, PER_S)
            readers = [run.worker("reader", replica, done + commits, PAUSE_US) for replica in replicas]
            with run.profiled(primary):
                begin_s, cpu_s = time.monotonic(), primary.cpu_s()
                for process in (*readers, writer):
                    process.go()
                wrote = writer.json()
                cores.append((primary.cpu_s() - cpu_s) / (time.monotonic() - begin_s))
                lags = [lags_ms(wrote["returned_ns"], wrote["first"], reader.json()["seen"]) for reader in readers]
                received_ns = subscribers.json()
            lags.append([(a - b) / 1e6 for a, b in zip(received_ns, wrote["returned_ns"], strict=True)])
            subscribers.stop()
            last = [max(of_one) for of_one in zip(*lags, strict=True)]
            done += commits
            p50.append(quantile(last, 0.5))
            p99.append(quantile(last, 0.99))
            most.append(max(last))
            say(f"round {number + 1}: p50 {p50[-1]:.1f} ms, p99 {p99[-1]:.1f} ms, primary {cores[-1]:.2f} cores")
    return [
        Measure("at every follower, 99 of 100 commits", "ms", p99, at_most=100),
        Measure("at every follower, half of the commits", "ms", p50),
        Measure("at every follower, the longest", "ms", most),
        Measure("processor time, primary", "cores", cores),
    ]

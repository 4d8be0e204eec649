"""An app that commits flat out, with a primary and one follower attached, against none.

One 150-byte row a commit, synchronous=NORMAL, SQLite's own automatic checkpoints, a new database each time. The two
take turns, and the ratio is taken within each pair of rounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.harness import MIB, Run, largest, make_database, say, wait_for_row
from bench.measure import Measure

SECONDS = 8
ROUNDS = 3


def bare(run: Run, seconds: float) -> dict[str, Any]:
    """The app alone."""
    with run.stage() as folder:
        db = folder / "app.db"
        make_database(db)
        writer = run.worker("flat_out", db, seconds)
        writer.go()
        return writer.json()


def attached(run: Run, seconds: float) -> dict[str, Any]:
    """The app with a primary and a follower."""
    with run.stage() as folder:
        db, replica = folder / "app.db", folder / "replica.db"
        make_database(db)
        primary, address = run.primary(db)
        follower = run.follower(replica, address, "--name", "app")
        wals = [Path(f"{path}-wal") for path in (db, replica)]
        writer = run.worker("flat_out", db, seconds)
        with largest(*wals) as sizes, run.profiled(primary, follower):
            cpu = (primary.cpu_s(), follower.cpu_s())
            writer.go()
            found = writer.json()
            found["primary_cores"] = (primary.cpu_s() - cpu[0]) / found["seconds"]
            found["follower_cores"] = (follower.cpu_s() - cpu[1]) / found["seconds"]
            found["level_s"] = (wait_for_row(replica, found["last"]) - found["last_ns"]) / 1e9
        found["wal_mib"], found["follower_wal_mib"] = (sizes[wal] / MIB for wal in wals)
    return found


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    seconds, rounds = (3.0, 1) if run.quick else (SECONDS, ROUNDS)
    without, with_, ratios = [], [], []
    for number in range(rounds):
        order = (bare, attached) if number % 2 == 0 else (attached, bare)
        found = {step: step(run, seconds) for step in order}
        without.append(found[bare])
        with_.append(found[attached])
        rates = [found[step]["commits"] / found[step]["seconds"] for step in (bare, attached)]
        ratios.append(rates[1] / rates[0])
        say(
            f"round {number + 1}: bare {rates[0]:,.0f}/s, attached {rates[1]:,.0f}/s = {ratios[-1]:.2f}; "
            + ", ".join(f"{k} {v:.3g}" for k, v in found[attached].items() if k not in ("last_ns", "last", "commits"))
        )

    def each(key: str, rounds: list[dict[str, Any]] = with_) -> list[float]:
        return [found[key] for found in rounds]

    return [
        Measure("rate with walcast against the bare rate", "of 1", ratios, at_least=0.85),
        Measure("follower level after the last commit", "s", each("level_s"), at_most=1),
        Measure("the app's WAL, at its largest", "MiB", each("wal_mib"), at_most=32),
        Measure("longest commit", "ms", each("longest_ms"), at_most=50),
        Measure("… bare", "ms", each("longest_ms", without)),
        Measure("bare rate", "commits/s", [found["commits"] / found["seconds"] for found in without]),
        Measure("the app's processor time for a commit", "µs", each("commit_cpu_us"), note="less noisy than the rate"),
        Measure("… bare", "µs", each("commit_cpu_us", without)),
        Measure("the follower's WAL, at its largest", "MiB", each("follower_wal_mib")),
        Measure("processor time, primary", "cores", each("primary_cores")),
        Measure("processor time, follower", "cores", each("follower_cores")),
    ]

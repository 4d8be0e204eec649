"""Bulk: pages applied by one follower, against the rate at which SQLite writes the same pages.

The same transactions (1,000 pages each, two kinds of rows) are written by stock SQLite alone, with its automatic
checkpoints; and, in turn, with a primary attached and the follower stopped (SIGSTOP). Then the follower goes on: from
that moment until a reader of the replica sees the last row it receives, decodes, verifies, applies and checkpoints.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path

from bench.harness import Run, make_database, say, wait_for_row, wait_until
from bench.measure import Measure

ROUNDS = 3
TRANSACTIONS = 25


@dataclass(frozen=True, slots=True)
class Rows:
    """A kind of rows: `per_transaction` of them fill about 1,000 pages."""

    name: str
    row_bytes: int
    per_transaction: int


KINDS = (Rows("one 3,900-byte row a page", 3900, 1000), Rows("400-byte rows", 400, 10_000))


def write(run: Run, db: Path, rows: Rows, transactions: int) -> tuple[float, int, int]:
    """Seconds, pages of the database, last row."""
    writer = run.worker("bulk", db, transactions, rows.per_transaction, rows.row_bytes)
    writer.go()
    found = writer.json()
    return found["seconds"], found["pages"], found["last"]


def sqlite_rate(run: Run, rows: Rows, transactions: int) -> float:
    """Pages a second that SQLite alone writes."""
    with run.stage() as folder:
        make_database(folder / "app.db")
        seconds, pages, _ = write(run, folder / "app.db", rows, transactions)
        return pages / seconds


def follower_rate(run: Run, rows: Rows, transactions: int) -> float:
    """Pages a second that a follower applies."""
    with run.stage() as folder:
        db, replica = folder / "app.db", folder / "replica.db"
        make_database(db)
        primary, address = run.primary(db, "--log-max-bytes", 4 << 30)
        follower = run.follower(replica, address, "--name", "app")
        follower.signal(signal.SIGSTOP)
        _, pages, last = write(run, db, rows, transactions)
        quiet(primary)
        with run.profiled(primary, follower):
            begin_ns = time.monotonic_ns()
            follower.signal(signal.SIGCONT)
            level_ns = wait_for_row(replica, last)
        return pages * 1e9 / (level_ns - begin_ns)


def quiet(primary: object) -> None:
    """Until the primary has captured all there is: it no longer uses the processor."""
    last = [0.0]

    def still() -> bool:
        before, last[0] = last[0], primary.cpu_s()  # type: ignore[attr-defined]
        return last[0] - before < 0.004

    wait_until(still, "the primary captures", every_s=0.2)


def run(run: Run) -> list[Measure]:
    """The benchmark."""
    rounds, transactions = (1, 10) if run.quick else (ROUNDS, TRANSACTIONS)
    measures = []
    for rows in KINDS:
        alone, applied = [], []
        for _ in range(rounds):
            alone.append(sqlite_rate(run, rows, transactions))
            applied.append(follower_rate(run, rows, transactions))
            say(f"{rows.name}: SQLite {alone[-1]:,.0f} pages/s, follower {applied[-1]:,.0f} pages/s")
        ratios = [b / a for a, b in zip(alone, applied, strict=True)]
        measures += [
            Measure(f"{rows.name}: follower against SQLite", "of 1", ratios, at_least=1.0),
            Measure("… the follower", "pages/s", applied),
            Measure("… SQLite", "pages/s", alone),
        ]
    return measures

"""Apps: processes that write and read with stock sqlite3 and nothing of walcast. `python -m bench.workers NAME ARGS…`

Each prints "ready", waits for a line, does its work, and prints its facts as one line of JSON. Clocks are
CLOCK_MONOTONIC, ns, the same for all processes.
"""

from __future__ import annotations

import json
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from typing import Any

ROW_BYTES = 150
GIVE_UP_NS = 20 * 10**9  # without a new row


def connect(path: str) -> sqlite3.Connection:
    """As an app would, with synchronous=NORMAL."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous=NORMAL")
    return db


def text(size: int, seed: int) -> bytes:
    """`size` bytes that LZ4 halves, about: as real rows do."""
    rng = random.Random(seed)
    half = size // 2
    return rng.randbytes(half) + (b'{"name": "value", "state": "open"}' * (half // 34 + 1))[: size - half]


def ready() -> None:
    """Wait to be told."""
    print("ready", flush=True)
    sys.stdin.readline()


def paced(path: str, commits: str, per_s: str, kinds: str = "1") -> dict[str, Any]:
    """Commits of one row at a steady rate, by absolute deadlines: first id, and when each commit returned.

    `kinds`: how many different rows there are, one after the other.
    """
    db, count, step_ns = connect(path), int(commits), int(1e9 / float(per_s))
    rows = [text(ROW_BYTES, seed) for seed in range(1, int(kinds) + 1)]
    first = (db.execute("SELECT max(id) FROM t").fetchone()[0] or 0) + 1
    returned: list[int] = []
    ready()
    begin_ns = time.monotonic_ns()
    for i in range(count):
        wait_ns = begin_ns + i * step_ns - time.monotonic_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        db.execute("INSERT INTO t (v) VALUES (?)", (rows[i % len(rows)],))
        returned.append(time.monotonic_ns())
    return {"first": first, "returned_ns": returned}


def moving(paths: str, seconds: str, per_s: str) -> dict[str, Any]:
    """Commits of one row at a steady rate to whichever of `paths` (with commas between) takes them: when each commit
    returned, and which one it was. The way an app does it that knows nothing: the next one when one is locked."""
    dbs = [sqlite3.connect(path, isolation_level=None, timeout=0) for path in paths.split(",")]
    for db in dbs:
        db.execute("PRAGMA synchronous=NORMAL")
    step_ns, row = int(1e9 / float(per_s)), text(ROW_BYTES, 1)
    returned: list[tuple[int, int]] = []
    at = 0
    ready()
    next_ns = time.monotonic_ns()
    end_ns = next_ns + int(float(seconds) * 1e9)
    while (now_ns := time.monotonic_ns()) < end_ns:
        if now_ns < next_ns:
            time.sleep((next_ns - now_ns) / 1e9)
        try:
            dbs[at].execute("INSERT INTO t (v) VALUES (?)", (row,))
        except sqlite3.OperationalError:
            at = (at + 1) % len(dbs)
            time.sleep(0.001)
            continue
        returned.append((time.monotonic_ns(), at))
        next_ns = max(next_ns + step_ns, returned[-1][0] - 20 * step_ns)
    return {"returned": returned}


def reader(path: str, last: str, pause_us: str, reopen: str = "0") -> dict[str, Any]:
    """Looks at a table again and again until row `last` is there: (newest id, when it was first seen).

    `reopen` = 1: each look by a connection of its own; what it cannot read counts as an error and is looked at again.
    """
    db, goal, pause_s, seen, errors = connect(path), int(last), float(pause_us) / 1e6, [], 0
    newest = db.execute("SELECT max(id) FROM t").fetchone()[0] or 0
    ready()
    give_up_ns = time.monotonic_ns() + GIVE_UP_NS
    while newest < goal:
        try:
            if reopen == "1":
                db.close()
                db = sqlite3.connect(path, isolation_level=None)
            now = db.execute("SELECT max(id) FROM t").fetchone()[0] or 0
        except sqlite3.Error:
            errors += 1
            if reopen != "1":
                raise
            now = newest
        now_ns = time.monotonic_ns()
        if now > newest:
            seen.append((now, now_ns))
            newest = now
            give_up_ns = now_ns + GIVE_UP_NS
        elif now_ns > give_up_ns:
            break
        if pause_s:
            time.sleep(pause_s)
    return {"seen": seen, "errors": errors, "cpu_s": time.process_time()}


def flat_out(path: str, seconds: str) -> dict[str, Any]:
    """One row a commit, as fast as stock Python can: executemany without a transaction loops in C."""
    db, row, length_ns = connect(path), (text(ROW_BYTES, 1),), int(float(seconds) * 1e9)
    count = longest_ns = 0
    ready()
    begin_cpu_s, begin_ns = time.process_time(), time.monotonic_ns()
    last_ns = begin_ns
    end_ns = begin_ns + length_ns

    def rows() -> Iterator[tuple[bytes]]:
        nonlocal count, longest_ns, last_ns
        clock = time.monotonic_ns
        while True:
            now_ns = clock()  # the commit of the row before has returned
            if now_ns - last_ns > longest_ns:
                longest_ns = now_ns - last_ns
            last_ns = now_ns
            if now_ns >= end_ns:
                return
            count += 1
            yield row

    db.executemany("INSERT INTO t (v) VALUES (?)", rows())
    return {
        "commits": count,
        "seconds": (last_ns - begin_ns) / 1e9,
        "longest_ms": longest_ns / 1e6,
        "commit_cpu_us": (time.process_time() - begin_cpu_s) * 1e6 / max(1, count),
        "last": db.execute("SELECT max(id) FROM t").fetchone()[0],
        "last_ns": last_ns,
    }


def bulk(path: str, transactions: str, rows: str, row_bytes: str) -> dict[str, Any]:
    """Transactions of many rows."""
    db, size = connect(path), int(row_bytes)
    values = [(text(size, seed),) for seed in range(64)]
    batch = [values[i % 64] for i in range(int(rows))]
    ready()
    begin_ns = time.monotonic_ns()
    for _ in range(int(transactions)):
        db.execute("BEGIN")
        db.executemany("INSERT INTO t (v) VALUES (?)", batch)
        db.execute("COMMIT")
    return {
        "seconds": (time.monotonic_ns() - begin_ns) / 1e9,
        "last": db.execute("SELECT max(id) FROM t").fetchone()[0],
        "pages": db.execute("PRAGMA page_count").fetchone()[0],
    }


def build(path: str, pages: str) -> dict[str, Any]:
    """A database of so many pages, quickly: one 3,900-byte row a page, nothing synced."""
    db, count = connect(path), int(pages)
    values = [(text(3900, seed),) for seed in range(64)]
    ready()
    db.execute("PRAGMA journal_mode=OFF")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("BEGIN")
    db.executemany("INSERT INTO t (v) VALUES (?)", (values[i % 64] for i in range(count)))
    db.execute("COMMIT")
    db.execute("PRAGMA journal_mode=WAL")
    return {"last": count}


def rewrite(path: str) -> dict[str, Any]:
    """Every row anew, in one transaction."""
    db = connect(path)
    ready()
    begin_ns = time.monotonic_ns()
    db.execute("BEGIN")
    db.execute("UPDATE t SET v = substr(v, 2) || x'00'")
    db.execute("INSERT INTO t (v) VALUES ('the end')")
    db.execute("COMMIT")
    last = db.execute("SELECT max(id) FROM t").fetchone()[0]
    return {"seconds": (time.monotonic_ns() - begin_ns) / 1e9, "last": last}


if __name__ == "__main__":
    work = {f.__name__: f for f in (paced, moving, reader, flat_out, bulk, build, rewrite)}[sys.argv[1]]
    print(json.dumps(work(*sys.argv[2:])), flush=True)

"""A busy stock writer: `apply_writer.py DATABASE SEED`, for as long as its standard input is open.

Transfers between accounts, fillers that come and go, VACUUMs, schema changes; automatic checkpoints of random sizes and
explicit ones. The invariants are those of `apply_source`.
"""

from __future__ import annotations

import random
import select
import sqlite3
import sys
import time

MAX_SECONDS = 900.0


def main() -> None:
    rng = random.Random(int(sys.argv[2]))
    db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10.0)
    db.execute("PRAGMA synchronous = OFF")
    accounts = db.execute("SELECT count(*) FROM accounts").fetchone()[0]
    commits, end = 0, time.monotonic() + MAX_SECONDS
    print("ready", flush=True)
    while time.monotonic() < end and not select.select([sys.stdin], [], [], 0)[0]:
        dice = rng.random()
        if dice < 0.02:
            db.execute(f"PRAGMA wal_autocheckpoint = {rng.choice((1, 10, 100, 1000))}")
        elif dice < 0.04:
            db.execute(f"PRAGMA wal_checkpoint({rng.choice(('PASSIVE', 'FULL', 'RESTART', 'TRUNCATE'))})").fetchone()
        elif dice < 0.045:
            db.execute("VACUUM")
        else:
            amount = rng.randrange(100)
            db.execute("BEGIN IMMEDIATE")
            for sign in (1, -1):
                db.execute(
                    "UPDATE accounts SET balance = balance + ? WHERE id = ?", (sign * amount, rng.randrange(accounts))
                )
            if dice < 0.3:
                db.execute("INSERT INTO filler (body) VALUES (?)", (rng.randbytes(rng.randrange(4000)),))
            elif dice < 0.35:
                db.execute("DELETE FROM filler WHERE id % 3 = ?", (rng.randrange(3),))
            db.execute(
                "UPDATE meta SET version = version + 1, rows = (SELECT count(*) FROM filler),"
                " bytes = (SELECT coalesce(sum(length(body)), 0) FROM filler)"
            )
            db.execute("COMMIT")
            commits += 1
    print(commits, flush=True)


main()

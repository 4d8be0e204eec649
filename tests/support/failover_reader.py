"""A stock reader of one node of a replica set, with one connection for all its life; until its standard input ends.

    failover_reader.py DATABASE WRONG

What should not have happened goes to WRONG, a line each. Says at the end how many snapshots it saw.
"""

from __future__ import annotations

import json
import select
import sqlite3
import sys
import time
from pathlib import Path

MAX_SECONDS = 3600.0
INTEGRITY_EVERY = 50


def look(db: sqlite3.Connection, whole: bool) -> str | None:
    """What is wrong with the state that is there now."""
    db.execute("BEGIN")
    try:
        stamps = {stamp for (stamp,) in db.execute("SELECT stamp FROM stamps")}
        if len(stamps) != 1:
            return f"half a transaction: {stamps}"
        if whole:
            found = db.execute("PRAGMA integrity_check").fetchall()
            if found != [("ok",)]:
                return str(found[0][0])[:300]
        again = {stamp for (stamp,) in db.execute("SELECT stamp FROM stamps")}
        return None if again == stamps else f"a snapshot moved from {stamps} to {again}"
    finally:
        db.execute("COMMIT")


def main() -> None:
    db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5.0)
    print("ready", flush=True)
    end = time.monotonic() + MAX_SECONDS
    snapshots = 0
    with Path(sys.argv[2]).open("a", buffering=1) as wrong:
        while time.monotonic() < end and not select.select([sys.stdin], [], [], 0.01)[0]:
            try:
                found = look(db, snapshots % INTEGRITY_EVERY == 0)
            except sqlite3.Error as error:
                found = f"{type(error).__name__}: {error}"
            if found:
                print(f"{time.monotonic():.4f} snapshot {snapshots}: {found}", file=wrong)
            snapshots += 1
    db.close()
    print(json.dumps({"snapshots": snapshots}), flush=True)


main()

"""Apps for `test_roles.py`: one that writes whenever it can, one that reads and never reconnects.

Arguments: write|read DATABASE. They run from the first line of their standard input to its end.
"""

from __future__ import annotations

import json
import select
import sqlite3
import sys
import time

MAX_SECONDS = 120.0


def told_to_end() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def write(path: str) -> dict[str, int]:
    """Rows, one a commit, numbered; how many were committed, and how often the database was locked."""
    db = sqlite3.connect(path, isolation_level=None, timeout=0)
    committed = locked = 0
    end = time.monotonic() + MAX_SECONDS
    while not told_to_end() and time.monotonic() < end:
        try:
            db.execute("INSERT INTO t (n, v) VALUES (?, randomblob(300))", (committed,))
            committed += 1
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            locked += 1
            time.sleep(0.0005)
    return {"committed": committed, "locked": locked}


def read(path: str) -> dict[str, int]:
    """The rows are 0, 1, 2, … at every moment, and never fewer than before."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    looks = newest = 0
    end = time.monotonic() + MAX_SECONDS
    while not (looks and told_to_end()) and time.monotonic() < end:
        rows, last = db.execute("SELECT count(*), coalesce(max(n), -1) FROM t").fetchone()
        assert rows == last + 1 >= newest, (rows, last, newest)
        newest = rows
        looks += 1
    return {"looks": looks, "rows": newest}


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps({"write": write, "read": read}[sys.argv[1]](sys.argv[2])), flush=True)

"""An app in a container: makes its database, commits rows for as long as it is let, one more when it is told to end.

    container_app.py DB FILL_BYTES      the first rows have so many bytes, which no compression makes fewer

It says what it was told on standard error: `row ID WORD` for a row that is committed, `at ID TXID` for a position that
covers it and all before. Where the database cannot be written, beside a follower, it waits until it can.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import sqlite3
import sys
import time

import walcast

FILL_ROW_BYTES = 32 << 10
PAUSE_S = (0.0, 0.02)
ASK_EVERY = 10


def main() -> None:
    path, fill_bytes = sys.argv[1], int(sys.argv[2])
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ending.append(number))
    primary = walcast.Primary(path)
    made = 0
    while not ending:
        try:
            made += commit(path, primary, fill_bytes, ending)
        except (sqlite3.OperationalError, walcast.Unavailable):
            time.sleep(0.02)
    say(f"app ends after {made} rows, as process {os.getpid()}")


def commit(path: str, primary: walcast.Primary, fill_bytes: int, ending: list[int]) -> int:
    """Rows, until it is to end; raises when the database cannot be written."""
    db = sqlite3.connect(path, timeout=2.0, isolation_level=None)
    made = 0
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, word TEXT NOT NULL, filling BLOB)")
        filled = db.execute("SELECT count(*) FROM t WHERE filling IS NOT NULL").fetchone()[0]
        while True:
            last = bool(ending)
            filling = os.urandom(FILL_ROW_BYTES) if filled * FILL_ROW_BYTES < fill_bytes else None
            filled += filling is not None
            word = secrets.token_hex(8)
            row = db.execute("INSERT INTO t (word, filling) VALUES (?, ?)", (word, filling)).lastrowid
            say(f"row {row} {word}")
            made += 1
            if last:
                return made
            if made % ASK_EVERY == 0:
                say(f"at {row} {primary.barrier().txid}")
            if filling is None:
                time.sleep(random.uniform(*PAUSE_S))
    finally:
        db.close()


def say(line: str) -> None:
    os.write(2, f"{line}\n".encode())


if __name__ == "__main__":
    main()

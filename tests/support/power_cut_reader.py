"""A stock reader of the chained ledger, with one connection for all its life; until SIGTERM.

    power_cut_reader.py DATABASE REPORT

REPORT gets a line for each thing that a reader should not see: `SECONDS back HASH NEWEST NOW`, `SECONDS other HASH SEQ`
for a row that was replaced by another one, `SECONDS wrong …`; and `SECONDS at SEQ` now and then.
"""

from __future__ import annotations

import signal
import sqlite3
import sys
import time
from pathlib import Path

from support.power_cut_ledger import Broken, head

EVERY_S = 0.004
WHOLE_EVERY = 100
MAX_SECONDS = 3600.0

ending = False


def end(*_: object) -> None:
    global ending
    ending = True


def look(db: sqlite3.Connection, newest: int, whole: bool) -> tuple[int, str, str | None]:
    """`seq` and hash of the newest row, and the hash that row `newest` has now; None: it is gone."""
    db.execute("BEGIN")
    try:
        seq, its = head(db)
        kept = db.execute("SELECT hash FROM chain WHERE seq = ?", (newest,)).fetchone()
        if whole and (said := db.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
            raise Broken(f"integrity_check: {said[0][0]}")
        return seq, its, kept[0] if kept else None
    finally:
        db.execute("COMMIT")


def main() -> None:
    signal.signal(signal.SIGTERM, end)
    db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5.0)
    newest, its = 0, ""
    looks = 0
    until_s = time.monotonic() + MAX_SECONDS
    with Path(sys.argv[2]).open("a", buffering=1) as report:

        def say(*words: object) -> None:
            print(f"{time.monotonic():.4f}", *words, file=report)

        while not ending and time.monotonic() < until_s:
            looks += 1
            try:
                seq, now, kept = look(db, newest, looks % WHOLE_EVERY == 0)
            except (Broken, sqlite3.Error) as error:
                say("wrong", type(error).__name__, str(error).replace("\n", "; "))
                time.sleep(EVERY_S)
                continue
            if newest and kept is None:
                say("back", its, newest, seq)
            elif newest and kept != its:
                say("other", its, newest)
            if looks % WHOLE_EVERY == 1:
                say("at", seq)
            newest, its = seq, now
            time.sleep(EVERY_S)
    db.close()


main()

"""A stock SQLite reader in a process of its own, with one connection for all its life; ends with its standard input.

    e2e_reader.py DATABASE short|long|new HISTORY

Every snapshot's state goes to HISTORY as `seq total digest`; a `long` one stays for a while and is looked at again and
again; `new` connects anew each time. `! …` lines there are what should not have happened. At the end one line of JSON.
"""

from __future__ import annotations

import json
import select
import sqlite3
import sys
import time
from pathlib import Path

from support.e2e_state import Observation, observe

LONG_S = 0.2
MAX_SECONDS = 300.0
INTEGRITY_EVERY = 9


class Reader:
    def __init__(self, path: str, mode: str, history: str) -> None:
        self.path, self.mode = path, mode
        self.history = Path(history).open("a", buffering=1)  # noqa: SIM115 - closed in main
        self.snapshots = 0
        self.longest_s = 0.0
        self.connect()

    def connect(self) -> None:
        self.db = sqlite3.connect(self.path, isolation_level=None, timeout=5.0)

    def wrong(self, what: str) -> None:
        self.history.write(f"! {what}\n")

    def look(self) -> Observation:
        began = time.monotonic()
        state = observe(self.db)
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        return state

    def snapshot(self) -> None:
        if self.mode == "new":
            self.db.close()
            self.connect()
        try:
            self.db.execute("BEGIN")
            state = self.look()
            end = time.monotonic() + (LONG_S if self.mode == "long" else 0.0)
            while time.monotonic() < end:
                if (again := self.look()) != state:
                    self.wrong(f"a snapshot moved from {state} to {again}")
            if self.snapshots % INTEGRITY_EVERY == 0:
                found = self.db.execute("PRAGMA integrity_check").fetchall()
                if found != [("ok",)]:
                    self.wrong(f"at {state.seq}: {found[0][0][:200]}")
            self.db.execute("COMMIT")
        except sqlite3.Error as error:
            self.wrong(f"{type(error).__name__}: {error}")
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            return
        self.history.write(f"{state.seq} {state.total} {state.digest}\n")
        self.snapshots += 1


def main() -> None:
    reader = Reader(*sys.argv[1:])
    print("ready", flush=True)
    end = time.monotonic() + MAX_SECONDS
    while time.monotonic() < end and not select.select([sys.stdin], [], [], 0.002)[0]:
        reader.snapshot()
    reader.db.close()
    reader.history.close()
    print(json.dumps({"snapshots": reader.snapshots, "longest_s": reader.longest_s}), flush=True)


main()

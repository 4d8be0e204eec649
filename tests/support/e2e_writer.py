"""The app: a stock SQLite writer in a process of its own, for as long as its standard input is open.

    e2e_writer.py DATABASE OPTIONS       (JSON; see `DEFAULTS`)

With `history` a line `seq total digest` is written there for every commit, after it. At the end one line of JSON.
"""

from __future__ import annotations

import json
import random
import select
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from support.e2e_state import ACCOUNTS, SPREAD_ROWS, observe

MAX_SECONDS = 300.0
CHECKPOINTS = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")
DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "operations": 0,  # 0: until standard input ends
    "pause_s": 0.0,
    "synchronous": "NORMAL",
    "cache_size": -2000,
    "autocheckpoint": [1000],
    "history": None,
    "row_bytes": 2500,
    "weights": {"transfer": 80, "grow": 12, "forget": 4, "rollback": 2},
}


class Writer:
    """Every method is one thing an app does. `commits` counts transactions that changed something."""

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        self.path = path
        self.options = options
        self.rng = random.Random(options["seed"])
        name = options["history"]
        self.history = Path(name).open("a", buffering=1) if name else None  # noqa: SIM115 - closed in run
        self.commits = 0
        self.longest_s = 0.0
        self.checkpoints: dict[str, list[float]] = {}
        self.busy_checkpoints = 0
        self.names = 0
        self.connect()

    def connect(self) -> None:
        self.db = sqlite3.connect(self.path, isolation_level=None, timeout=10.0)
        self.db.execute(f"PRAGMA synchronous = {self.options['synchronous']}")
        self.db.execute(f"PRAGMA cache_size = {self.options['cache_size']}")
        self.db.execute(f"PRAGMA wal_autocheckpoint = {self.rng.choice(self.options['autocheckpoint'])}")

    def reconnect(self) -> None:
        self.db.close()
        self.connect()

    def _begin(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")

    def _commit(self) -> None:
        self.db.execute("UPDATE state SET commit_seq = commit_seq + 1")
        state = observe(self.db) if self.history else None
        began = time.monotonic()
        self.db.execute("COMMIT")
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        self.commits += 1
        if self.history and state:
            self.history.write(f"{state.seq} {state.total} {state.digest}\n")

    def _move(self) -> None:
        amount = self.rng.randrange(100)
        for sign in (1, -1):
            values = (sign * amount, self.rng.randrange(ACCOUNTS))
            self.db.execute("UPDATE accounts SET balance = balance + ? WHERE id = ?", values)

    def transfer(self) -> None:
        self._begin()
        self._move()
        for id_ in self.rng.sample(range(SPREAD_ROWS), 4):
            body = self.rng.randbytes(self.rng.randrange(1000, 2600))
            self.db.execute("UPDATE spread SET stamp = stamp + 1, body = ? WHERE id = ?", (body, id_))
        self._commit()

    def small(self) -> None:
        self._begin()
        self._move()
        self._commit()

    def grow(self) -> None:
        self._begin()
        self._move()
        body = self.rng.randbytes(self.rng.randrange(1, self.options["row_bytes"]))
        self.db.execute("INSERT INTO filler (body) VALUES (?)", (body,))
        self._commit()

    def forget(self) -> None:
        self._begin()
        self.db.execute("DELETE FROM filler WHERE id % 3 = ?", (self.rng.randrange(3),))
        self._commit()

    def rollback(self) -> None:
        """With a small cache the pages are spilled to the WAL before they are rolled back."""
        self._begin()
        self._move()
        self.db.execute("UPDATE spread SET body = randomblob(2000)")
        self.db.execute("UPDATE accounts SET balance = balance + 1")
        self.db.execute("ROLLBACK")

    def schema(self) -> None:
        self._begin()
        old = self.db.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'extra%'").fetchall()
        for (name,) in old[1:]:
            self.db.execute(f"DROP TABLE {name}")
        self.names += 1
        self.db.execute(f"CREATE TABLE extra_{self.rng.randrange(1 << 40)}_{self.names} (a, b)")
        self._commit()

    def vacuum(self) -> None:
        try:
            self.db.execute("VACUUM")
            self.commits += 1
        except sqlite3.OperationalError as error:  # another writer held on for longer than the timeout
            if "locked" not in str(error):
                raise

    def checkpoint(self) -> None:
        mode = self.rng.choice(CHECKPOINTS)
        began = time.monotonic()
        busy = self.db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()[0]
        self.checkpoints.setdefault(mode, []).append(time.monotonic() - began)
        self.busy_checkpoints += busy if mode != "PASSIVE" else 0

    def autocheckpoint(self) -> None:
        self.db.execute(f"PRAGMA wal_autocheckpoint = {self.rng.choice(self.options['autocheckpoint'])}")

    def run(self) -> None:
        weights = self.options["weights"]
        end = time.monotonic() + MAX_SECONDS
        done = 0
        while time.monotonic() < end and (not self.options["operations"] or done < self.options["operations"]):
            if select.select([sys.stdin], [], [], self.options["pause_s"])[0]:
                break
            getattr(self, self.rng.choices(list(weights), list(weights.values()))[0])()
            done += 1
        self.db.close()
        if self.history:
            self.history.close()


def main() -> None:
    writer = Writer(sys.argv[1], DEFAULTS | json.loads(sys.argv[2]))
    print("ready", flush=True)
    writer.run()
    facts = {
        "commits": writer.commits,
        "longest_s": writer.longest_s,
        "checkpoints": writer.checkpoints,
        "busy_checkpoints": writer.busy_checkpoints,
    }
    print(json.dumps(facts), flush=True)


main()

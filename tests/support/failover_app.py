"""An app on the host of one node of a replica set: stock SQLite, writes whenever it is let, asks for barriers.

    failover_app.py DATABASE ADDRESS NAME LEDGER PAUSE_S       until its standard input ends

LEDGER gets `SECONDS commit N` after each commit of row N, and `SECONDS ack TOKEN N …` when a barrier said that a
follower has these rows; seconds are of the monotonic clock that all processes share.

What a barrier says counts only in the term in which the rows were committed: a node that was deposed and promoted
again meanwhile may have lost them in between, and its barrier covers what it has. So an app compares the token's
term with that of the token it had before the commits; after another one it begins anew.
"""

from __future__ import annotations

import random
import select
import sqlite3
import sys
import time
from pathlib import Path

from walcast.errors import WalcastError
from walcast.primary import Primary

STAMPS = 5
MAX_SECONDS = 3600.0
BARRIER_S = 0.7
LOCKED_S = 0.01


def create(path: Path) -> None:
    """`rows` is what the ledger is about; the rows of `stamps` change together, each on a page of its own."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript("""
        PRAGMA journal_mode = WAL; BEGIN;
        CREATE TABLE rows (app TEXT, n INTEGER, body BLOB, PRIMARY KEY (app, n)) WITHOUT ROWID;
        CREATE TABLE stamps (id INTEGER PRIMARY KEY, stamp INTEGER NOT NULL, body BLOB NOT NULL);
    """)
    db.executemany("INSERT INTO stamps VALUES (?, 0, zeroblob(3000))", ((i,) for i in range(STAMPS)))
    db.execute("COMMIT")
    db.close()


class App:
    def __init__(self, database: str, address: str, name: str, ledger: str, pause_s: str) -> None:
        self.db = sqlite3.connect(database, isolation_level=None, timeout=0.05)
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.primary = Primary(address)
        self.name = name
        self.ledger = Path(ledger).open("a", buffering=1)  # noqa: SIM115 - closed in run
        self.pause_s = float(pause_s)
        self.rng = random.Random(name)
        self.n = 0
        self.term = -1

    def say(self, *words: object) -> None:
        print(f"{time.monotonic():.4f}", *words, file=self.ledger)

    def write(self) -> bool:
        """One transaction; False when this node is not the one to write on."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
            values = (self.name, self.n, self.rng.randbytes(self.rng.randrange(8, 200)))
            self.db.execute("INSERT INTO rows VALUES (?, ?, ?)", values)
            self.db.execute("UPDATE stamps SET stamp = ?", (self.rng.getrandbits(40),))
            self.db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            if "locked" not in str(error):
                self.say("! error", error)
            return False
        self.say("commit", self.n)
        self.n += 1
        return True

    def barrier(self, numbers: list[int]) -> None:
        try:
            token = self.primary.barrier(followers=1, timeout=BARRIER_S)
        except WalcastError:
            self.term = -1
            return
        if token.term == self.term:
            self.say("ack", token, *numbers)
        self.term = token.term

    def run(self) -> None:
        end = time.monotonic() + MAX_SECONDS
        while time.monotonic() < end and not select.select([sys.stdin], [], [], self.pause_s)[0]:
            numbers: list[int] = []
            for _ in range(self.rng.randrange(1, 5)):
                if not self.write():
                    time.sleep(LOCKED_S)
                    break
                numbers.append(self.n - 1)
            if numbers:
                self.barrier(numbers)
        self.db.close()
        self.primary.close()
        self.ledger.close()


if __name__ == "__main__":
    app = App(*sys.argv[1:])
    print("ready", flush=True)
    app.run()
    print("{}", flush=True)
